"""Attacks on the promise that once worked, played against a deployed worker: each is a question, a row or a file of one user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from client.config.platform_file import load
from client.privacy.bounded_sum import BoundedSum
from client.privacy.failure_guard import Silent, by_parts, raising
from client.privacy.mechanism import Mechanism
from client.sources.platform_tables import read_tables
from client.worker.request_handler import Worker
from shared.base.settings import Settings, flatten, unflatten
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial
from shared.protocol.messages import (
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Personalise,
    Personalised,
    Reason,
    Refusal,
    Train,
    Update,
)
from tests.support.identities import with_identity
from tests.support.neighbours import User, World

Make = Callable[..., Settings]
LIKES = (0, True), (1, True), (2, True), (3, False)
SHOP = World(users={f"u{at}": User(items=LIKES[at % 2 :]) for at in range(20)})


class Deployed:
    """A worker of one small platform, and its folders."""

    def __init__(self, path: Path, settings: Settings, root: Path) -> None:
        self.path, self.settings, self.root = path, settings, root
        self.adapter = dict(initial(settings))
        self.worker = self.open()

    def open(self) -> Worker:
        return Worker(
            load(self.path), state=with_identity(self.root), ledger=self.root / "ledger.jsonl", device=torch.device("cpu")
        )

    def restart(self) -> None:
        self.worker.close()
        self.worker = self.open()

    def join(self) -> Any:
        return self.worker.handle(Join(run="run-1", settings=self.settings))

    def train(self, round_: int) -> Any:
        return self.worker.handle(
            Train(run="run-1", settings=self.settings, round=round_, factors=Factors.BOTH, adapter=self.adapter)
        )

    def evaluate(self, round_: int) -> Any:
        label = Label.FEDERATED if round_ else Label.BEFORE
        return self.worker.handle(Evaluate(run="run-1", settings=self.settings, round=round_, label=label, adapter=self.adapter))

    def personalise(self) -> Any:
        return self.worker.handle(
            Personalise(run="run-1", settings=self.settings, round=self.settings.rounds, adapter=self.adapter)
        )

    def charges(self) -> list[tuple[str, int]]:
        return [(str(entry.kind), entry.round) for entry in read_ledger(self.root / "ledger.jsonl").entries]


@pytest.fixture
def deploy(tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Deployed]]:
    monkeypatch.setattr("client.privacy.answer_timing.time.sleep", lambda seconds: None)
    made: list[Deployed] = []

    def make(world: World = SHOP, **over: Any) -> Deployed:
        base = tiny_settings(
            simulation=False,
            strategy=over.pop("strategy", "fedavg"),
            privacy={"generator": "secure", "epsilon": None},
            training={"local_steps": 1, "compile": "off"},
        )
        settings = unflatten({**flatten(base), **over}, where="test")
        path = world.write(tmp_path / f"world{len(made)}", backbone=settings.model.backbone)
        made.append(Deployed(path, settings, tmp_path / f"state{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.worker.close()


class TestFreeQuestions:
    def test_a_run_that_was_not_joined_is_refused_before_a_row_is_read(
        self, deploy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = deploy()
        monkeypatch.setattr("client.worker.request_handler.prepare", lambda *_, **__: pytest.fail("rows were encoded"))
        for answer in (made.train(9), made.train(1), made.evaluate(0), made.personalise()):
            assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND

    def test_personalising_ends_a_run(self, deploy: Any) -> None:
        made = deploy(strategy="fedavg+personalise", **{"personal.steps": 1})
        assert isinstance(made.join(), Joined)
        assert isinstance(made.personalise(), Personalised)
        charged = made.charges()
        assert isinstance(made.train(1), Refusal)
        assert isinstance(made.personalise(), Personalised) and made.charges() == charged


class TestOlderState:
    @pytest.mark.parametrize("ask", [lambda made: made.train(1), lambda made: made.evaluate(1)], ids=["train", "evaluate"])
    def test_an_older_copy_of_a_run_gives_no_second_answer(self, deploy: Any, tmp_path: Path, ask: Any) -> None:
        made = deploy()
        made.join()
        made.worker.close()
        shutil.copytree(made.root / "runs", tmp_path / "backup")
        made.restart()
        assert not isinstance(ask(made), Refusal)
        charged = made.charges()
        made.worker.close()
        shutil.rmtree(made.root / "runs")
        shutil.copytree(tmp_path / "backup", made.root / "runs")
        made.restart()
        answer = ask(made)
        assert isinstance(answer, Refusal) and "older copy" in str(made.worker.failure)
        assert made.charges() == charged

    def test_a_charge_that_a_crash_cut_off_still_pays(self, deploy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = deploy()
        made.join()

        def crash(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Mechanism, "privatise", crash)
            with pytest.raises(KeyboardInterrupt):
                made.train(1)
        made.restart()
        assert isinstance(made.join(), Joined)  # as a run that is taken up again begins
        assert isinstance(made.train(1), Update)
        assert made.charges() == [("popularity", 0), ("train", 1)]


class TestOneUserWhoFails:
    def test_costs_that_user_alone(self) -> None:
        def total(rows: np.ndarray) -> BoundedSum:
            if 7 in rows:
                raise MemoryError("seven is too long")
            return BoundedSum(parts={"sum": torch.tensor([float(len(rows))], dtype=torch.float64)}, bound=1.0)

        def empty() -> BoundedSum:
            return BoundedSum(parts={"sum": torch.zeros(1, dtype=torch.float64)}, bound=1.0)

        guard = Silent()
        found = by_parts(total, np.arange(20), guard=guard, empty=empty, what="a sum")
        assert found.vector().tolist() == [19.0] and guard.failures > 0
        assert by_parts(total, np.asarray([7]), guard=guard, empty=empty, what="a sum").vector().tolist() == [0.0]
        with pytest.raises(MemoryError):
            by_parts(total, np.arange(20), guard=raising, empty=empty, what="a sum")


class TestOneUsersRows:
    """What one user wrote makes no reader raise, and takes no other user's row away."""

    def users(self, folder: Path, *, rows: str, extra: str = "", sources: str = "") -> list[str]:
        folder.mkdir(exist_ok=True)
        (folder / "items.csv").write_text("item,title\n" + "".join(f"i{n},film {n}\n" for n in range(6)))
        (folder / "events.csv").write_text("user,item,value\n" + rows)
        (folder / "shop.toml").write_text(
            'name = "shop"\nusers = 9\n[privacy]\nepsilon = 8.0\n'
            f'[sources.events]\nkind = "interactions"\npath = "events.csv"\n{extra}'
            f'{sources}[sources.items]\nkind = "items"\npath = "items.csv"\n'
        )
        return list(read_tables(load(folder / "shop.toml"), lenient=True).user_ids)

    OTHERS = "".join(f"{user},i{item},5\n" for user in "abc" for item in (0, 1))

    def test_two_open_quotation_marks(self, tmp_path: Path) -> None:
        found = self.users(tmp_path / "w", rows=f'v,i1,"5\n{self.OTHERS}v,i2,"5\n')
        assert [user for user in found if user != "v"] == ["a", "b", "c"]

    @pytest.mark.parametrize("text", ["&#" + "9" * 4400 + ";", "&#x" + "f" * 5000 + ";", "&" * 3000])
    def test_an_entity_that_is_none(self, tmp_path: Path, text: str) -> None:
        folder = tmp_path / "w"
        folder.mkdir()
        (folder / "notes.csv").write_text(f"user,item,text\na,i0,lovely\nv,i0,{text}\n")
        notes = '[sources.notes]\nkind = "reviews"\npath = "notes.csv"\n'
        assert self.users(folder, rows=self.OTHERS + "v,i0,5\n", sources=notes) == ["a", "b", "c", "v"]

    @pytest.mark.parametrize("depth", [10, 900, 950, 980, 990, 5000])
    def test_a_value_that_is_nested_deeply(self, tmp_path: Path, depth: int) -> None:
        folder = tmp_path / "w"
        lines = [json.dumps({"user": user, "item": f"i{item}", "value": 5}) for user in "abc" for item in (0, 1)]
        lines.append('{"user": "v", "item": "i1", "value": ' + "[" * depth + "]" * depth + "}")
        folder.mkdir()
        (folder / "more.jsonl").write_text("\n".join(lines) + "\n")
        more = '[sources.more]\nkind = "interactions"\npath = "more.jsonl"\n'
        assert {"a", "b", "c"} <= set(self.users(folder, rows=self.OTHERS, sources=more))

    def test_a_time_beyond_all_calendars(self, tmp_path: Path) -> None:
        folder = tmp_path / "w"
        folder.mkdir()
        times = pl.Series([0, 1, 10**15, 2**62], dtype=pl.Int64).cast(pl.Datetime("us"))
        pl.DataFrame({"user": ["a", "b", "c", "v"], "item": ["i0"] * 4, "time": times}).write_parquet(folder / "more.parquet")
        more = '[sources.more]\nkind = "interactions"\npath = "more.parquet"\n'
        assert {"a", "b", "c"} <= set(self.users(folder, rows=self.OTHERS, sources=more))

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_time_beyond_all_calendars_among_vectors(self, tmp_path: Path, nested: bool) -> None:
        folder = tmp_path / "w"
        folder.mkdir()
        times = pl.Series([0, 1, 10**15, 2**62], dtype=pl.Int64).cast(pl.Datetime("us"))
        vectors = times.reshape((4, 1)).arr.to_list() if nested else times
        pl.DataFrame({"user": ["a", "b", "c", "v"], "vector": vectors}).write_parquet(folder / "moods.parquet")
        moods = '[sources.moods]\nkind = "vectors"\npath = "moods.parquet"\nwidth = 1\ncolumns = { user = "user" }\n'
        assert self.users(folder, rows=self.OTHERS, sources=moods) == ["a", "b", "c"]

    def test_nobody_in_a_file_without_a_header(self, tmp_path: Path) -> None:
        folder = tmp_path / "w"
        folder.mkdir()
        (folder / "bare.csv").write_text("")
        more = '[sources.more]\nkind = "interactions"\npath = "bare.csv"\nheader = false\ncolumns = { user = 1, item = 2 }\n'
        assert self.users(folder, rows=self.OTHERS, sources=more) == ["a", "b", "c"]


