"""The tables of edge cases in the docstrings of the public functions, which docs/api.md shows: every row is checked here."""

from __future__ import annotations

import math
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config.platform_file import PlatformFile, load
from client.examples.split import leave_one_out
from client.privacy.bounded_sum import BoundedSum, nothing, of_contributions
from client.privacy.ledger_writer import LedgerWriter
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import SeededNoise
from client.recommender.fused_model import fit_fused_model
from client.recommender.lists.recommended import ListRules
from client.recommender.model_comparison import bootstrap_interval, compare_models
from client.recommender.own_evaluation import evaluate_platform
from client.recommender.own_model import fit_own
from client.recommender.serving.recommend import recommend_items
from client.recommender.serving.recommend_all import recommend_everybody
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from server.registry.pull import pull_model
from server.run.federation import run_federation
from shared.base.errors import FedfuseError, InputError, PrivacyError, StorageError
from shared.base.settings import Settings, build, flatten
from shared.ledger.audit import AuditVerdict, audit_ledgers, audit_run
from shared.ledger.evidence import LedgerEvidence
from shared.ledger.reading import read_ledger
from shared.ledger.what_if import epsilon_curve
from shared.model.adapter import initial
from shared.model.backbone import load_backbone
from shared.model.peft_export import export, load_published
from shared.preferences.denoising import preference_factors
from shared.preferences.shared_preferences import SharedPreferences, load_preferences, save_preferences
from shared.privacy.calibration import noise_multiplier
from shared.privacy.plan import NoisyPlan, make_plan, signal_to_noise
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity
from simulations.in_process_grid import InProcessGrid
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import open_world
from strategies.composition import named
from tests.support.edge_tables import refused, table
from tests.support.papers import ROOT

Write = Callable[..., Path]
Make = Callable[..., Settings]
TRAINED = Release(kind=ReleaseKind.TRAIN, noise_multiplier=4.0, sample_rate=0.1, steps=5)
HEADER = "user,item,time\n"


def test_every_public_function_has_a_table() -> None:
    """And a test here that checks it."""
    listed = [name for names in runpy.run_path(str(ROOT / "docs" / "reference.py"))["API"].values() for name in names]
    tests = set(re.findall(r"with table\((\w+)\)", Path(__file__).read_text()))
    assert len(listed) > 29 and {name.rpartition(".")[2] for name in listed} == tests


@pytest.fixture
def file(write_platform: Write) -> PlatformFile:
    """A platform of thirty users and twelve items."""
    return load(write_platform())


@pytest.fixture
def tables_of(write_platform: Write) -> Callable[[str], Tables]:
    """Tables of these interactions, `user,item,time` lines, among twelve items."""

    def read(events: str) -> Tables:
        return read_tables(load(write_platform(files={"shop-events.csv": HEADER + events})), lenient=True)

    return read


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Path]:
    """A ledger with so many charges."""

    def write(charges: int) -> Path:
        path = tmp_path / "run" / "ledger" / "shop.jsonl"
        shutil.rmtree(path.parent, ignore_errors=True)
        with LedgerWriter.open(path, platform="shop", budget=8.0, delta=1e-5, identity=Identity(b"i" * 32)) as writer:
            for at in range(charges):
                writer.charge(TRAINED, run="spring", round=at, question=f"{at:064x}")
        return path

    return write


def test_settings() -> None:
    with table(build) as row:
        row("`{}`", "every setting's default")
        assert flatten(build({}, where="x")) == flatten(Settings())
        row("an unknown key", "`InputError`, with the key that was probably meant")
        refused(InputError, build, {"training": {"lr": 1}}, where="x", words="did you mean training.learning_rate?")
        row("a bound itself, as `training.clip` 1000", "taken")
        assert build({"training": {"clip": 1000}}, where="x").training.clip == 1000
        row("beyond a bound, NaN, infinity", "`InputError`, with the key")
        for value in (1001, 0, math.nan, math.inf):
            refused(InputError, build, {"training": {"clip": value}}, where="x", words="training.clip")
        row('strategy "preferences" alone', "0 rounds, 1,024 items, distributed noise")
        made = build({"strategy": "preferences"}, where="x")
        assert (made.rounds, made.preferences.items, made.privacy.noise) == (0, 1024, "distributed")
        row("0 rounds, and a strategy that trains", "`InputError`")
        refused(InputError, build, {"rounds": 0}, where="x")


