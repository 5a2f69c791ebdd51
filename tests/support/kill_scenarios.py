"""What is killed: the ledger's writer, the checkpoint's, a whole worker, the registry's publisher and its puller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.base.errors import FedfuseError
from shared.base.settings import Settings, build
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method, Spent
from tests.support.kill_points import Said, Scenario


class Tenths:
    """Every release costs a tenth: the arithmetic is not what is killed here."""

    name = "tenths"

    def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
        return Spent(epsilon=len(releases) / 10, accountant=Method.OPACUS_PRV)


class Ledger:
    """Five charges, each followed by the release that it pays for."""

    CHARGES = 5

    def prepare(self, folder: Path) -> None:
        pass

    def open(self, folder: Path) -> Any:
        from client.privacy.ledger_writer import LedgerWriter
        from shared.secagg.identity import Identity

        identity = Identity(b"i" * 32)
        return LedgerWriter.open(
            folder / "shop.jsonl", platform="shop", budget=8.0, delta=1e-5, identity=identity, accountant=Tenths()
        )

    def act(self, folder: Path, said: Said) -> None:
        with self.open(folder) as writer:
            for number in range(1, self.CHARGES + 1):
                release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=2.0, sample_rate=0.1, steps=number)
                writer.charge(release, run="spring", round=number, question="5" * 64)
                said(number)

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from shared.ledger.reading import read_ledger

        with self.open(folder) as writer:  # as the restarted client does: a torn last line is cut off
            rounds = [entry.round for entry in writer.ledger.entries]
            assert rounds == list(range(1, len(rounds) + 1)), rounds
            assert steps <= len(rounds) <= steps + 1, f"{steps} releases left, {len(rounds)} are charged"
            assert math.isclose(writer.epsilon, len(rounds) / 10)
            writer.charge(
                Release(kind=ReleaseKind.TRAIN, noise_multiplier=2.0), run="spring", round=len(rounds) + 1, question="5" * 64
            )
            heads = writer.head
        verified = read_ledger(folder / "shop.jsonl")
        assert verified.head == heads and len(verified.entries) == len(rounds) + 1
        assert died or steps == self.CHARGES


class Checkpoints:
    """Four rounds, each of whose checkpoint takes the place of the one before."""

    ROUNDS = 4

    def __init__(self, backbone: str) -> None:
        from shared.model.adapter import initial, layout_of
        from shared.model.backbone import shape_of

        self.settings = tiny(backbone)
        self.start = initial(self.settings)
        self.layout = layout_of(shape_of(backbone), self.settings.model)

    def prepare(self, folder: Path) -> None:
        pass

    def state(self, round_: int) -> Any:
        from server.run.checkpoint import Checkpoint
        from tests.server.conftest import tally_of

        adapter = {name: value + np.float32(round_) for name, value in self.start.items()}
        tallies = {"shop": replace(tally_of("shop"), rounds=round_)}
        return Checkpoint(run="spring", round=round_, settings=self.settings, adapter=adapter, tallies=tallies)

    def act(self, folder: Path, said: Said) -> None:
        from server.run.checkpoint import save_checkpoint

        for round_ in range(1, self.ROUNDS + 1):
            save_checkpoint(folder, self.state(round_))
            said(round_)

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from server.run.checkpoint import load_checkpoint, run_of, save_checkpoint

        if run_of(folder) is None:
            assert steps == 0
        else:
            found = load_checkpoint(folder, run="spring", settings=self.settings, layout=self.layout)
            assert steps <= found.round <= steps + 1, f"round {found.round} where round {steps} was saved"
            wanted = self.state(found.round)
            assert dict(found.tallies) == dict(wanted.tallies)
            assert all((found.adapter[name] == value).all() for name, value in wanted.adapter.items())
        save_checkpoint(folder, self.state(steps + 1))


class Platform:
    """A whole worker: it joins, trains two rounds and answers; the noise is drawn from the system, as in a deployment."""

    ROUNDS = 2

    def __init__(self, backbone: str) -> None:
        self.settings = tiny(backbone, noise="secure")
        self.backbone = backbone
        self.prepared: Any = None

    def file(self, folder: Path) -> Any:
        from client.config.platform_file import load

        rows = "\n".join(f"u{user},i{(user * 5 + step) % 12},{1_700_000_000 + step}" for user in range(24) for step in range(5))
        items = "\n".join(f"i{item},jazz rock {item}" for item in range(12))
        (folder / "events.csv").write_text(f"user,item,time\n{rows}\n")
        (folder / "items.csv").write_text(f"item,title\n{items}\n")
        (folder / "shop.toml").write_text(
            'name = "shop"\nusers = 30\n[privacy]\nepsilon = 60.0\ndelta = 1e-3\n'
            '[sources.events]\nkind = "interactions"\npath = "events.csv"\n[sources.items]\nkind = "items"\npath = "items.csv"\n'
        )
        return load(folder / "shop.toml")

    def prepare(self, folder: Path) -> None:
        from client.model.prepared_platform import prepare

        if self.prepared is None:
            home = folder.parent / "platform"
            home.mkdir(exist_ok=True)
            self.prepared = prepare(self.file(home), self.settings, cache=home / "trunk")

    def worker(self, folder: Path) -> Any:
        import torch

        from client.worker.request_handler import Worker

        return Worker(
            self.prepared.file,
            state=folder / "state",
            ledger=folder / "ledger.jsonl",
            simulation=True,
            prepared=self.prepared,
            device=torch.device("cpu"),
        )

    def ask(self, worker: Any, round_: int) -> Any:
        from shared.model.adapter import initial
        from shared.protocol.messages import Factors, Join, Train, Update

        if round_ == 0:
            answer = worker.handle(Join(run="spring", settings=self.settings))
            assert answer.kind == "joined", worker.failure
        else:
            request = Train(
                run="spring", settings=self.settings, round=round_, factors=Factors.BOTH, adapter=initial(self.settings)
            )
            answer = worker.handle(request)
            assert isinstance(answer, Update), worker.failure
        return answer

    def act(self, folder: Path, said: Said) -> None:
        from shared.model.adapter import adapter_digest

        worker = self.worker(folder)
        try:
            self.ask(worker, 0)
            for round_ in range(1, self.ROUNDS + 1):
                (folder / f"sent-{round_}").write_text(adapter_digest(self.ask(worker, round_).change))
                said(round_)
        finally:
            worker.close()

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from shared.ledger.reading import read_ledger
        from shared.model.adapter import adapter_digest

        worker = self.worker(folder)
        try:
            joined = self.ask(worker, 0)
            assert joined.finished >= steps
            if joined.finished:
                again = adapter_digest(self.ask(worker, joined.finished).change)
                sent = folder / f"sent-{joined.finished}"
                if joined.finished == steps:
                    # It has left: anything else now would be a second release, and nobody paid for that.
                    assert again == sent.read_text(), "a released answer was changed"
            for round_ in range(joined.finished + 1, self.ROUNDS + 1):
                self.ask(worker, round_)
        finally:
            worker.close()
        charged = [(str(entry.kind), entry.round) for entry in read_ledger(folder / "ledger.jsonl").entries]
        # Nothing lost, and nothing charged twice for what was released once.
        assert charged == [("popularity", 0), *(("train", round_) for round_ in range(1, self.ROUNDS + 1))], charged


class Publisher:
    """A second version is published beside the first."""

    def __init__(self, backbone: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from shared.registry.signing import Signer

        self.settings, self.signer = tiny(backbone), Signer(Ed25519PrivateKey.generate())

    def make(self, out: Path, name: str, seed: int) -> Path:
        from server.registry.publication import publish_adapter
        from shared.model.adapter import initial
        from tests.server.conftest import tally_of

        out.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        adapter = {key: random.normal(0, 1, value.shape).astype(np.float32) for key, value in initial(self.settings).items()}
        publish_adapter(adapter, self.settings, out, run=name, rounds=seed, tallies={"shop": tally_of("shop")})
        return out

    def registry(self, folder: Path) -> Any:
        from server.registry.registry import Registry
        from server.registry.store import open_store

        return Registry(open_store(str(folder / "registry")), [self.signer.public])

    def runs(self, folder: Path) -> tuple[Path, Path]:
        home = folder.parent / "runs"
        if not home.exists():
            self.make(home / "first", "first", 1)
            self.make(home / "second", "second", 2)
        return home / "first", home / "second"

    def prepare(self, folder: Path) -> None:
        self.registry(folder).publish(self.runs(folder)[0], self.signer, as_simulation=True)

    def act(self, folder: Path, said: Said) -> None:
        self.registry(folder).publish(self.runs(folder)[1], self.signer, as_simulation=True)
        said(2)

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from server.registry.pull import pull_model

        listed = list(self.registry(folder).versions())
        assert [m.version for m in listed] in ([2, 1], [1]) and len(listed) >= (steps or 1), [m.version for m in listed]
        for manifest in listed:
            out = folder / f"out-{manifest.version}"
            assert pull_model(str(folder / "registry"), out, trusted=[self.signer.public], model=str(manifest.version)).fresh
        again = self.registry(folder).publish(self.runs(folder)[1], self.signer, as_simulation=True)
        assert again.version == 2 and [m.version for m in self.registry(folder).versions()] == [2, 1]
        if len(listed) == 2:
            assert again == listed[0]


class Puller(Publisher):
    """A folder with version 1 is brought to version 2."""

    def prepare(self, folder: Path) -> None:
        home = folder.parent / "source"
        if not home.exists():
            for run in self.runs(folder):
                self.registry(home).publish(run, self.signer, as_simulation=True)
        self.take(folder, "1")

    def take(self, folder: Path, model: str = "") -> Any:
        from server.registry.pull import pull_model

        address = str(folder.parent / "source" / "registry")
        return pull_model(address, folder / "model", trusted=[self.signer.public], model=model)

    def act(self, folder: Path, said: Said) -> None:
        self.take(folder)
        said(2)

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from shared.model.peft_export import load_published
        from shared.registry.manifest import describe, parse_manifest

        manifest = parse_manifest((folder / "model" / "manifest.json").read_bytes(), "here")
        assert manifest.version in (1, 2) and manifest.version >= steps
        assert describe(folder / "model", manifest.origin).files == manifest.files
        load_published(folder / "model")
        assert self.take(folder).manifest.version == 2
        try:
            self.take(folder, "1")
        except FedfuseError as error:
            assert "older" in error.found
        else:
            raise AssertionError("what was seen last is forgotten")


class Ending(Publisher):
    """A run writes its model in place of an older one."""

    def prepare(self, folder: Path) -> None:
        self.make(folder, "first", 1)

    def act(self, folder: Path, said: Said) -> None:
        self.make(folder, "second", 2)
        said(2)

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        from server.registry.pull import pull_model

        pulled = pull_model(str(folder), folder / "out", unsigned=True)
        assert pulled.manifest.origin.rounds in (1, 2) and pulled.manifest.origin.rounds >= steps
        assert self.make(folder, "second", 2).exists()


def tiny(backbone: str, *, noise: str = "seeded") -> Settings:
    """Settings of a run of two rounds on a tiny BERT."""
    values = {
        "rounds": 2,
        "simulation": True,
        "model": {"backbone": backbone, "layers": 1, "rank": 2, "item_tokens": 8, "user_tokens": 12},
        "training": {"local_steps": 1, "sample_rate": 0.5, "views": 1, "targets": 1},
        "privacy": {"generator": noise, "epsilon": 60.0},
    }
    return build(values, where="test")


def scenario_named(name: str, backbone: str) -> Scenario:
    """The scenario of a name."""
    import torch

    torch.set_num_threads(1)
    if name == "ledger":
        return Ledger()
    made: Scenario = {
        "checkpoints": Checkpoints,
        "platform": Platform,
        "publisher": Publisher,
        "puller": Puller,
        "ending": Ending,
    }[name](backbone)
    return made
