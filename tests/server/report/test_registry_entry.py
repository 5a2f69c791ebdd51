"""The entry for the deployments registry: the registry's own fields, the report's figures, and no claim of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from server.report.registry_entry import COMPLETE, registry_entry
from server.report.report_model import PromiseStanding, RunReport

Make = Callable[[Path], RunReport]
SECTIONS = {
    "basic": {"name", "data_curators", "intended_use", "data_product_type", "data_product_region", "description"}
    | {"publication_date", "data_product_sector"},
    "dp_variant": {"variant_name", "data_domain", "unprotected_quantities"},
    "privacy_loss": {"privacy_unit", "privacy_unit_details", "privacy_parameters", "privacy_parameters_details"},
    "deployment_model": {"model_name", "model_name_details", "actors", "release_type", "release_type_details"}
    | {"data_source_type", "access_type"},
    "accounting": {"post_processing", "composition"},
    "implementation": {"preprocessing_and_hyperparameter_tuning", "mechanisms", "justification"},
    "administrative": {"notes", "registry_authors"},
}
"""Fields of the registry's schema of deployments; it takes no others."""


def entry(report: RunReport) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(registry_entry(report))
    return values


def test_it_has_the_registry_s_fields_and_the_report_s_figures(finished: Path, report_of: Make) -> None:
    report = report_of(finished)
    values = entry(report)
    assert set(values) == {"url_slug", "status", "tier", "deployment"} and (values["status"], values["tier"]) == ("Draft", 3)
    assert {name: set(part) for name, part in values["deployment"].items()} == SECTIONS
    loss = values["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": max(one.spent or 0.0 for one in report.budgets), "delta": 1e-3}
    assert isinstance(values["deployment"]["basic"]["publication_date"], str)
    assert values["deployment"]["basic"]["data_curators"] == ["shop", "video"]
    assert values["deployment"]["administrative"]["registry_authors"] == [COMPLETE]
    for one in report.promise.unprotected:
        assert one in values["deployment"]["dp_variant"]["unprotected_quantities"]


def test_a_simulation_is_no_deployment_and_says_so(finished: Path, report_of: Make) -> None:
    report = report_of(finished)
    assert entry(report)["deployment"]["basic"]["description"].startswith("NOT A DEPLOYMENT")
    verdict = report.verdict.model_copy(update={"standing": PromiseStanding.PROMISED})
    assert "NOT" not in entry(report.model_copy(update={"verdict": verdict}))["deployment"]["basic"]["description"]


def test_an_infinite_epsilon_is_no_number(finished: Path, report_of: Make) -> None:
    report = report_of(finished)
    line = report.budgets[0].model_copy(update={"spent": float("inf")})
    loss = entry(report.model_copy(update={"budgets": (line,)}))["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {} and "infinite" in loss["privacy_parameters_details"]


def test_another_party_s_words_stay_words(finished: Path, report_of: Make) -> None:
    report = report_of(finished).model_copy(update={"name": 'x"\n!!python/object: {a: [\n- &b *b'})
    assert entry(report)["deployment"]["basic"]["name"].startswith('x"\n!!python/object: {a: [\n- &b *b')
