"""The attack on private training: it proves no more than is claimed of a correct run, and more of a broken one.

Under local noise on one platform; under the secure sum on one of three, whose sum alone is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import Mechanism
from client.privacy.noise_sources import SeededNoise
from client.run import secure_session
from client.training.trainer import Trainer
from shared.base.errors import InputError
from shared.secagg.fixed_point import FixedPoint
from simulations.attack.attack_report import View, view_of
from simulations.attack.gradient_canaries import GradientCanaries
from simulations.attack.update_attack import UpdateAttack, attack_updates
from simulations.commands import settings_from
from simulations.worlds.generated import write_world
from simulations.worlds.world import World, open_world

CLAIM = 3.0
ONCE = {"rounds": 1, "training.local_steps": 1, "training.sample_rate": 1.0}
"""One step of everybody: nothing is amplified, so that bounds come closest to the claim."""
OFTEN = {"rounds": 3, "training.local_steps": 3, "training.sample_rate": 0.3}
Attack = Callable[..., UpdateAttack]


@pytest.fixture(scope="module")
def platforms(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, seed=1, scale=0.4)
    return open_world(folder)


@pytest.fixture
def world(platforms: World) -> World:
    return World(folder=platforms.folder, platforms=platforms.platforms[:1])


@pytest.fixture
def attack(platforms: World, world: World, tiny_bert: str, tmp_path: Path) -> Attack:
    def run(*, epsilon: float = CLAIM, summed: bool = False, **over: Any) -> UpdateAttack:
        among = World(folder=platforms.folder, platforms=platforms.platforms[:3]) if summed else world
        words = {
            "strategy": "secure-sum" if summed else "fedavg",
            "model.backbone": tiny_bert,
            "model.layers": 2,
            "model.rank": 2,
            "model.item_tokens": 12,
            "model.user_tokens": 24,
            "training.views": 1,
            "training.targets": 2,
            "privacy.noise": "distributed" if summed else "local",
            "privacy.epsilon": epsilon,
            "privacy.accept_noise": True,
            "server.minimum_platforms": 3 if summed else 1,
            **over,
        }
        return attack_updates(among, settings_from(None, [f"{key}={value}" for key, value in words.items()]), tmp_path / "run")

    return run


def best(found: UpdateAttack) -> float:
    return max(views(found).values(), key=lambda view: view.bound).bound


def views(found: UpdateAttack) -> dict[str, View]:
    scores = {"white": found.white_box, "differences": found.differences, "black": found.black_box}
    return {name: view_of(one, found.delta, among=len(scores)) for name, one in scores.items()}


@pytest.mark.parametrize("plan", [ONCE, OFTEN], ids=["once", "often"])
def test_a_correct_run_is_not_refuted(attack: Attack, plan: dict[str, Any]) -> None:
    found = attack(**plan)
    assert 0.9 * CLAIM < found.epsilon <= CLAIM
    assert best(found) < found.epsilon
    assert views(found)["white"].area > 0.52
    score, inside = found.white_box.score, found.white_box.inside
    steps = plan["rounds"] * plan["training.local_steps"]
    # Each canary that is in adds its bound to each step that it is drawn for.
    expected = steps * plan["training.sample_rate"]
    assert score[inside].mean() - score[~inside].mean() == pytest.approx(expected, abs=0.3 * expected + 0.3)


def test_on_a_claim_of_8_the_white_box_proves_at_least_2(attack: Attack) -> None:
    found = attack(epsilon=8.0, **ONCE)
    assert 7 < found.epsilon <= 8
    view = view_of(found.white_box, found.delta)
    assert 2 <= view.bound < found.epsilon and found.cosine > 2


def no_noise(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(Mechanism, "privatise", lambda self, total, random: (_mean(self, total), self))


def a_quarter_of_the_noise(patched: pytest.MonkeyPatch) -> None:
    real = Mechanism.privatise

    def quarter(self: Mechanism, total: BoundedSum, random: Any) -> Any:
        noised, following = real(self, total, random)
        exact = _mean(self, total)
        return {name: exact[name] + (noised[name] - exact[name]) / 4 for name in noised}, following

    patched.setattr(Mechanism, "privatise", quarter)


def no_clipping(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(Mechanism, "weights", lambda self, squared_norms: squared_norms * 0 + 1)


def unbounded_influence(patched: pytest.MonkeyPatch, *, times: int = 4) -> None:
    """Each user who is drawn counts four times."""
    real = Mechanism.sample
    patched.setattr(Mechanism, "sample", lambda self, present, random: np.repeat(real(self, present, random), times))


def yet_more_influence(patched: pytest.MonkeyPatch) -> None:
    """Each user counts eight times: the noise of three platforms is more than two of them were planned to need."""
    unbounded_influence(patched, times=8)


def clipping_per_sequence(patched: pytest.MonkeyPatch) -> None:
    """Each of a user's four sequences is clipped by itself."""
    picked, gradients = Trainer.picked, GradientCanaries.gradients
    patched.setattr(Trainer, "picked", lambda self, users, random: picked(self, users, random).reshape(-1, 1))
    patched.setattr(GradientCanaries, "gradients", lambda self, drawn, shapes: gradients(self, np.repeat(drawn, 4), shapes))