def test_platform_files(write_platform: Write, tmp_path: Path) -> None:
    with table(load) as row:
        row("no such file, or an empty one", "`InputError`")
        refused(InputError, load, tmp_path / "no.toml", words="cannot be opened")
        (tmp_path / "empty.toml").touch()
        refused(InputError, load, tmp_path / "empty.toml", words="name")
        row("0 users, a delta of 0 or 1, an epsilon of NaN", "`InputError`, with the key")
        refused(InputError, load, write_platform(declared=0), words="users")
        for word, lines in (
            ("delta", "epsilon = 8\ndelta = 0"),
            ("delta", "epsilon = 8\ndelta = 1"),
            ("epsilon", "epsilon = nan\ndelta = 1e-5"),
        ):
            refused(InputError, load, write_platform(privacy=lines), words=word)
        row("a byte order mark, CRLF at the ends of lines", "read as without them")
        path = write_platform()
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert load(path).name == "shop"
        row("a source whose file is not there", "taken: `read_tables` refuses it")
        (path.parent / "shop-events.csv").unlink()
        refused(InputError, read_tables, load(path), words="shop-events.csv")


def test_tables(write_platform: Write, tables_of: Callable[[str], Tables]) -> None:
    with table(read_tables) as row:
        row("a source without a row", "`InputError`; with `lenient`, nobody")
        refused(InputError, read_tables, load(write_platform(files={"shop-events.csv": HEADER})))
        assert tables_of("").users == 0
        row("an item that the catalogue does not list", "the row is left out, and counted in the report")
        tables = tables_of("a,elsewhere,1\nb,i1,2\n")
        (report,) = (one for one in tables.reports if one.kind == "interactions")
        assert list(tables.user_ids) == ["b"] and report.read - report.kept == 1
        row("a row without a user or an item", "left out, and counted")
        tables = tables_of("a,,1\n,i1,1\nb,i1,2\n")
        (report,) = (one for one in tables.reports if one.kind == "interactions")
        assert list(tables.user_ids) == ["b"] and report.read - report.kept == 2
        row("the ids `7` and `7.0`", "one user, unless `[ids]` says otherwise")
        assert list(tables_of("7,i1,1\n7.0,i2,2\n").user_ids) == ["7"]
        row("the same row twice", "counts once")
        assert len(tables_of("a,i1,1\na,i1,1\n").interactions.item) == 1


def test_splits(tables_of: Callable[[str], Tables]) -> None:
    with table(leave_one_out) as row:
        row("no user", "an empty split")
        assert leave_one_out(tables_of(""), seed=0).users == 0
        row("a user with one liked item", "it trains, and `held` is -1")
        split = leave_one_out(tables_of("a,i1,1\n"), seed=0)
        assert split.held.tolist() == [-1] and len(split.train[0]) == 1
        row("a user with two", "the older one trains, the newer one is held out")
        tables = tables_of("a,i1,2\na,i2,1\n")
        split = leave_one_out(tables, seed=0)
        assert (tables.item_ids[split.train[0][0]], tables.item_ids[split.held[0]]) == ("i2", "i1")
        row("a user who has met every item", "all that is liked trains, and `held` is -1")
        split = leave_one_out(tables_of("".join(f"a,{item},{at}\n" for at, item in enumerate(tables.item_ids))), seed=0)
        assert split.held.tolist() == [-1] and len(split.train[0]) == tables.items


def test_worlds(write_platform: Write, tmp_path: Path) -> None:
    with table(open_world) as row:
        row("no such folder, or one without a `.toml`", "`InputError`")
        refused(InputError, open_world, tmp_path / "no", words="no such folder")
        refused(InputError, open_world, tmp_path, words="no platform file")
        row("other files, subfolders", "left alone")
        write_platform(folder=tmp_path / "world" / "below", name="below")
        folder = write_platform().parent
        assert [path.name for path in open_world(folder).platforms] == ["shop.toml"]
        row("two platforms of one name", "`InputError`, with both files")
        shutil.copy(folder / "shop.toml", folder / "twin.toml")
        refused(InputError, open_world, folder, words="shop.toml and twin.toml")
        row("a `.toml` that is none, or has no `name`", "`InputError`, with the file")
        for text in ("=", "x = 1", 'name = ""'):
            (folder / "twin.toml").write_text(text)
            refused(InputError, open_world, folder, words="twin.toml")


