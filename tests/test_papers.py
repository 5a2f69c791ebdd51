"""What the papers name exists: links, files, settings; pages that are made from the code are what it says."""

from __future__ import annotations

import functools
import http.server
import importlib
import inspect
import re
import runpy
import threading
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from client.evaluation.list_metrics import ItemFacts, JudgedLists
from client.privacy.ledger_writer import LedgerWriter
from shared.base.version import VERSION
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity
from tests.support.browser import Pages
from tests.support.papers import CODE, FENCE, OF_TODAY, PAPERS, ROOT, name_of, prose

reference = runpy.run_path(str(ROOT / "docs" / "reference.py"), run_name="reference")
site = runpy.run_path(str(ROOT / "docs" / "site.py"), run_name="site")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGE = re.compile(r"\bdocs/[\w-]+\.md\b")
FILE = re.compile(r"`((?:client|server|shared|strategies|simulations|tests|docs)/[\w./-]+)`")


@cache
def _anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("paper", PAPERS, ids=name_of)
def test_links_lead_somewhere(paper: Path) -> None:
    for link in LINK.findall(prose(paper.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        found = (paper.parent / target).resolve() if target else paper
        assert found.exists(), f"{name_of(paper)} links to {link}"
        if anchor and found.suffix == ".md":
            assert anchor in _anchors(found), f"{name_of(paper)} links to {link}: its headings are {sorted(_anchors(found))}"


@pytest.mark.parametrize("paper", OF_TODAY, ids=name_of)
def test_files_that_are_named_exist(paper: Path) -> None:
    missing = [named for named in FILE.findall(paper.read_text()) if not list(ROOT.glob(named.rstrip("/")))]
    assert not missing


def test_files_that_the_code_names_exist() -> None:
    named = {(name_of(path), found) for path in CODE for form in (FILE, PAGE) for found in form.findall(path.read_text())}
    assert len(named) > 50
    assert not [(path, found) for path, found in sorted(named) if not list(ROOT.glob(found.rstrip("/")))]


def test_the_newest_release_of_the_changelog_is_the_version_to_cite() -> None:
    released = re.findall(r"^## \[(\d[\w.]*)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version, date = released[0]
    cited = dict(re.findall(r"^(version|date-released): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited == {"version": version, "date-released": date}
    assert VERSION == version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert [date for _, date in released] == sorted((date for _, date in released), reverse=True)


@pytest.mark.parametrize("page", reference["PAGES"])
def test_pages_that_are_made_from_the_code_are_what_it_says(page: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == reference["PAGES"][page](), "run `make docs`"


def test_every_argument_and_option_says_what_it_is() -> None:
    assert "|  |\n" not in reference["command_line"]()
    assert "|  |\n" not in reference["message_format"]()


def test_every_public_function_says_what_it_returns() -> None:
    silent = []
    for name in (name for names in reference["API"].values() for name in names):
        module, _, what = name.rpartition(".")
        thing = getattr(importlib.import_module(module), what)
        gives = not isinstance(thing, type) and inspect.signature(thing).return_annotation != "None"
        if gives and "\nReturns:\n" not in inspect.cleandoc(thing.__doc__):
            silent.append(name)
    assert not silent


def test_the_words_of_errors_in_the_troubleshooting_page_are_the_codes() -> None:
    words = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    code = "".join(path.read_text() for path in CODE)
    joined = re.sub(r"\"\s*\n\s*f?\"", "", code)  # Literals over several lines are one.
    assert len(words) > 25
    assert not [one for one in words if one not in joined]


def _examples(paper: str) -> list[str]:
    return [body for language, body in FENCE.findall((ROOT / "docs" / paper).read_text()) if language == "python"]


def test_the_recipes_work_as_they_are_written() -> None:
    made: dict[str, Any] = {}
    for code in _examples("extending.md"):
        exec(compile(code, "docs/extending.md", "exec"), made)
    lists = JudgedLists(items=np.array([[0, 1], [1, -1], [-1, -1]], np.int32), rank=np.ones(3))
    shares = made["long_tail"](lists, ItemFacts(popularity=np.array([0.5, 0.001]), vectors=None), 2)
    np.testing.assert_array_equal(shares, [0.5, 1.0, np.nan])
    random = np.random.default_rng(0)
    text, image = torch.randn(4, 8), torch.randn(4, 3)
    operator = made["Maximum"]()
    local = operator.initial({"image": 3}, 8, random)
    there = torch.tensor([True, True, False, False])
    fused = operator.combine(local, text, {"image": (image, there)})
    torch.testing.assert_close(fused.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(fused[2:], torch.nn.functional.normalize(text, dim=-1)[2:])
    asked = made["ScoredFor"](history=csr_matrix((2, 2), dtype=np.float32), users=np.array([0, 1]))
    np.testing.assert_array_equal(made["Fresh"](np.array([0.0, 1.0])).scores(asked), [[1, 0], [1, 0]])
    combiner = made["Midmean"]({"x": (1, 1)}, faulty=1)
    for value in (1.0, 2.0, 3.0, 4.0, 1e6):
        combiner.add({"x": np.full((1, 1), value, np.float32)}, weight=1)
    assert combiner.change()["x"].item() == 3.0


def test_epsilon_by_hand_is_what_the_audit_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = _examples("audit.md")
    monkeypatch.chdir(tmp_path)
    integers = Integers(reach=608.0, dimension=500, failure=2.0**-64, honest=3)
    releases = [
        Release(kind=ReleaseKind.PREFERENCES, noise_multiplier=2.0, integers=integers),
        Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.5, sample_rate=0.1, steps=20),
    ]
    identity = Identity(bytes(32))
    with LedgerWriter.open(Path("shop.jsonl"), platform="shop", budget=8.0, delta=1e-5, identity=identity) as ledger:
        for number, release in enumerate(releases):
            ledger.charge(release, run="spring", round=number, question=f"{number:064x}")
    exec(compile(code, "docs/audit.md", "exec"), {})
    found, _, budget = capsys.readouterr().out.split()
    assert float(found) == pytest.approx(DP_ACCOUNTING.epsilon(releases, 1e-5).epsilon, rel=1e-3) and float(budget) == 8.0


def test_links_to_what_is_no_paper_become_text_on_the_site() -> None:
    text = "[a](../README.md#x) [b](../LICENSE) [c](https://example.org) ![d](d.png)"
    kept = site["_among_papers"](text, Path("docs/audit.md"), {Path("README.md")})
    assert kept == "[a](../README.md#x) b [c](https://example.org) ![d](d.png)"


@pytest.fixture(scope="module")
def built() -> Path:
    """The site, built without a warning."""
    assert site["main"]() == 0
    return ROOT / "build" / "site"


def test_the_site_asks_nothing_of_others(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 15
    fetched = re.compile(r"""(?:<(?:script|img|iframe)[^>]*\ssrc|<link[^>]*\shref)=["']?(https?:)?//""")
    assert not [page.name for page in pages if fetched.search(page.read_text())]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)], ids=["phone", "desktop"])
def test_every_page_fits_a_screen(built: Path, browser: Any, width: int, height: int) -> None:
    """Tables and code scroll by themselves, the page does not; no picture is missing, and nothing is said on the console."""
    handler = functools.partial(Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, pages = f"http://127.0.0.1:{server.server_address[1]}", Pages(browser)
        page = pages.open(f"{address}/index.html", viewport={"width": width, "height": height})
        wide, blank = [], []
        for path in sorted(built.rglob("*.html")):
            page.goto(f"{address}/{path.relative_to(built)}")
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wide.append(path.name)
            blank += page.evaluate("[...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)")
        pages.close()
        server.shutdown()
    assert (wide, blank, pages.said) == ([], [], [])
    assert not [asked for asked in pages.asked if not asked.startswith((address, "data:", "blob:"))]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and logs nothing."""

    def log_message(self, *words: Any) -> None:
        """Nothing."""
