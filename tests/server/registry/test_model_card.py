"""The model card says what the run did and what it promises, and no more than the coordinator knows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from server.registry.model_card import Lineage, render_card
from server.registry.pull import pull_model
from server.registry.registry import Registry
from server.registry.run_facts import FACTS, facts_in, json_of, origin_of, unpromised
from server.registry.store import open_store
from shared.base.errors import InputError
from shared.ledger.format import Entry, Header, now, seal_line
from shared.privacy.releases import ReleaseKind
from shared.privacy.spent import Method
from shared.protocol.quality import METRICS, NDCG
from shared.registry.manifest import MANIFEST, describe, parse_manifest
from tests.server.conftest import tally_of

MakeRun = Callable[..., Path]


def facts_of_run(run: Path) -> Any:
    return facts_in((run / "model" / FACTS).read_bytes(), "x")


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_it_says_what_was_done(make_run: MakeRun, tiny_bert: str) -> None:
    run = make_run()
    card = (run / "model" / "README.md").read_text()
    (base,) = re.findall("^base_model: (.*)$", card, re.M)
    assert json.loads(base) == tiny_bert  # a JSON text is a YAML one
    assert row(card, "strategy")[1] == "fedavg"
    assert row(card, "platforms")[1] == "shop (40 users declared), video (40 users declared)"
    assert row(card, "rounds")[1] == "10"
    assert "not published" in card


def test_privacy_is_stated_for_each_platform(make_run: MakeRun) -> None:
    tallies = {"shop": tally_of("shop", epsilon=3.5), "video": tally_of("video", epsilon=6.25)}
    privacy = section((make_run(tallies=tallies) / "model" / "README.md").read_text(), "Privacy")
    assert "one user of one platform, add or remove" in privacy
    assert row(privacy, "shop")[:5] == ["shop", "3.5", "1e-05", "8", "1.25"]
    assert row(privacy, "video")[:5] == ["video", "6.25", "1e-05", "8", "1.25"]
    assert row(privacy, "shop")[5].startswith("updates of 10 rounds") and "OFF" not in privacy


def test_privacy_off_is_said_loudly(make_run: MakeRun) -> None:
    off = tally_of("shop", epsilon=math.inf)
    card = (make_run(tallies={"shop": off}) / "model" / "README.md").read_text()
    assert "**Privacy was OFF" in card and "differential privacy for" not in card
    mixed = (make_run("b", tallies={"shop": off, "video": tally_of("video")}) / "model" / "README.md").read_text()
    assert "**Privacy was OFF (epsilon = inf) on shop:" in mixed
    assert row(section(mixed, "Privacy"), "shop")[1] == "inf" and row(section(mixed, "Privacy"), "video")[1] == "3.5"


def test_quality_says_whether_it_is_exact(make_run: MakeRun) -> None:
    tallies = {"shop": tally_of("shop", exact=True), "video": tally_of("video", exact=False), "news": tally_of("news")}
    tallies["news"] = tally_of("news", before=None, federated=None)
    quality = section((make_run(tallies=tallies) / "model" / "README.md").read_text(), "Quality")
    changed = {NDCG: "0.1250 -> 0.3750", "hr@10": "0.2500 -> 0.2500"}
    assert row(quality, "shop") == ["shop", *(changed.get(name, "0.5000 -> 0.5000") for name in METRICS), "exact"]
    assert row(quality, "video")[-1] == "noised"
    assert row(quality, "news") == ["news", *(["? -> ?"] * len(METRICS)), "not released"]


def test_it_names_the_charged_releases_of_a_ledger_that_is_here(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "spring" / "ledger"
    folder.mkdir(parents=True)
    previous, content = seal_line(Header(version=2, platform="shop", budget=8.0, delta=1e-5, created=now()))
    heads = []
    for seq, (kind, steps) in enumerate([("popularity", 1), ("train", 8), ("train", 8), ("train", 8)], start=1):
        entry = Entry(
            seq=seq,
            time=now(),
            run="spring",
            round=seq,
            kind=ReleaseKind(kind),
            noise_multiplier=2.0,
            sample_rate=1.0 if kind == "popularity" else 0.1,
            steps=steps,
            group_size=1,
            epsilon=float(seq),
            delta=1e-5,
            accountant=Method.OPACUS_PRV,
            previous=previous,
        )
        previous, line = seal_line(entry)
        content += line
        heads.append(previous)
    (folder / "shop.jsonl").write_bytes(content)
    # The receipt is of the third charge: the fourth paid for an answer that is not in this model.
    tallies = {"shop": tally_of("shop", ledger=heads[2]), "video": tally_of("video")}
    privacy = section((make_run(tallies=tallies) / "model" / "README.md").read_text(), "Privacy")
    assert row(privacy, "shop")[5:8] == ["1 popularity, 16 train", str(Method.OPACUS_PRV), f"`{heads[2][:16]}`"]
    assert row(privacy, "video")[6] == "named in its ledger"
    # A ledger that does not hold, or is not the one of the receipt, is not quoted.
    (folder / "shop.jsonl").write_bytes(content[:-20])
    assert row(section((make_run(tallies=tallies) / "model" / "README.md").read_text(), "Privacy"), "shop")[6].startswith("named")


def test_lineage(make_run: MakeRun) -> None:
    facts = facts_of_run(make_run())
    first = section(render_card(facts, Lineage(version=1)), "Lineage")
    assert "version 1; the version before: none" in first and "drawn from seed 0" in first
    later = facts.model_copy(update={"start_sha256": "ab" * 32})
    card = render_card(later, Lineage(version=4, previous="cd" * 32, start=2))
    assert "# A cross-platform recommender's encoder: spring\n\nVersion 4." in card
    assert f"the version before: manifest `{'cd' * 32}`" in card and "version 2 of this registry" in card
    assert f"began from the adapter `{'ab' * 32}`" in render_card(later, Lineage(version=4, previous="cd" * 32))


def test_the_facts_come_back(make_run: MakeRun) -> None:
    tallies = {"shop": tally_of("shop", epsilon=math.inf), "video": tally_of("video")}
    facts = facts_of_run(make_run(tallies=tallies, strategy="ffa"))
    assert facts_in(json_of(facts), "x") == facts
    assert facts.platforms[0].epsilon == math.inf
    json.loads(json_of(facts), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    origin = origin_of(facts, "named")
    assert (origin.name, origin.run, origin.strategy, origin.platforms) == ("named", "spring", "ffa", ("shop", "video"))


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": -1},
        {"run": "../x"},
        {"run": "a | b"},
        {"settings": {"rounds": 0}},
        {"settings": {"nonsense": 1}},
        {"platforms": [{"name": "shop"}]},
        {"adapter_sha256": "x"},
        {"format": 99},
        {"more": 1},
        {"created": 5},
    ],
)
def test_facts_that_are_none(make_run: MakeRun, change: dict[str, Any]) -> None:
    values = json.loads((make_run() / "model" / FACTS).read_text())
    with pytest.raises(InputError):
        facts_in(json.dumps({**values, **change}).encode(), "x")


def test_a_platform_cannot_write_into_the_card(make_run: MakeRun) -> None:
    """Numbers and closed names only: what a platform says of itself never becomes Markdown of its own."""
    values = json.loads((make_run() / "model" / FACTS).read_text())
    for key, text in (
        ("name", "x\n# Trust me"),
        ("accountant", "<script>"),
        ("ledger", "`|"),
        ("epsilon", "a | b"),
        ("delta", 2),
    ):
        changed = json.loads(json.dumps(values))
        changed["platforms"][0][key] = text
        with pytest.raises(InputError):
            facts_in(json.dumps(changed).encode(), "x")


class TestRunsThatPromiseNothing:
    """A seed, or an exact figure, and epsilon is a number without a meaning."""

    SIMULATED: ClassVar[dict[str, dict[str, Any]]] = {
        "a simulation": {"simulation": True, "privacy": {"generator": "secure"}},
        "a seed": {"simulation": True, "privacy": {"generator": "seeded"}},
        "exact": {"tallies": {"shop": tally_of("shop", exact=True), "video": tally_of("video")}},
        "exact before": {"tallies": {"shop": tally_of("shop", federated=None, before=tally_of("shop", exact=True).before)}},
    }

    @pytest.mark.parametrize("how", SIMULATED)
    def test_the_card_says_so_in_its_first_line(self, make_run: MakeRun, how: str) -> None:
        run = make_run(**self.SIMULATED[how])
        card = (run / "model" / "README.md").read_text()
        body = card.split("---\n")[2]
        assert body.startswith("**NOTHING IS PROMISED to the users behind this model: ")
        assert how.split()[-1 if how.startswith("a ") else 0] in body.splitlines()[0]
        assert "differential privacy for" not in card and "It holds against" not in card
        assert "Nothing is promised, because" in section(card, "Privacy")

    @pytest.mark.parametrize("how", SIMULATED)
    def test_it_is_not_signed_unless_one_says_so(
        self, make_run: MakeRun, how: str, keys: Callable[[str], tuple[Any, Path]], tmp_path: Path
    ) -> None:
        signer, run = keys("coordinator")[0], make_run(**self.SIMULATED[how])
        registry = Registry(open_store(str(tmp_path / "r")), [signer.public])
        for source in (run, run / "model"):
            with pytest.raises(InputError, match="promises nothing") as caught:
                registry.publish(source, signer)
            assert "--as-simulation" in caught.value.do
        assert registry.newest() is None and not (tmp_path / "r" / "models").exists()
        registry.publish(run, signer, as_simulation=True)
        pulled = pull_model(str(tmp_path / "r"), tmp_path / "out", trusted=[signer.public])
        assert pulled.unpromised
        assert (tmp_path / "out" / "README.md").read_text().split("---\n")[2].startswith("**NOTHING IS PROMISED")

    def test_a_deployed_run_is_no_simulation(
        self, make_run: MakeRun, keys: Callable[[str], tuple[Any, Path]], tmp_path: Path
    ) -> None:
        signer, run = keys("coordinator")[0], make_run()
        assert unpromised(facts_of_run(run)) == []
        registry = Registry(open_store(str(tmp_path / "r")), [signer.public])
        with pytest.raises(InputError, match="deployed run"):
            registry.publish(run, signer, as_simulation=True)
        registry.publish(run, signer)
        pulled = pull_model(str(tmp_path / "r"), tmp_path / "out", trusted=[signer.public])
        assert pulled.unpromised == () and "NOTHING IS PROMISED" not in (tmp_path / "out" / "README.md").read_text()

    def test_facts_that_cannot_be_read_promise_nothing(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        path = run / "model" / FACTS
        path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
        manifest = parse_manifest((run / "model" / MANIFEST).read_bytes(), "")
        (run / "model" / MANIFEST).write_bytes(describe(run / "model", manifest.origin).content)
        assert pull_model(str(run), tmp_path / "out", unsigned=True).unpromised
        path.unlink()
        (run / "model" / MANIFEST).write_bytes(describe(run / "model", manifest.origin).content)
        assert pull_model(str(run), tmp_path / "other", unsigned=True).unpromised


def test_nothing_else_signs_a_manifest() -> None:
    """Every signed card passes the registry's question whether the run promises anything."""
    root = Path(__file__).parents[3]
    places = [
        path.relative_to(root).as_posix()
        for package in ("client", "server", "shared", "strategies", "simulations")
        for path in (root / package).rglob("*.py")
        if re.search(r"\.signed\(signer|Signer\(|load_signer\(", path.read_text())
    ]
    assert sorted(places) == [
        "server/cli/local.py",
        "server/deployment/resumable_run.py",
        "server/registry/registry.py",
        "shared/registry/signing.py",
    ]
    assert (root / "server" / "registry" / "registry.py").read_text().count(".signed(signer)") == 1