def test_simulations(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    untrained = tiny_settings(strategy="preferences", rounds=0, preferences={"items": 20})
    with table(run_simulation) as row:
        row("a world of one platform", "its own model alone: nothing is in common, and nothing is released")
        world = open_world(write_platform().parent)
        found = run_simulation(Simulation(world=world, settings=untrained, out=tmp_path / "one"))["platforms"]["shop"]
        assert found["epsilon"] == 0 and found["own"] and found["fused"] is None
        row("an `out` that holds a run, without `resume`", "`InputError`")
        refused(InputError, run_simulation, Simulation(world=world, settings=untrained, out=tmp_path / "one"))
        row("nobody likes anything", "`InputError`")
        write_platform(files={"shop-events.csv": HEADER})
        refused(InputError, run_simulation, Simulation(world=world, settings=untrained, out=tmp_path / "none"))
        row("a budget that does not carry the plan", "`PrivacyError`")
        write_platform()
        scarce = tiny_settings(privacy={"epsilon": 0.01})
        refused(PrivacyError, run_simulation, Simulation(world=world, settings=scarce, out=tmp_path / "scarce"))


def test_federations(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings()

    def federate(**how: Any) -> Any:
        with InProcessGrid(app=None, nodes={}) as grid:  # type: ignore[arg-type]
            return run_federation(grid=grid, settings=settings, run="spring", out=tmp_path / "run", wait=0.1, **how)

    with table(run_federation) as row:
        row("nobody comes within `wait`", "`FedfuseError`")
        refused(FedfuseError, federate)
        row("`resume` without a checkpoint", "`InputError`")
        refused(InputError, federate, resume=True)
        row("an `out` that holds a model, without `resume`", "`InputError`, before anybody is asked")
        (tmp_path / "run" / "model").mkdir(parents=True, exist_ok=True)
        refused(InputError, federate, words="holds a run already")


def test_strategies() -> None:
    with table(named) as row:
        row('`"ffa+median"`, `"median + ffa"`', "the same parts, in any order")
        assert named("ffa+median").cards == named("median + ffa").cards
        row('`"median"`', "`fedavg` with it, as for any part without updates of its own")
        assert [card.name for card in named("median").cards] == ["fedavg", "median"]
        row('`""`, `"FFA"`', "`InputError`, with all names")
        for name in ("", "FFA"):
            refused(InputError, named, name, words="choose from exact, fedadam")
        row('`"ffa+rolora"`', "`InputError`: one of each role at most")
        refused(InputError, named, "ffa+rolora", words="both for updates")
        row('`"flora+median"`, `"preferences+median"`', "`InputError`: they do not go together")
        refused(InputError, named, "flora+median")
        refused(InputError, named, "preferences+median")


def test_own_models(tables_of: Callable[[str], Tables]) -> None:
    def scores(tables: Tables) -> np.ndarray:
        return fit_own(tables, leave_one_out(tables, seed=0), seed=0).model.scores(np.arange(tables.users))

    with table(fit_own) as row:
        row("nobody", "a model of nobody: scores of shape (0, items)")
        assert scores(tables_of("")).shape == (0, 12)
        row("nobody with two liked items", "nothing is held out to choose by; every score is finite")
        assert np.isfinite(scores(tables_of("a,i1,1\nb,i2,1\n"))).all()


def test_fused_models(tables_of: Callable[[str], Tables], file: PlatformFile) -> None:
    tables = read_tables(file)
    split = leave_one_out(tables, seed=0)
    with table(fit_fused_model) as row:
        row("nothing released, or factors of zeros", "the fused model is the own one, the same object")
        for factors in (None, np.zeros((2, tables.items), np.float32)):
            own, fused = fit_fused_model(tables, split, factors=factors, popularity=None, seed=0)
            assert fused is own
        row("popularity NaN", "an item that is not released: it counts as the platform alone says")
        popularity = np.full(tables.items, np.nan, np.float32)
        own, fused = fit_fused_model(tables, split, factors=None, popularity=popularity, seed=0)
        assert np.array_equal(own.scores(np.arange(3)), fused.scores(np.arange(3)))


def test_evaluations(file: PlatformFile, write_platform: Write, tmp_path: Path) -> None:
    with table(evaluate_platform) as row:
        row("no `model`", "the own model alone")
        found = evaluate_platform(file, model=None, seed=0, cache=tmp_path)
        some = evaluate_platform(file, model=None, seed=0, cache=tmp_path, most_users=2)
        assert found.chosen == "own" and set(found.comparison.segments["all"].quality) == {"own"}
        row("a length of 0", "`InputError`")
        refused(InputError, evaluate_platform, file, model=None, seed=0, cache=tmp_path, lengths=[0])
        row("a `by` that no source has", "`InputError`, with the columns that there are")
        refused(InputError, evaluate_platform, file, model=None, seed=0, cache=tmp_path, lengths=[5], by=["events.colour"])
        row("nobody with two liked items", "`InputError`")
        one = load(write_platform(files={"shop-events.csv": HEADER + "a,i1,1\nb,i2,1\n"}))
        refused(InputError, evaluate_platform, one, model=None, seed=0, cache=tmp_path, words="evaluate later")
        row("more users with a held-out item than `most_users`", "models fitted on all of them, and the figures of those drawn")
        assert some.settings == found.settings
        assert (len(some.user_ids), some.held_out_users) == (2, len(found.user_ids)) and len(found.user_ids) > 2


def test_comparisons(file: PlatformFile, tables_of: Callable[[str], Tables]) -> None:
    tables = read_tables(file)
    split = leave_one_out(tables, seed=0)
    own = fit_own(tables, split, seed=0).model
    with table(compare_models) as row:
        row("own alone", "no gain: None")
        assert compare_models({"own": own}, split, seed=0).segments["all"].gain is None
        row("fused is own", "a gain of 0, from 0 to 0")
        gain = compare_models({"own": own, "fused": own}, split, seed=0).segments["all"].gain
        assert gain is not None and (gain.mean, gain.low, gain.high) == (0, 0, 0)
        row("nobody held out; a segment of nobody", "0 users, no quality, no gain")
        nobody = leave_one_out(tables_of("a,i1,1\n"), seed=0)
        segment = compare_models({"own": own, "fused": own}, nobody, seed=0).segments["all"]
        assert (segment.users, segment.quality, segment.gain) == (0, {}, None)


def test_intervals() -> None:
    with table(bootstrap_interval) as row:
        row("one user", "`mean`, `low` and `high` are equal")
        found = bootstrap_interval(np.array([0.3]), seed=0)
        assert found.mean == found.low == found.high == 0.3
        row("no user", "`InputError`")
        refused(InputError, bootstrap_interval, np.zeros(0), seed=0)
        row("NaN for a user", "NaN, all three")
        found = bootstrap_interval(np.array([0.3, np.nan]), seed=0)
        assert all(map(math.isnan, (found.mean, found.low, found.high)))


def test_recommendations(file: PlatformFile, tmp_path: Path) -> None:
    said: list[str] = []

    def recommend(**how: Any) -> list[str]:
        return [one.item for one in recommend_items(file, cache=tmp_path, say=said.append, **how)]

    tables = read_tables(file)
    with table(recommend_items) as row:
        row("an unknown user", "what is popular, and `say` is called with that")
        assert len(recommend(user="stranger")) == 10 and "popular items are shown" in said[-1]
        row("both a user and liked items, or neither", "`InputError`")
        refused(InputError, recommend, user="u0", like=["i1"])
        refused(InputError, recommend)
        row("an unknown item in `like`", "`InputError`, with one that is known")
        refused(InputError, recommend, like=["nothing"], words="name one such as")
        row("more items than there are left", "those that there are")
        known = len(leave_one_out(tables, seed=0).known[0]) + 1
        assert len(recommend(user=tables.user_ids[0], rules=ListRules(top=100))) == tables.items - known
        row("a list of 0", "`InputError`, from `ListRules`")
        refused(InputError, ListRules, top=0)
        row("`released_alone` without a model", "`InputError`")
        refused(InputError, recommend, user="u0", released_alone=True)


def test_recommendations_for_everybody(file: PlatformFile, write_platform: Write, tmp_path: Path) -> None:
    import polars as pl

    out, cache = tmp_path / "lists.parquet", tmp_path / "cache"
    with table(recommend_everybody) as row:
        row("`top` 0, or another ending than `.parquet` and `.csv`", "`InputError`")
        refused(InputError, recommend_everybody, file, out=out, top=0, cache=cache)
        refused(InputError, recommend_everybody, file, out=tmp_path / "lists.txt", cache=cache)
        row("a `top` beyond what a user has not had", "as many rows of that user as there are items left")
        assert recommend_everybody(file, out=out, top=100, cache=cache) == 30
        rows = pl.read_parquet(out).filter(pl.col("user") == "u0")
        assert 0 < len(rows) < 12 and rows["rank"].to_list() == list(range(1, len(rows) + 1))


def test_backbones(tiny_bert: str, tmp_path: Path) -> None:
    with table(load_backbone) as row:
        row("an unknown name, an empty folder", "`InputError`, with what to give")
        refused(InputError, load_backbone, "no-such-bert")
        refused(InputError, load_backbone, str(tmp_path))
        row("the same name again", "the same object")
        assert load_backbone(tiny_bert) is load_backbone(tiny_bert)
        row("a weight that is NaN", "`InputError`, with the tensor")
        from safetensors.numpy import load_file, save_file

        spoilt = Path(shutil.copytree(tiny_bert, tmp_path / "spoilt"))
        weights = load_file(spoilt / "model.safetensors")
        name = next(name for name in weights if name.endswith("query.weight"))
        weights[name][0, 0] = np.nan
        save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
        refused(InputError, load_backbone, str(spoilt), words="not finite")


def test_exported_adapters(tiny_settings: Make, tmp_path: Path) -> None:
    settings, folder = tiny_settings(), tmp_path / "model"
    with table(export) as row:
        row("a folder that is not there", "made")
        export(initial(settings), settings, folder)
        assert {"adapter_model.safetensors", "head.safetensors"} <= {path.name for path in folder.iterdir()}
        row("one that holds an adapter", "its files are replaced, each whole")
        before = load_published(folder).adapter
        export({name: value + 1 for name, value in initial(settings).items()}, settings, folder)
        after = load_published(folder).adapter
        assert all(np.array_equal(before[name] + 1, after[name]) for name in before)
    with table(load_published) as row:
        row("an empty folder", "`InputError`, with the file that is missing")
        refused(InputError, load_published, tmp_path, words="no fedfuse.json")
        row("a NaN among the numbers", "`InputError`")
        spoilt = {**initial(settings)}
        name = next(iter(spoilt))
        spoilt[name] = np.full_like(spoilt[name], np.nan)
        export(spoilt, settings, folder)
        refused(InputError, load_published, folder)
        row("half a file", "`InputError`")
        export(initial(settings), settings, folder)
        half = folder / "adapter_model.safetensors"
        half.write_bytes(half.read_bytes()[:-10])
        refused(InputError, load_published, folder)


def test_published_preferences(tmp_path: Path) -> None:
    path = tmp_path / "preferences.safetensors"
    none = np.zeros(0, np.float32)
    empty = SharedPreferences(items=none.astype(np.uint64), factors=none.reshape(0, 0), popularity=none, noise=1.0, users=3)
    with table(load_preferences) as row:
        row("no such file", "`InputError`")
        refused(InputError, load_preferences, path, words="there are no shared preferences")
        row("an empty file, or half of one", "`InputError`")
        save_preferences(path, empty)
        for content in (b"", path.read_bytes()[:-1]):
            (tmp_path / "half").write_bytes(content)
            refused(InputError, load_preferences, tmp_path / "half", words="damaged")
        row("no item", "read: factors of shape (0, 0)")
        assert load_preferences(path).factors.shape == (0, 0)


def test_factors() -> None:
    zeros = np.zeros((3, 3))
    with table(preference_factors) as row:
        row("no item", "shape (0, 0)")
        assert preference_factors(np.zeros((0, 0)), noise=1.0).shape == (0, 0)
        row("zeros; noise above every eigenvalue; `most` 0", "no factor, shape (0, items)")
        assert preference_factors(zeros, noise=0.0).shape == (0, 3)
        assert preference_factors(np.eye(3), noise=10.0).shape == (0, 3)
        assert preference_factors(np.eye(3), noise=0.0, most=0).shape == (0, 3)
        row("a negative eigenvalue", "dropped")
        assert np.allclose(preference_factors(np.diag([4.0, -4.0]), noise=0.0), [[2, 0]])
        row("NaN or infinity", "`InputError`")
        for value in (np.nan, np.inf):
            refused(InputError, preference_factors, np.diag([1.0, value]), noise=0.0)


def test_pulling(tmp_path: Path, write_platform: Write, tiny_settings: Make) -> None:
    from shared.registry.signing import load_trusted, make_key_pair

    make_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    key, out = load_trusted(tmp_path / "a.pub"), tmp_path / "out"
    (tmp_path / "nothing").mkdir()
    write_platform()
    write_platform(name="video", seed=1)
    untrained = tiny_settings(strategy="preferences", rounds=0, preferences={"items": 20})
    run_simulation(Simulation(world=open_world(tmp_path / "world"), settings=untrained, out=tmp_path / "run"))
    source = str(tmp_path / "run" / "model")
    with table(pull_model) as row:
        row("neither a key nor `unsigned`, or both", "`InputError`")
        refused(InputError, pull_model, source, out)
        refused(InputError, pull_model, source, out, trusted=[key], unsigned=True)
        row("a `source` without a model", "`InputError`")
        refused(InputError, pull_model, str(tmp_path / "nothing"), out, unsigned=True)
        row("more than `max_bytes`", "`InputError`, before anything is fetched")
        refused(InputError, pull_model, source, out, unsigned=True, max_bytes=0)
        assert not out.exists()
        row("an `out` that holds something else", "`InputError`")
        refused(InputError, pull_model, source, tmp_path / "world", unsigned=True)
        row("the version that is there already", "`fresh` is False")
        assert pull_model(source, out, unsigned=True).fresh and not pull_model(source, out, unsigned=True).fresh


def test_bounded_sums() -> None:
    with table(BoundedSum) as row:
        row("no part", "dimension 0")
        assert BoundedSum(parts={}, bound=1.0).dimension == 0
        row("no user", "zeros")
        assert not nothing({"a": (2,)}, bound=1.0).vector().any()
        row("a user's vector that is too long", "shortened to the bound")
        assert of_contributions(np.array([[3.0, 4.0]])).vector().tolist() == pytest.approx([0.6, 0.8])
        row("a user's vector with NaN or infinity", "counts as zero")
        assert of_contributions(np.array([[np.nan, 1.0], [np.inf, 0.0], [0.5, 0.0]])).vector().tolist() == [0.5, 0]
        row("a bound of 0 or NaN; a part that is not float64", "`PrivacyError`")
        for bound in (0.0, math.nan):
            refused(PrivacyError, BoundedSum, parts={}, bound=bound)
        refused(PrivacyError, BoundedSum, parts={"a": torch.zeros(2)}, bound=1.0)


def test_mechanisms() -> None:
    def made(**over: Any) -> Mechanism:
        return Mechanism(**{"users": 10, "sample_rate": 0.5, "clip": 1.0, "noise_multiplier": 1.0, "dimension": 2, **over})

    with table(Mechanism) as row:
        row("0 users, a rate of 0 or above 1, dimension 0, NaN", "`PrivacyError`")
        for over in (
            {"users": 0},
            {"sample_rate": 0.0},
            {"sample_rate": 1.1},
            {"dimension": 0},
            {"clip": math.nan},
            {"noise_multiplier": math.nan},
        ):
            refused(PrivacyError, made, **over)
        row("noise and an infinite `clip`", "`PrivacyError`")
        refused(PrivacyError, made, clip=math.inf)
        row("a noise multiplier of 0", "not private: the exact mean is released")
        exact = made(noise_multiplier=0.0)
        assert not exact.private
        total = BoundedSum(parts={"a": torch.tensor([5.0, 0.0], dtype=torch.float64)}, bound=1.0)
        assert exact.privatise(total, SeededNoise(0))[0]["a"].tolist() == [1.0, 0.0]
        row("nobody in the sample", "released like any other, with noise")
        assert not len(made().sample(0, SeededNoise(0)))
        assert made().privatise(nothing({"a": (2,)}, bound=1.0), SeededNoise(0))[0]["a"].any()
        row("a gradient that is not finite", "weight 0: it is that user's alone")
        assert made().weights(torch.tensor([4.0, math.nan, math.inf])).tolist() == [0.5, 0.0, 0.0]
        row("a sum of another bound or dimension", "`PrivacyError`")
        refused(PrivacyError, made().privatise, nothing({"a": (2,)}, bound=2.0), SeededNoise(0))
        refused(PrivacyError, made().privatise, nothing({"a": (3,)}, bound=1.0), SeededNoise(0))


def release(**over: Any) -> Release:
    return Release(**{"kind": ReleaseKind.TRAIN, "noise_multiplier": 1.0, **over})


def test_releases() -> None:
    with table(Release) as row:
        row("a noise multiplier of 0", "`exact`; its epsilon is infinite")
        assert release(noise_multiplier=0).exact
        row("one that is negative, NaN or infinite", "`InputError`")
        for value in (-1, math.nan, math.inf):
            refused(InputError, release, noise_multiplier=value)
        row("a sample rate of 1", "everybody, in each step")
        assert release(sample_rate=1).sample_rate == 1.0
        row("a sample rate of 0, NaN or above 1", "`InputError`")
        for value in (0, math.nan, 1.1):
            refused(InputError, release, sample_rate=value)
        row("0 steps, a group of 0, True for a number", "`InputError`")
        for over in ({"steps": 0}, {"group_size": 0}, {"steps": True}):
            refused(InputError, release, **over)


def test_calibration() -> None:
    def least(**over: Any) -> float:
        return noise_multiplier(**{"budget": 1.0, "delta": 1e-5, "planned": release(), **over})

    with table(noise_multiplier) as row:
        row("a budget of 0, NaN or infinity; a delta that is not between 0 and 1", "`InputError`")
        for budget in (0.0, -1.0, math.nan, math.inf):
            refused(InputError, least, budget=budget, words="budget")
        for delta in (0.0, 1.0, math.nan):
            refused(InputError, least, delta=delta, words="delta")
        row("a very large budget", "0.01, the least there is")
        assert least(budget=1e6) == 0.01
        row("`fixed` alone spends the budget", "`BudgetExceeded`")
        refused(PrivacyError, least, fixed=[release()], words="alone spend epsilon")
        row("a budget of 1e-6", "`BudgetExceeded`: no amount of noise is enough")
        refused(PrivacyError, least, budget=1e-6, words="no amount of noise")


def test_plans() -> None:
    usual = {"budget": 8.0, "delta": 1e-5, "users": 1000, "sample_rate": 0.1, "steps": 80, "prior_noise_multiplier": 3.0}

    def planned(**over: Any) -> Any:
        return make_plan(**{**usual, "group_size": 1, "parameters": 1000, **over})

    with table(make_plan) as row:
        row("an infinite budget", "no release, no noise, an infinite epsilon")
        plan = planned(budget=math.inf)
        assert (plan.releases, plan.noise_multiplier, plan.epsilon) == ((), 0.0, math.inf)
        row("0 users or parameters; a budget of 0 or NaN; a delta of 0 or 1", "`InputError`")
        for over in ({"users": 0}, {"parameters": 0}, {"budget": 0.0}, {"budget": math.nan}, {"delta": 0.0}, {"delta": 1.0}):
            refused(InputError, planned, **over)
        row("0 steps and no preferences", "`InputError`: nothing to do")
        refused(InputError, planned, steps=0)
        row("5 users, and a thousand parameters", "`NoisyPlan`; with `accept_noise`, the plan")
        refused(NoisyPlan, planned, users=5)
        assert planned(users=5, accept_noise=True).signal_to_noise < 1
        row("a budget that the popularity prior alone spends", "`BudgetExceeded`")
        refused(PrivacyError, planned, budget=1e-3)
    with table(signal_to_noise) as row:
        row("a noise multiplier of 0", "infinite, whatever the rest is")
        assert signal_to_noise(batch=0.0, steps=1, noise_multiplier=0.0, parameters=1) == math.inf
        row("an expected batch or steps of 0", "0")
        assert signal_to_noise(batch=0.0, steps=4, noise_multiplier=1.0, parameters=9) == 0
        assert signal_to_noise(batch=9.0, steps=0, noise_multiplier=1.0, parameters=9) == 0
        row("no parameter", "infinite: there is no noise either")
        assert signal_to_noise(batch=9.0, steps=4, noise_multiplier=1.0, parameters=0) == math.inf


def test_ledgers(ledger: Callable[..., Path], tmp_path: Path) -> None:
    with table(read_ledger) as row:
        row("no such file, an empty one, or something else", "`StorageError`")
        for content in (None, b"", b"user,item\n"):
            path = tmp_path / "not.jsonl"
            if content is not None:
                path.write_bytes(content)
            refused(StorageError, read_ledger, path)
        row("a header alone", "no line, epsilon 0")
        assert (read_ledger(ledger(0)).epsilon, len(read_ledger(ledger(0)).lines)) == (0.0, 0)
        row("a last line without its end", "`StorageError`")
        whole = ledger(2).read_bytes()
        path.write_bytes(whole[:-9])
        refused(StorageError, read_ledger, path)
        row("a changed, dropped, repeated or moved line", "`PrivacyError`")
        header, one, two = whole.splitlines(keepends=True)
        for lines in (
            [header, one.replace(b'"steps":5', b'"steps":4'), two],
            [header, two],
            [header, one, one],
            [header, two, one],
        ):
            path.write_bytes(b"".join(lines))
            refused(PrivacyError, read_ledger, path)
        row("a last line that was cut off whole", "read: only evidence from outside shows it")
        path.write_bytes(header + one)
        assert len(read_ledger(path).lines) == 1


def test_audits(ledger: Callable[..., Path], tmp_path: Path) -> None:
    def verdict(*paths: Path) -> AuditVerdict:
        return audit_ledgers(paths, name="here", evidence=LedgerEvidence()).verdict

    with table(audit_ledgers) as row:
        row("a ledger, and no evidence", "cannot tell: a cut end would not be seen")
        assert verdict(ledger(2)) is AuditVerdict.UNKNOWN
        row("a file that is no ledger, or not there", "cannot tell")
        (tmp_path / "no.jsonl").write_bytes(b"user,item\n")
        assert verdict(tmp_path / "no.jsonl") is verdict(tmp_path / "nowhere.jsonl") is AuditVerdict.UNKNOWN
        row("an altered line", "unsound")
        path = ledger(2)
        path.write_bytes(path.read_bytes().replace(b'"steps":5', b'"steps":4', 1))
        assert verdict(path) is AuditVerdict.UNSOUND
    with table(audit_run) as row:
        row("a folder without a ledger", "`InputError`")
        refused(InputError, audit_run, tmp_path, words="no ledger found")
        row("no evidence in the folder, and none given", "cannot tell")
        ledger(2)
        assert audit_run(tmp_path / "run").verdict is AuditVerdict.UNKNOWN


def test_curves() -> None:
    with table(epsilon_curve) as row:
        row("no release", "epsilon 0 at every delta")
        assert [one.epsilon for one in epsilon_curve([], [1e-3, 1e-5])] == [0, 0]
        row("a release without noise", "infinite")
        assert epsilon_curve([release(noise_multiplier=0)], [1e-5])[0].epsilon == math.inf
        row("no delta", "an empty curve")
        assert epsilon_curve([release()], []) == ()
        row("a delta of 0, 1 or NaN", "`InputError`")
        for delta in (0.0, 1.0, math.nan):
            refused(InputError, epsilon_curve, [release()], [delta])