def fixed_batches(patched: pytest.MonkeyPatch) -> None:
    """The same users, here all of them, in every step, which is accounted as a Poisson sample."""
    patched.setattr(Mechanism, "sample", lambda self, present, random: np.arange(present))


def the_same_noise_in_every_step(patched: pytest.MonkeyPatch) -> None:
    """A seed that does not depend on the round."""
    real = Mechanism.privatise
    patched.setattr(Mechanism, "privatise", lambda self, total, random: real(self, total, SeededNoise("again")))


@pytest.mark.parametrize(
    ("plant", "plan"),
    [
        (no_noise, ONCE),
        (a_quarter_of_the_noise, ONCE),
        (no_clipping, ONCE),
        (unbounded_influence, ONCE),
        (clipping_per_sequence, {**ONCE, "training.sequences": 4}),
        (fixed_batches, {**OFTEN, "rounds": 5, "training.local_steps": 8, "training.sample_rate": 0.2}),
        (the_same_noise_in_every_step, OFTEN),
    ],
)
def test_a_planted_fault_is_refuted(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], plan: dict[str, Any]
) -> None:
    with monkeypatch.context() as patched:
        plant(patched)
        found = attack(**plan)
    assert found.epsilon <= CLAIM < best(found)  # and the ledger knows nothing of it


SUMMED = {"rounds": 1, "training.sample_rate": 1.0, "summed": True}


def test_a_correct_secure_sum_is_not_refuted(attack: Attack) -> None:
    found = attack(**SUMMED)
    assert 0.9 * CLAIM < found.epsilon <= CLAIM and best(found) < found.epsilon
    score, inside = found.white_box.score, found.white_box.inside
    # What the users of all three platforms added is taken off, but for the canaries: each that is in adds its bound.
    assert score[inside].mean() - score[~inside].mean() == pytest.approx(1.0, abs=0.5)
    assert abs(score[~inside].mean()) < 0.5


def test_on_a_claim_of_8_the_white_box_proves_at_least_2_of_a_secure_sum(attack: Attack) -> None:
    found = attack(epsilon=8.0, **SUMMED)
    assert 7 < found.epsilon <= 8
    assert 2 <= view_of(found.white_box, found.delta).bound < found.epsilon


def shares_that_are_too_small(patched: pytest.MonkeyPatch) -> None:
    """Each platform adds a share of a 36th of the variance that it should."""
    real = secure_session.noised_steps

    def less(vector: Any, point: FixedPoint, random: Any) -> Any:
        exact = np.clip(np.rint(np.asarray(vector) * point.scale), -point.box, point.box)  # what is cut is no noise
        return np.rint(exact + (real(vector, point, random) - exact) / 6).astype(np.int64)

    patched.setattr(secure_session, "noised_steps", less)


@pytest.mark.parametrize("plant", [shares_that_are_too_small, no_clipping, yet_more_influence])
def test_a_planted_fault_of_a_secure_sum_is_refuted(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patched:
        plant(patched)
        found = attack(**SUMMED)
    assert found.epsilon <= CLAIM < best(found)


def test_what_cannot_be_attacked(attack: Attack, world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train nothing"):
        attack_updates(world, settings_from(None, ["strategy=preferences"]), tmp_path / "a")
    with pytest.raises(InputError, match="other factors in other rounds"):
        attack(strategy="rolora", **{**OFTEN, "training.sample_rate": 1.0})
    with pytest.raises(InputError, match="no platform"):
        attack_updates(world, settings_from(None, ["strategy=fedavg", "privacy.noise=local"]), tmp_path / "b", platform="nobody")


def _mean(mechanism: Mechanism, total: BoundedSum) -> dict[str, Any]:
    return {name: (part / mechanism.expected_batch).float() for name, part in total.parts.items()}
