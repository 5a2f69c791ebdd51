"""Everything on another device than the processor: `FEDFUSE_DEVICE=cuda python -m pytest tests/on_a_device.py`.

Without that variable the device is a pretended one (`tests/support/pretended_device.py`), and shows what can be seen without
another: so `tests/simulations/test_any_device.py` runs this file, in a process of its own. What only the pretended device can
show, since it sees every operation, is skipped on a real one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.compute.resident_features import Features
from client.config.platform_file import load
from client.fusion.operators import FUSIONS
from client.model.towers import Towers
from client.recommender.lists.recommended import ListRules
from client.recommender.serving.recommend import recommend_items
from client.training.per_user_gradients import has_float64
from client.training.trainer import Trainer
from server.registry.pull import pull_model
from shared.base.settings import Settings
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world
from tests.support import pretended_device
from tests.support.pretended_device import FORBIDDEN, NAME, device
from tests.support.small_towers import require_rows_apart

Write = Callable[..., Path]
Make = Callable[..., Settings]
WISH = os.environ.get("FEDFUSE_DEVICE", NAME)
PRETENDED = WISH == NAME
DEVICE = device() if PRETENDED else torch.zeros((), device=WISH).device
CPU = torch.device("cpu")
pretended_only = pytest.mark.skipif(not PRETENDED, reason="only the pretended device sees every operation")
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}


@pytest.fixture
def world(write_platform: Write) -> World:
    """Two platforms, one with pictures."""
    write_platform("shop")
    pictures = "item,x0,x1\n" + "".join(f"i{item},{item / 7:.3f},{(item % 3) / 3:.3f}\n" for item in range(12))
    source = '[sources.pictures]\nkind = "vectors"\npath = "video-pictures.csv"\n'
    source += 'columns = { item = "item", vector = ["x0", "x1"] }\n'
    path = write_platform("video", seed=1, items=14, files={"video-pictures.csv": pictures}, extra=source)
    return open_world(path.parent)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic everywhere."""
    monkeypatch.setattr("client.compute.backend.compute_dtype", lambda device: torch.float32)


@pytest.fixture
def no_float64() -> Iterator[None]:
    """As on Apple's GPUs; a real device has what it has."""
    if not PRETENDED:
        yield
        return
    FORBIDDEN.add(torch.float64)
    has_float64.cache_clear()
    yield
    FORBIDDEN.clear()
    has_float64.cache_clear()


