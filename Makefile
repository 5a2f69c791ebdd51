# Everything that a developer runs. `make` alone lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests start many processes, and each would compile torch's modules anew where no byte code may be kept: ten seconds of a processor.
unexport PYTHONDONTWRITEBYTECODE

# Nothing here reports home.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

# Flower would install torch and everything else anew for every `flwr run`; the environment in which it is typed has it all.
NO_INSTALL := echo 'import os; os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")'

.DEFAULT_GOAL := help
.PHONY: help venv simulate test check docs site clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with fedfuse and the tools of development in it

# Runs again only when pyproject.toml has changed. Byte code is made of what is imported, when it is: most modules never are.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@$(NO_INSTALL) > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fedfuse-flower.pth
	@touch $@

simulate: $(STAMP) ## run the federation on the generated world, in this process
	$(BIN)/fedfuse simulate

# One worker more than there are cores: many tests wait for processes that they start.
WORKERS = $$(( $$($(PYTHON) -c 'import os; print(os.cpu_count())') + 1 ))

# Tests use the embedded backbone alone: no model hub is asked for anything.
test: export HF_HUB_OFFLINE := 1
test: $(STAMP) ## run the tests, all but the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(STAMP) ## lint, formatting, types, and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## write the pages that are made from the code
	$(BIN)/python docs/reference.py

site: $(STAMP) ## build the papers as a site in build/site
	$(BIN)/python docs/site.py

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
