"""What a source adds: it is taken away and nothing else, the sign is right, and what was measured is not measured again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from client.config.platform_file import PlatformFile, load
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from simulations.benchmarks.sources import ablation
from simulations.benchmarks.sources.__main__ import main
from simulations.benchmarks.sources.ablation import EVERYTHING, OPERATOR, SERVING, AblationCell
from simulations.benchmarks.sources.contributions import (
    ALL,
    HARMS,
    HELPS,
    NEITHER,
    UNREAD,
    contributions,
    operator_differences,
    operator_verdict,
    shown,
)
from simulations.benchmarks.sources.removal import REMOVALS, removed
from simulations.cell_files import write_cell
from simulations.worlds.generated import PLATFORMS, write_world

Platform = tuple[PlatformFile, Tables]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), scale=0.1).folder


@pytest.fixture(scope="module")
def platforms(world: Path) -> dict[str, Platform]:
    files = {name: load(world / f"{name}.toml") for name in PLATFORMS}
    found = {name: (file, read_tables(file)) for name, file in files.items()}
    file, tables = found["video"]
    return {**found, "video": (file, replace(tables, item_elsewhere={"graph": ["genre: noir"] * tables.items}))}


def test_what_is_there_is_removed_and_what_is_not_is_said(platforms: dict[str, Platform]) -> None:
    found = {name: {source for source in REMOVALS if removed(*one, source) is not None} for name, one in platforms.items()}
    assert found == {
        "shop": {"attributes", "texts", "vectors", "profiles", "reviews", "event weights"},
        "corner": {"attributes", "texts"},
        "video": {"attributes", "texts", "knowledge graph", "known elsewhere", "friends"},
        "news": {"attributes", "texts", "profiles"},
    }


@pytest.mark.parametrize("source", REMOVALS)
def test_nothing_else_changes(platforms: dict[str, Platform], source: str) -> None:
    for file, tables in platforms.values():
        less = removed(file, tables, source)
        if less is None:
            continue
        parts = {
            "attributes": {"item_text", "item_vectors"},
            "texts": {"item_text", "item_titles", "item_vectors"},
            "knowledge graph": {"item_text", "item_elsewhere"},
            "known elsewhere": {"item_elsewhere"},
            "vectors": {"item_vectors", "user_vectors"},
            "profiles": {"user_text", "user_vectors"},
            "reviews": {"notes", "item_text"},
            "friends": {"ties"},
            "event weights": {"interactions"},
        }[source]
        changed = {name for name in vars(tables) if name != "interactions" and getattr(tables, name) != getattr(less, name)}
        changed |= {"interactions"} if less.interactions is not tables.interactions else set()
        assert changed and changed <= parts
        assert (less.interactions.positive == tables.interactions.positive).all()
    if source == "event weights":
        less = removed(*platforms["shop"], source)
        assert less is not None and set(np.unique(less.interactions.weight[less.interactions.positive])) == {1.0}


def test_each_removal_takes_what_it_says(platforms: dict[str, Platform]) -> None:
    shop, video = platforms["shop"], platforms["video"]
    titles = removed(*shop, "attributes")
    assert titles is not None and list(titles.item_text["products"]) == list(shop[1].item_titles)
    silent = removed(*shop, "texts")
    assert silent is not None and not any(silent.item_text["products"]) and not any(silent.item_titles)
    blind = removed(*shop, "vectors")
    assert blind is not None and "images" not in blind.item_vectors and "products" in blind.item_vectors
    plain = removed(*video, "knowledge graph")
    assert plain is not None and set(plain.item_text) == {"films"}


def measured(folder: Path, cell: AblationCell, **models: np.ndarray) -> None:
    write_cell(folder / f"{cell.name}.npz", asdict(cell), {"shop": models})


def test_signs_and_verdicts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = random.random(400) / 2
    measured(tmp_path, AblationCell(world="w", seed=0, source=EVERYTHING, when=SERVING), own=whole, fused=whole)
    for source, without in {
        "texts": whole - 0.1,
        "friends": whole + 0.1,
        "reviews": whole + random.normal(0, 0.3, 400),
        "profiles": whole,
    }.items():
        measured(tmp_path, AblationCell(world="w", seed=0, source=source, when=SERVING), own=without, fused=without)
    found = {(row.source, row.model): row for row in contributions(tmp_path)}
    assert {source: found[source, "own"].verdict for source in ("texts", "friends", "reviews", "profiles")} == {
        "texts": HELPS, "friends": HARMS, "reviews": NEITHER, "profiles": UNREAD,
    }  # fmt: skip
    assert found["texts", "own"].adds == pytest.approx(0.1) and found["friends", "own"].adds == pytest.approx(-0.1)
    # A fused model that is the own one is not shown again, nor is every model that a source changes nothing of.
    assert sorted((row.source, row.model) for row in shown(list(found.values()))) == [
        ("friends", "own"), ("profiles", "all"), ("reviews", "own"), ("texts", "own"),
    ]  # fmt: skip


def test_the_operator_that_wins_over_all_worlds_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for world, better in (("a", 0.2), ("b", -0.05)):
        usual = random.random(300) / 2
        measured(tmp_path, AblationCell(world=world, seed=0, source="attention", when=OPERATOR), text=usual)
        measured(tmp_path, AblationCell(world=world, seed=0, source="gated", when=OPERATOR), text=usual + better)
        worse = usual + random.normal(0, 0.2, 300)
        measured(tmp_path, AblationCell(world=world, seed=0, source="vote", when=OPERATOR), text=worse)
    rows = operator_differences(tmp_path, default="attention")
    (overall,) = (row for row in rows if (row.platform, row.source) == (ALL, "gated"))
    assert overall.adds == pytest.approx(0.075) and overall.users == 600
    assert operator_verdict(rows, default="attention").startswith("gated is better than attention")
    none = [row for row in rows if row.source == "vote"]
    assert operator_verdict(none, default="attention").startswith("no operator is better")


def test_a_world_from_end_to_end_and_nothing_twice(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(world), "--out", str(tmp_path), "--sources", "texts", "profiles", "--json"]
    main(words)
    found = json.loads(capsys.readouterr().out)["sources"]
    by = {(row["platform"], row["source"], row["model"]): row for row in found}
    texts = {(name, "texts") for name in (*PLATFORMS, ALL)}
    profiles = {(name, "profiles") for name in ("shop", "news", ALL)}
    assert {(platform, source) for platform, source, _ in by} == texts | profiles
    together = [row for row in found if row["source"] == "texts" and row["model"] == "own"]
    assert by[ALL, "texts", "own"]["users"] == sum(row["users"] for row in together if row["platform"] != ALL)
    assert {model for platform, _, model in by if platform == "corner"} == {"own", "global", "fused"}
    assert {model for platform, _, model in by if platform == "news"} == {"own", "fused"}  # nobody has its articles
    assert by["shop", "profiles", "own"]["verdict"] == UNREAD
    assert by["corner", "texts", "global"]["adds"] != 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ablation, "_measured", never)
    main(words)
    assert json.loads(capsys.readouterr().out)["sources"] == found
    with pytest.raises(AssertionError, match="measured again"):
        main([*words[:-1], "--seeds", "1"])


@pytest.mark.slow
def test_training_without_a_source_and_by_two_operators(
    tmp_path: Path, world: Path, tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("model.layers=1", "model.rank=2", "model.item_tokens=12", "model.user_tokens=24", "training.views=1")
    settings = (f"model.backbone={json.dumps(tiny_bert)}", "privacy.accept_noise=true", "training.local_steps=1", *small)
    words = [word for setting in settings for word in ("--set", setting)]
    asked = ["--sources", "profiles", "--rounds", "1", "--fusion", "attention", "vote"]
    main([str(world), "--out", str(tmp_path), *asked, *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    by = {(row["platform"], row["when"], row["model"]): row for row in found["sources"]}
    assert {when for _, when, _ in by} == {"serving", "training and serving"}
    assert {model for platform, _, model in by if platform == "shop"} >= {"own", "global", "text"}
    # Profiles are read by the text model alone.
    assert by["shop", "serving", "own"]["verdict"] == UNREAD
    assert {(row["platform"], row["source"]) for row in found["operators"]} == {
        ("shop", "vote"), ("corner", "vote"), ("video", "vote"), (ALL, "vote"),
    }  # fmt: skip