class TestTerms:
    def test_the_adaptive_clip_stays_within_them(self, deploy: Any) -> None:
        made = deploy(
            World(users=SHOP.users, declared=20_000),
            **{
                "training.clipping": "adaptive",
                "training.clip_rate": 10.0,
                "training.clip_quantile": 0.99,
                "training.sample_rate": 0.5,
                "training.local_steps": 3,
            },
        )
        text = made.path.read_text()
        made.path.write_text(text.replace("[federation]\n", "[federation]\nminimum_clip = 0.5\nmaximum_clip = 2.0\n"))
        made.restart()
        assert isinstance(made.join(), Joined), made.worker.failure
        assert isinstance(made.train(1), Update), made.worker.failure
        assert made.worker._session is not None
        assert 0.5 <= float(made.worker._session.run.state.clip or 0.0) <= 2.0

    def test_the_comparison_has_its_least_noise_too(self, deploy: Any) -> None:
        made = deploy(strategy="fedavg+personalise", **{"personal.comparison_noise": 1.0})
        text = made.path.read_text()
        made.path.write_text(text.replace("minimum_noise_multiplier = 0.0", "minimum_noise_multiplier = 2.0"))
        made.restart()
        answer = made.join()
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
        assert "comparison_noise" in str(made.worker.failure)