@pytest.fixture(autouse=not PRETENDED)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes half a minute a test; on its own it is tried by the benchmark of training."""
    monkeypatch.setattr("client.compute.backend.compiles", lambda settings, device: False)


def use(found: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shared.model.encoder", "simulations.run"):
        monkeypatch.setattr(f"{module}.devices", lambda: [found])


@pretended_only
class TestPretendedDevice:
    """The instrument itself."""

    def test_tensors_of_two_devices_do_not_mix(self) -> None:
        for there, here in (((3,), (3,)), ((), (3,))):
            with pytest.raises(RuntimeError, match="same device"):
                torch.ones(there, device=DEVICE) + torch.ones(here)
        assert (torch.ones(3, device=DEVICE) + torch.ones(())).device == DEVICE

    def test_it_computes_and_differentiates(self) -> None:
        x, w = torch.randn(5, 4), torch.randn(3, 4)
        there = w.to(DEVICE).requires_grad_()
        loss = (x.to(DEVICE) @ there.T).square().sum()
        assert loss.device == DEVICE
        torch.autograd.backward(loss)
        here = w.requires_grad_()
        torch.autograd.backward((x @ here.T).square().sum())
        assert there.grad is not None and here.grad is not None
        torch.testing.assert_close(there.grad.cpu(), here.grad)

    @pytest.mark.usefixtures("no_float64")
    def test_it_may_lack_a_dtype(self) -> None:
        with pytest.raises(TypeError, match="dtype"):
            torch.ones(3, device=DEVICE).to(torch.float64)
        with pytest.raises(TypeError, match="dtype"):
            torch.ones(3, dtype=torch.float64).to(DEVICE)

    def test_it_is_no_array(self) -> None:
        with pytest.raises(RuntimeError, match="numpy"):
            torch.ones(3, device=DEVICE).numpy()


@pytest.mark.usefixtures("float32", "no_float64")
@pytest.mark.parametrize(
    "over",
    [
        {},
        {"training": {"clipping": "adaptive"}},
        {"training": {"engine": "opacus"}},
        {"training": {"objective": "click", "sequences": 2}},
        {"model": {"fusion": "attention"}},
        {"strategy": "personalise"},
        {"strategy": "secure-sum"},
    ],
    ids=str,
)
def test_a_simulation_on_a_device_ends_as_on_the_processor(
    world: World, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: dict[str, Any]
) -> None:
    settings, places = tiny_settings(**over), set[torch.device]()
    use(CPU, monkeypatch)
    expected = run_simulation(Simulation(world=world, settings=settings, out=tmp_path / "here"))
    use(DEVICE, monkeypatch)
    vectors = Towers.vectors

    def watched(self: Towers, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        found = vectors(self, hidden, *rest)
        places.add(found.device)
        return found

    monkeypatch.setattr(Towers, "vectors", watched)
    found = run_simulation(Simulation(world=world, settings=settings, out=tmp_path / "there"))
    assert places == {DEVICE}
    for name, platform in expected["platforms"].items():
        other = found["platforms"][name]
        assert other["epsilon"] == platform["epsilon"]
        for stage in ("before", "federated"):
            assert other[stage] == pytest.approx(platform[stage], abs=2e-3), (name, stage)


@pretended_only
@pytest.mark.parametrize(("clipping", "waits"), [("fixed", 1), ("adaptive", 1)])
def test_a_step_waits_for_the_device_once_for_its_sum(
    world: World, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clipping: str, waits: int
) -> None:
    use(DEVICE, monkeypatch)
    run, train, reading, read, sent, steps = pretended_device._run, Trainer.run, False, 0, 0, 0

    def watched(operation: Any, args: Any, kwargs: Any) -> Any:
        nonlocal read, sent
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else ""
        read += reading and (to == "cpu" or operation is torch.ops.aten._local_scalar_dense.default)
        # `to` makes an empty tensor and copies into it; the third argument is non_blocking.
        copies = operation is torch.ops.aten.copy_.default and args[1].device.type == "cpu" and args[1].dim() > 0
        plain = copies and not (*args, False)[2]
        # An index that is left on the processor is copied, and waited for.
        indices = [at for at in args[1] if at is not None] if operation in INDEXING else []
        sent += reading and (plain or any(at.device.type == "cpu" for at in indices))
        return run(operation, args, kwargs)

    def training(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal reading, steps
        reading, steps = True, steps + kwargs["steps"]
        try:
            return train(self, *args, **kwargs)
        finally:
            reading = False

    monkeypatch.setattr(pretended_device, "_run", watched)
    monkeypatch.setattr(Trainer, "run", training)
    run_simulation(Simulation(world=world, settings=tiny_settings(training={"clipping": clipping}), out=tmp_path / "run"))
    assert steps > 0 and read == waits * steps
    assert not sent


@pytest.mark.usefixtures("float32", "no_float64")
def test_a_run_goes_on_from_one_device_to_another_and_recommends(
    world: World, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(CPU, monkeypatch)
    whole = run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "whole"))
    out = tmp_path / "run"

    def stop(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_simulation(Simulation(world=world, settings=tiny_settings(), out=out), events=stop)
    use(DEVICE, monkeypatch)
    resumed = run_simulation(Simulation(world=world, settings=tiny_settings(), out=out, resume=True))
    for name, platform in whole["platforms"].items():
        assert resumed["platforms"][name]["federated"] == pytest.approx(platform["federated"], abs=2e-3)
    model = pull_model(str(out), tmp_path / "pulled", unsigned=True).folder
    shop = load(world.platforms[0])
    there = recommend_items(shop, model=model, user="u3", rules=ListRules(top=4), cache=tmp_path / "there")
    use(CPU, monkeypatch)
    here = recommend_items(shop, model=model, user="u3", rules=ListRules(top=4), cache=tmp_path / "here")
    assert [one.item for one in there] == [one.item for one in here]
    assert [one.score for one in there] == pytest.approx([one.score for one in here], abs=1e-3)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_others_do_not_move_a_users_last_bits(tiny_bert: str, tmp_path: Path, fusion: str) -> None:
    require_rows_apart(tiny_bert, tmp_path, fusion=fusion, device=DEVICE)


@pytest.mark.skipif(DEVICE == CPU, reason="features lie there from the beginning")
@pytest.mark.parametrize(("bytes_", "there"), [(1 << 20, True), (30 * 4 * 2 - 1, False)])
def test_features_lie_on_the_device_where_it_has_room(monkeypatch: pytest.MonkeyPatch, bytes_: int, there: bool) -> None:
    monkeypatch.setattr("client.compute.resident_features.room", lambda place: bytes_)
    moved = list[torch.device]()
    flat, ends, rows = torch.randn(30, 4).to(torch.bfloat16), np.asarray([0, 4, 9, 30]), np.asarray([2, 0])
    made = Features(flat, ends, DEVICE, torch.float32)
    index = torch.Tensor.__getitem__

    def watched(self: torch.Tensor, key: Any) -> torch.Tensor:
        moved.append(self.device)
        return index(self, key)

    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    for _ in range(2):
        hidden, mask = made.gather(rows, length=21)
        assert hidden.device == mask.device == DEVICE and hidden.dtype == torch.float32
        assert torch.equal(hidden.cpu()[0], flat[9:].float()) and torch.equal(hidden.cpu()[1, :4], flat[:4].float())
    assert (DEVICE in moved) == there


def test_features_that_do_not_fit_after_all_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.compute.resident_features.room", lambda place: 1 << 20)
    monkeypatch.setattr("client.compute.resident_features.within_memory", lambda work, *, last: None)
    flat = torch.randn(30, 4).to(torch.bfloat16)
    hidden, _ = Features(flat, np.asarray([0, 4, 30]), DEVICE, torch.float32).gather(np.asarray([0]), length=5)
    assert torch.equal(hidden.cpu()[0, :4], flat[:4].float())
