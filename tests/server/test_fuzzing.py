"""No bytes of another party crash a parser: they are read, or refused with one clear error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from server.registry.registry import Registry
from server.registry.store import open_store
from shared.base.errors import FedfuseError
from shared.base.settings import Settings
from shared.protocol.messages import ANSWERS, REQUESTS
from tests.server.conftest import tally_of
from tests.support import fuzzing
from tests.support.fuzzing import Target, mutants, npy, parse_message, record_of

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = (
    *("socket", "ledger", "ledger, audited", "receipts", "signed receipts", "invitation", "application", "warrant", "manifest"),
    *("facts", "index"),
    *(f"model: {name}" for name in ("adapter_model.safetensors", "head.safetensors", "fedfuse.json")),
    *(f"secure sum: {name}" for name in ("Dealt", "Mask", "Masked", "Confirm", "Confirmed", "Unmask", "Unmasked")),
    *("pull: 000001.json", "pull: README.md", "pull: head.safetensors", "pull: fedfuse.json", "checkpoint", "run state"),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, tiny_bert: str) -> dict[str, Target]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from server.registry.publication import publish_adapter
    from shared.model.adapter import initial
    from shared.registry.signing import Signer
    from tests.support.kill_scenarios import tiny

    folder = tmp_path_factory.mktemp("fuzz")
    chosen: Settings = tiny(tiny_bert)
    run = folder / "run"
    run.mkdir()
    publish_adapter(initial(chosen), chosen, run, run="spring", rounds=3, tallies={"shop": tally_of("shop")})
    Registry(open_store(str(folder / "registry"))).publish(run, Signer(Ed25519PrivateKey.generate()), as_simulation=True)

    def made() -> Iterator[Target]:
        yield Target("socket", fuzzing.through_socket, fuzzing.frames())
        yield from fuzzing.secure_sum()
        yield from fuzzing.documents()
        yield from fuzzing.ledgers(folder / "ledgers")
        yield from fuzzing.models(run, folder / "registry", folder)
        yield from fuzzing.checkpoints(folder / "checkpoint", chosen, tally_of("shop"))

    return {target.name: target for target in made()}


def test_every_parser_is_here(targets: dict[str, Target]) -> None:
    assert set(NAMES) <= set(targets)


@pytest.mark.parametrize("name", NAMES)
class TestBytes:
    def test_what_is_valid_is_read(self, targets: dict[str, Target], name: str) -> None:
        for data in targets[name].valid:
            targets[name].parse(data)

    @FEW
    @given(data=st.data())
    def test_edited(self, targets: dict[str, Target], name: str, data: st.DataObject) -> None:
        target = targets[name]
        mutant = data.draw(mutants(target.valid))
        read = target.holds(mutant)
        assert not (target.sealed and read and mutant not in target.valid)

    @FEW
    @given(data=st.binary(max_size=200))
    def test_noise(self, targets: dict[str, Target], name: str, data: bytes) -> None:
        assert not targets[name].holds(data) or name in ("receipts", "signed receipts")

    def test_cut_short_and_flipped(self, targets: dict[str, Target], name: str) -> None:
        target, chance = targets[name], random.Random(name)
        valid = target.valid[0]
        spots = sorted({*range(min(len(valid), 24)), *(chance.randrange(len(valid)) for _ in range(40))})
        for at in spots:
            target.holds(valid[:at])
            flipped = bytearray(valid)
            flipped[at] ^= 1 << chance.randrange(8)
            assert not (target.holds(bytes(flipped)) and target.sealed), f"bit flip at byte {at} was not noticed"


VALUES = st.one_of(
    st.none().map(lambda _: 0),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.booleans(),
    st.lists(st.integers(-5, 5), max_size=3),
    st.lists(st.floats(), max_size=3),
)
KINDS = {**REQUESTS, **ANSWERS}


_PACKED = np.frombuffer(save({"head.lora_A": np.ones((2, 3), np.float32)}), np.uint8)


class TestRecords:
    """Messages as Flower hands them over: any scalar in any place, any bytes where an array should be."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_that_are_valid(self, kind: str) -> None:
        message = fuzzing.example(KINDS[kind])
        assert type(parse_message(fuzzing.to_record(message))) is KINDS[kind]

    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_with_anything_in_any_field(self, kind: str, data: st.DataObject) -> None:
        record = fuzzing.to_record(fuzzing.example(KINDS[kind]))
        header: dict[str, Any] = dict(record["fedfuse"])
        for _ in range(data.draw(st.integers(1, 3))):
            field = data.draw(st.sampled_from(sorted({*header, "more", "adapter", "protocol"})))
            if data.draw(st.booleans()):
                header[field] = data.draw(VALUES)
            else:
                header.pop(field, None)
        arrays = {name: {key: array.data for key, array in part.items()} for name, part in record.items() if name != "fedfuse"}
        try:
            made = record_of(header, arrays)
        except (TypeError, ValueError):
            return  # Flower itself does not carry it
        try:
            parse_message(made)
        except FedfuseError as error:
            assert len(str(error)) < 5000

    @FEW
    @given(
        data=mutants((npy(np.ones((2, 3), np.float32)), npy(np.zeros(5, np.float64)), npy(np.array(["a", "b"])), npy(_PACKED)))
    )
    def test_with_any_bytes_for_an_array(self, data: bytes) -> None:
        record = fuzzing.to_record(fuzzing.example(REQUESTS["train"]))
        try:
            parse_message(record_of(dict(record["fedfuse"]), {"adapter": {"bytes": data}}))
        except FedfuseError as error:
            assert len(str(error)) < 5000

    def test_with_an_array_that_would_run_code(self) -> None:
        import pickle

        class Evil:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
                return Path.touch, (Path("/tmp/fedfuse-was-here"),)  # type: ignore[return-value]

        header = dict(fuzzing.to_record(fuzzing.example(REQUESTS["train"]))["fedfuse"])
        objects = np.array([Evil()], dtype=object)
        for data in (pickle.dumps(Evil()), _pickled(objects)):
            with pytest.raises(FedfuseError):
                parse_message(record_of(header, {"adapter": {"bytes": data}}))
        assert not Path("/tmp/fedfuse-was-here").exists()


def _pickled(array: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()
