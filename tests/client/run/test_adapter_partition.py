"""A platform's part in the adapter: what it sends at its own rank, what stays, and what no request can make it send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.run import local_session
from client.run.adapter_partition import Part
from client.run.run_state import load_run_state, save_run_state
from client.training.per_user_gradients import user_gradients
from shared.base.errors import InputError, PrivacyError, ProtocolError
from shared.base.settings import Settings
from shared.model.adapter import drawn, initial
from shared.model.backbone import load_backbone, shape_of
from shared.model.fixed_factors import core_factors
from shared.protocol.flower_records import to_record
from shared.protocol.messages import Answer, Evaluate, Factors, Join, Joined, Label, Metrics, Reason, Refusal, Train, Update
from tests.support.asking import Asking

Write = Callable[..., Path]
Make = Callable[..., Settings]
CANARY = 1234.5678


class Bench(Asking):
    """A worker that trains and evaluates."""

    def train(self, round_: int, factors: Factors, adapter: Any = None) -> Any:
        return self.ask(Train, round=round_, factors=factors, adapter=initial(self.settings) if adapter is None else adapter)

    def evaluate(self, adapter: Any = None) -> Any:
        adapter = initial(self.settings) if adapter is None else adapter
        return self.ask(Evaluate, round=0, label=Label.FEDERATED, adapter=adapter)


@pytest.fixture
def bench(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*, rank: int | None = None, **over: Any) -> Bench:
        path = write_platform(declared=41)
        if rank is not None:
            path.write_text(path.read_text().replace("users = 41", f"users = 41\nrank = {rank}"))
        made.append(Bench(path, tiny_settings(**{"rounds": 4, **over}), tmp_path / f"b{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        each.worker.close()


def expect(kind: type[Any], answer: Answer, bench: Bench) -> Any:
    assert isinstance(answer, kind), (answer, bench.worker.failure)
    return answer


class TestFedSA:
    def test_b_is_trained_remembered_and_never_leaves(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="fedsa")
        expect(Joined, made.ask(Join), made)
        expect(Update, made.train(1, Factors.A), made)
        known = load_run_state(made.memory)
        assert known is not None
        kept = {name: value for name, value in known.local.items() if name.endswith("lora_B")}
        assert len(kept) == 5 and all(value.any() for value in kept.values())
        # A canary in B, and then everything that this platform can be asked.
        made.worker.close()
        for value in kept.values():
            value.fill_(CANARY)
        save_run_state(made.memory, known)
        made.restart()
        expect(Update, made.train(1, Factors.A), made)
        expect(Metrics, made.evaluate(), made)
        expect(Joined, made.ask(Join), made)
        for factors in (Factors.B, Factors.BOTH, Factors.R):
            assert expect(Refusal, made.train(2, factors), made).reason is Reason.MESSAGE
        update = expect(Update, made.train(2, Factors.A), made)
        assert all(name.endswith("lora_A") for name in update.change)
        after = load_run_state(made.memory)
        assert after is not None
        held = [value for name, value in after.local.items() if name.endswith("lora_B")]
        # The canary is still there, but for a step of training, and nothing that left came near it.
        assert all((value - CANARY).abs().max() < 1 for value in held)
        secrets = {np.float32(number).tobytes() for value in held for number in value.flatten()} | {np.float32(CANARY).tobytes()}
        for answer in made.left:
            content = b"".join(
                array.numpy().tobytes() for record in to_record(answer).array_records.values() for array in record.values()
            )
            assert not any(secret in content for secret in secrets)
            assert all(np.abs(array).max() < 100 for array in getattr(answer, "change", {}).values())

    def test_the_platforms_own_b_recommends(self, bench: Callable[..., Bench]) -> None:
        """The coordinator's B is zero: an evaluation that used it would not change with training."""
        made = bench(strategy="fedsa", training={"local_steps": 12, "learning_rate": 0.2}, privacy={"epsilon": "inf"})
        before = expect(Metrics, made.evaluate(), made)
        for round_ in (1, 2):
            expect(Update, made.train(round_, Factors.A), made)
        after = expect(Metrics, made.evaluate(), made)
        assert before.quality != after.quality

    def test_what_the_coordinator_sends_for_b_is_not_used(self, bench: Callable[..., Bench]) -> None:
        one, other = bench(strategy="fedsa"), bench(strategy="fedsa")
        loud = {name: value + (9.0 if name.endswith("lora_B") else 0.0) for name, value in initial(one.settings).items()}
        loud = {name: value.astype(np.float32) for name, value in loud.items()}
        plain, shouted = one.train(1, Factors.A), other.train(1, Factors.A, adapter=loud)
        for name, value in expect(Update, plain, one).change.items():
            np.testing.assert_array_equal(value, expect(Update, shouted, other).change[name])


class TestRanks:
    def test_a_platform_trains_and_sends_its_own_rank(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="svd", rank=2, model={"rank": 5})
        assert expect(Joined, made.ask(Join), made).rank == 2
        own = {name: value[:2] if name.endswith("A") else value[:, :2] for name, value in initial(made.settings).items()}
        update = expect(Update, made.train(1, Factors.BOTH, adapter=own), made)
        assert {min(value.shape) for value in update.change.values()} == {2}
        expect(Metrics, made.evaluate(), made)  # the whole global model
        assert expect(Refusal, made.train(2, Factors.BOTH), made).reason is Reason.MESSAGE  # not the rank that was agreed

    def test_a_rank_above_the_runs_is_the_runs(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="svd", rank=64)
        assert expect(Joined, made.ask(Join), made).rank == 2

    def test_a_run_of_one_rank_that_is_too_large_is_refused(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="fedavg", rank=1)
        assert expect(Refusal, made.ask(Join), made).reason is Reason.SETTINGS
        assert isinstance(made.worker.failure, PrivacyError) and "svd" in made.worker.failure.do


class TestWhatIsSent:
    @pytest.mark.parametrize(
        ("strategy", "factors"),
        [("fedavg", Factors.BOTH), ("ffa", Factors.B), ("rolora", Factors.A), ("fedsb", Factors.R), ("exact", Factors.BOTH)],
    )
    def test_only_the_factors_asked_for(self, bench: Callable[..., Bench], strategy: str, factors: Factors) -> None:
        made = bench(strategy=strategy)
        update = expect(Update, made.train(1, factors), made)
        letters = {name[-1].lower() for name in update.change}
        assert letters == set(factors.value)
        assert any(value.any() for value in update.change.values())

    def test_a_residual_is_used_and_never_trained(self, bench: Callable[..., Bench]) -> None:
        one, other = bench(strategy="exact"), bench(strategy="exact")
        name = "encoder.layer.2.attention.self.value"
        random = np.random.default_rng(0)
        residual = {
            f"{name}.residual_A": random.normal(size=(3, 32)).astype(np.float32),
            f"{name}.residual_B": random.normal(size=(32, 3)).astype(np.float32),
        }
        plain = expect(Update, one.train(1, Factors.BOTH), one)
        beside = expect(Update, other.train(1, Factors.BOTH, adapter={**initial(one.settings), **residual}), other)
        assert plain.change.keys() == beside.change.keys() == initial(one.settings).keys()
        assert any((plain.change[key] != beside.change[key]).any() for key in plain.change)
        bad = {**initial(one.settings), f"{name}.residual_A": residual[f"{name}.residual_A"]}
        assert expect(Refusal, other.train(2, Factors.BOTH, adapter=bad), other).reason is Reason.MESSAGE

    def test_a_residual_in_a_run_without_one_is_refused(self, bench: Callable[..., Bench]) -> None:
        made = bench(strategy="fedavg")
        more = {"head.residual_A": np.ones((1, 32), np.float32), "head.residual_B": np.ones((32, 1), np.float32)}
        assert expect(Refusal, made.train(1, Factors.BOTH, adapter={**initial(made.settings), **more}), made)

    def test_turned_factors_begin_without_moments(self, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[set[str]] = []
        adam = local_session.Adam

        def watched(*, moments: Any = None, **rest: Any) -> Any:
            seen.append(set(moments or {}))
            return adam(moments=moments, **rest)

        monkeypatch.setattr(local_session, "Adam", watched)
        for strategy, kept in (("flora", False), ("exact", True)):
            made = bench(strategy=strategy)
            for round_ in (1, 2):
                expect(Update, made.train(round_, Factors.BOTH), made)
            assert any("lora_A" in name for name in seen[-1]) is kept

    @pytest.mark.parametrize("engine", ["batched", "opacus"])
    def test_a_core_learns_under_both_engines(self, bench: Callable[..., Bench], engine: str) -> None:
        made = bench(strategy="fedsb", training={"engine": engine})
        expect(Joined, made.ask(Join), made)
        update = expect(Update, made.train(1, Factors.R), made)
        assert all(value.shape == (2, 2) and value.any() for value in update.change.values())


class TestPart:
    def part(self, settings: Settings, rank: int | None = None) -> Part:
        return Part.of(settings, shape_of(settings.model.backbone), rank=rank)

    @pytest.mark.parametrize(
        ("strategy", "learning"), [("fedavg", 640), ("ffa", 320), ("rolora", 320), ("fedsa", 320), ("fedsb", 20), ("svd", 640)]
    )
    def test_the_noise_has_the_dimension_of_what_a_round_trains(self, tiny_settings: Make, strategy: str, learning: int) -> None:
        assert self.part(tiny_settings(strategy=strategy)).learning == learning

    def test_kept_factors_are_in_no_message(self, tiny_settings: Make) -> None:
        part = self.part(tiny_settings(strategy="fedsa"))
        assert len(part.kept) == 5
        assert not set(part.kept) & set(part.sent(Factors.A))
        with pytest.raises(ProtocolError, match="stays"):
            part.sent(Factors.BOTH)

    def test_initial_is_a_slice_of_the_whole(self, tiny_settings: Make) -> None:
        settings = tiny_settings(strategy="svd", model={"rank": 6})
        own, whole = self.part(settings, rank=3).initial(), initial(settings)
        for name, value in own.items():
            np.testing.assert_array_equal(value, whole[name][:3] if name.endswith("A") else whole[name][:, :3])


class TestCoreFactors:
    @pytest.mark.parametrize(("rank", "ends"), [(4, [0, 1, -2, -1]), (3, [0, 1, -1]), (1, [0])])
    def test_they_are_both_ends_of_the_weights_spectrum(
        self, tiny_settings: Make, tiny_bert: str, rank: int, ends: list[int]
    ) -> None:
        settings = tiny_settings(strategy="fedsb", model={"targets": "intermediate,output", "rank": rank})
        backbone = load_backbone(tiny_bert)
        factors = core_factors(settings, backbone)
        for name in ("encoder.layer.1.intermediate.dense", "encoder.layer.2.output.dense"):
            a, b = factors[f"{name}.lora_A"].astype(float), factors[f"{name}.lora_B"].astype(float)
            weight = backbone.weights[f"{name}.weight"].double().numpy()
            np.testing.assert_allclose(a @ a.T, np.eye(rank) / 3, atol=1e-6)
            np.testing.assert_allclose(b.T @ b, np.eye(rank) * len(b) / rank, atol=1e-5)
            sizes = np.linalg.svd(weight, compute_uv=False)[ends]
            core = b.T @ weight @ a.T * np.sqrt(3) / np.sqrt(len(b) / rank)
            np.testing.assert_allclose(core, np.diag(sizes), atol=1e-4)

    def test_a_weight_without_directions_is_refused(self, tiny_settings: Make, tiny_bert: str) -> None:
        backbone = load_backbone(tiny_bert)
        name = "encoder.layer.2.attention.self.query.weight"
        for flat in (torch.eye(32), torch.zeros(32, 32), torch.diag(torch.tensor([9.0, 8.0] + [0.0] * 30))):
            spoilt = replace(backbone, weights={**backbone.weights, name: flat})
            with pytest.raises(InputError, match="equal"):
                core_factors(tiny_settings(strategy="fedsb", model={"rank": 6}), spoilt)

    def test_everybody_makes_the_same(self, tiny_settings: Make, tiny_bert: str) -> None:
        backbone = load_backbone(tiny_bert)
        one, other = (core_factors(tiny_settings(strategy="fedsb", seed=seed), backbone) for seed in (3, 3))
        assert all((one[name] == other[name]).all() for name in one)
        # Another processor's SVD may give the other sign; ours is by the largest entry.
        flipped = core_factors(tiny_settings(strategy="fedsb", seed=3), backbone)
        assert all(
            value[np.abs(value).argmax(0), range(value.shape[1])].min() > 0
            for name, value in flipped.items()
            if name.endswith("B")
        )

    def test_a_rank_above_the_maps_is_filled_with_zeros(self, tiny_settings: Make, tiny_bert: str) -> None:
        factors = core_factors(tiny_settings(strategy="fedsb", model={"rank": 40}), load_backbone(tiny_bert))
        assert factors["head.lora_A"].shape == (40, 32) and not factors["head.lora_A"][32:].any()

    def test_core_and_factors_are_not_in_the_message(self, tiny_settings: Make) -> None:
        start = initial(tiny_settings(strategy="fedsb"))
        assert {name[-1] for name in start} == {"R"} and not any(value.any() for value in start.values())
        assert drawn({"x.lora_A": (2, 3)}, seed=0, again=1)["x.lora_A"].any()


class TestGradients:
    """Per-user gradients beside a residual, and through a core, against plain autograd one user at a time."""

    @pytest.mark.parametrize("form", ["residual", "core", "residual and core"])
    @pytest.mark.parametrize("targets", ["query,value", "key,intermediate,output,attention_output"])
    def test_are_each_users_own(self, make_toy: Any, form: str, targets: str) -> None:
        toy = make_toy(rows=4, length=7, targets=targets)
        random = np.random.default_rng(5)
        trained = [name for name in toy.parameters if ".lora_" in name]
        for name in [name.removesuffix(".lora_A") for name in trained if name.endswith(".lora_A")]:
            inner, out = toy.parameters[f"{name}.lora_A"].shape[1], toy.parameters[f"{name}.lora_B"].shape[0]
            extra: dict[str, tuple[int, int]] = {}
            if "residual" in form:
                extra |= {f"{name}.residual_A": (5, inner), f"{name}.residual_B": (out, 5)}
            if "core" in form:
                extra |= {f"{name}.lora_R": (2, 2)}
            toy.parameters |= {
                key: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for key, shape in extra.items()
            }
        if "core" in form:
            trained = [name for name in toy.parameters if name.endswith("lora_R")]
        fixed = {name: value for name, value in toy.parameters.items() if name not in trained}
        losses = toy.losses()
        together = user_gradients(lambda copies: losses({**fixed, **copies}), {name: toy.parameters[name] for name in trained}, 4)
        for user, alone in enumerate(toy.one_by_one(trained)):
            for name in trained:
                torch.testing.assert_close(together[name][user], alone[name], atol=1e-4, rtol=1e-3)
                assert alone[name].abs().sum() > 0
