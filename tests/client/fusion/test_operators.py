"""What every fusion operator must keep to, one contract for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.evaluation.ranking_metrics import exclusion, ranks
from client.examples.split import ragged
from client.fusion.operators import FUSIONS, fusion_named
from client.model.towers import Towers
from shared.base.errors import InputError
from shared.base.settings import ModelSettings
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder
from shared.protocol.quality import METRICS, mean_quality, per_user_metrics

WIDTHS = {"image": 5, "sound": 40}


@pytest.mark.parametrize("name", sorted(FUSIONS))
class TestContract:
    def parts(self, backbone: str, name: str, rows: int = 4):  # type: ignore[no-untyped-def]
        model = ModelSettings(backbone=backbone, layers=2)
        encoder = Encoder(load_backbone(backbone), model, device=torch.device("cpu"), dtype=torch.float32)
        towers = Towers(encoder, fusion_named(name))
        generator = torch.Generator().manual_seed(0)
        hidden, mask = torch.randn(rows, 6, 32, generator=generator), torch.ones(rows, 6, dtype=torch.bool)
        sources = {
            source: (torch.randn(rows, width, generator=generator), torch.ones(rows, dtype=torch.bool))
            for source, width in WIDTHS.items()
        }
        local = towers.fusion.initial(WIDTHS, 32, np.random.default_rng(0))
        return towers, hidden, mask, sources, local

    def test_vectors_are_of_norm_one(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        torch.testing.assert_close(towers.vectors(hidden, mask, sources, local).norm(dim=-1), torch.ones(4))

    def test_an_absent_source_says_nothing(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        nobody = {source: (values, torch.zeros(4, dtype=torch.bool)) for source, (values, _) in sources.items()}
        garbage = {source: (values * 1e3 + 5, torch.zeros(4, dtype=torch.bool)) for source, (values, _) in sources.items()}
        found, other = (towers.vectors(hidden, mask, these, local) for these in (nobody, garbage))
        torch.testing.assert_close(found, other)
        text = towers.vectors(hidden, mask, {}, {})
        width = text.shape[1]
        cosine = torch.nn.functional.cosine_similarity(found[:, :width], text)
        torch.testing.assert_close(cosine, torch.ones(4), atol=1e-4, rtol=0)

    def test_a_present_source_says_something_and_its_projector_learns(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        leaves = {key: value.clone().requires_grad_() for key, value in local.items()}
        vectors = towers.vectors(hidden, mask, sources, leaves)
        direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((vectors * direction).sum(), list(leaves.values()))
        assert leaves and all(gradient.abs().sum() > 0 for gradient in gradients)

    def test_rows_do_not_see_one_another(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        together = towers.vectors(hidden, mask, sources, local)
        for row in range(4):
            one = slice(row, row + 1)
            own = {source: (values[one], present[one]) for source, (values, present) in sources.items()}
            torch.testing.assert_close(towers.vectors(hidden[one], mask[one], own, local), together[one], atol=1e-5, rtol=1e-4)

    def test_a_copy_per_row_is_the_shared_one(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        copies = {key: value.expand(4, *value.shape) for key, value in local.items()}
        shared, copied = (towers.vectors(hidden, mask, sources, these) for these in (local, copies))
        torch.testing.assert_close(copied, shared, atol=1e-5, rtol=1e-5)

    def test_a_copy_per_row_is_that_rows_alone(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        generator = torch.Generator().manual_seed(4)
        copies = {key: torch.randn(4, *value.shape, generator=generator) for key, value in local.items()}
        together = towers.vectors(hidden, mask, sources, copies)
        for row in range(4):
            one = slice(row, row + 1)
            own = {source: (values[one], present[one]) for source, (values, present) in sources.items()}
            alone = towers.vectors(hidden[one], mask[one], own, {key: value[row] for key, value in copies.items()})
            torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-4)

    def test_some_absent(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        present = {"image": torch.tensor([True, True, False, False]), "sound": torch.tensor([True, False, True, False])}
        some = {source: (values, present[source]) for source, (values, _) in sources.items()}
        leaves = {key: value.clone().requires_grad_() for key, value in local.items()}
        found = towers.vectors(hidden, mask, some, leaves)
        assert (found.norm(dim=-1) <= 1 + 1e-5).all()
        if name != "vote":
            torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
        # A row with all sources is as it was, whatever the others lack.
        torch.testing.assert_close(found[0], towers.vectors(hidden, mask, sources, local)[0], atol=1e-5, rtol=1e-4)
        # The row without any teaches the projectors nothing, and nothing infinite comes of it.
        gradients = torch.autograd.grad(found[3].sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
        assert all(gradient is None or not gradient.any() for gradient in gradients)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(found.sum(), list(leaves.values())))

    def test_a_present_zero_has_a_finite_gradient(self, tiny_bert: str, name: str) -> None:
        # The lowest price is a source of value 0, not a missing one.
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        zero = {source: (torch.zeros_like(values), present) for source, (values, present) in sources.items()}
        leaves = {key: value.clone().requires_grad_() for key, value in local.items()}
        vectors = towers.vectors(hidden, mask, zero, leaves)
        assert torch.isfinite(vectors).all()
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(vectors.sum(), list(leaves.values())))

    def test_the_order_of_the_sources_does_not_matter(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, sources, local = self.parts(tiny_bert, name)
        turned = dict(reversed(sources.items()))
        assert torch.equal(towers.vectors(hidden, mask, turned, local), towers.vectors(hidden, mask, sources, local))

    def test_no_source_at_all(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, _, _ = self.parts(tiny_bert, name)
        assert towers.fusion.initial({}, 32, np.random.default_rng(0)) == {}
        torch.testing.assert_close(towers.vectors(hidden, mask, {}, {}).norm(dim=-1), torch.ones(4))


class TestProjectors:
    @pytest.mark.parametrize("width", [1, 5, 32, 40])
    @pytest.mark.parametrize("name", sorted(FUSIONS))
    def test_keep_cosines_before_any_training(self, name: str, width: int) -> None:
        local = fusion_named(name).initial({"image": width}, 32, np.random.default_rng(0))
        weight = local["source.image.weight"]
        assert weight.shape == (32, width)
        assert weight.dtype == torch.float32
        gram = weight.T @ weight if width <= 32 else weight @ weight.T
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(min(width, 32)), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", sorted(FUSIONS))
    def test_are_named_local_and_repeat_by_seed(self, name: str) -> None:
        first, again, other = (fusion_named(name).initial(WIDTHS, 32, np.random.default_rng(seed)) for seed in (0, 0, 1))
        # What begins so is never sent (`client/fusion/projector.py`).
        assert all(key.startswith("source.") for key in first)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["source.image.weight"], other["source.image.weight"])


class TestOperators:
    """What each operator says of itself, in numbers."""

    def parts(self) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        pooled = torch.randn(3, 8, generator=generator) * 5
        present = torch.tensor([True, True, False])
        sources = {
            "b": (torch.randn(3, 2, generator=generator), present),
            "a": (torch.randn(3, 4, generator=generator), ~present),
        }
        local = {
            "source.a.weight": torch.randn(8, 4, generator=generator),
            "source.b.weight": torch.randn(8, 2, generator=generator),
            "source.a.gate": torch.randn(1, 8, generator=generator),
            "source.b.gate": torch.randn(1, 8, generator=generator),
        }
        return pooled, sources, local

    def part(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pooled, sources, local = self.parts()
        source = "b" if row < 2 else "a"
        return (
            pooled[row] / pooled[row].norm(),
            local[f"source.{source}.weight"] @ sources[source][0][row],
            local[f"source.{source}.gate"][0],
        )

    @pytest.mark.parametrize("row", range(3))
    def test_concat_is_one_map_of_what_stands_side_by_side(self, row: int) -> None:
        pooled, sources, local = self.parts()
        text, part, _ = self.part(row)
        wide = torch.cat([torch.eye(8), local["source.a.weight"], local["source.b.weight"]], 1)
        values = {name: value[row] * present[row] for name, (value, present) in sources.items()}
        side = torch.cat([text, values["a"], values["b"]])
        expected = wide @ side
        torch.testing.assert_close(fusion_named("concat").combine(local, pooled, sources)[row], expected / expected.norm())
        torch.testing.assert_close(expected, text + part)

    @pytest.mark.parametrize("row", range(3))
    def test_average_is_the_direction_of_the_mean(self, row: int) -> None:
        pooled, sources, local = self.parts()
        text, part, _ = self.part(row)
        expected = (text + part / part.norm()) / 2
        torch.testing.assert_close(fusion_named("average").combine(local, pooled, sources)[row], expected / expected.norm())

    @pytest.mark.parametrize("row", range(3))
    def test_gated_opens_by_what_the_text_says(self, row: int) -> None:
        pooled, sources, local = self.parts()
        text, part, gate = self.part(row)
        expected = text + torch.sigmoid(gate @ text) * part
        torch.testing.assert_close(fusion_named("gated").combine(local, pooled, sources)[row], expected / expected.norm())

    def test_vote_is_the_mean_of_the_cosines(self) -> None:
        pooled, sources, local = self.parts()
        everywhere = {name: (value, torch.ones(3, dtype=torch.bool)) for name, (value, _) in sources.items()}
        vectors = fusion_named("vote").combine(local, pooled, everywhere)
        cosine = torch.nn.functional.cosine_similarity
        parts = [pooled, *(everywhere[name][0] @ local[f"source.{name}.weight"].T for name in ("a", "b"))]
        expected = sum(cosine(part[0], part[1], dim=0) for part in parts) / 3
        torch.testing.assert_close(vectors[0] @ vectors[1], expected)

    def test_attention_begins_quieter_than_a_word(self) -> None:
        local = fusion_named("attention").initial({"image": 6}, 32, np.random.default_rng(0))
        unit = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
        found = fusion_named("attention").tokens(local, {"image": (unit, torch.ones(5, dtype=torch.bool))})
        assert found is not None
        tokens, mask = found
        assert tokens.shape == (5, 1, 32)
        assert mask.all()
        torch.testing.assert_close(tokens.norm(dim=-1), torch.full((5, 1), 0.3 * 32**0.5))


def test_unknown_operator() -> None:
    with pytest.raises(InputError, match="attention"):
        fusion_named("magic")


class TestEvaluation:
    def test_against_a_slow_oracle(self) -> None:
        random = np.random.default_rng(0)
        scores = random.integers(0, 8, (40, 30)).astype(np.float32)  # ties on purpose
        targets = random.integers(0, 30, 40)
        excluded = [np.sort(np.setdiff1d(random.choice(30, 6, replace=False), [target])).astype(np.int32) for target in targets]
        mask = exclusion(ragged(excluded), np.arange(40), 30)
        rank, candidates = ranks(torch.from_numpy(scores), torch.from_numpy(targets), mask)
        expected = []
        for row in range(40):
            others = [scores[row, item] for item in range(30) if item not in excluded[row] and item != targets[row]]
            own = scores[row, targets[row]]
            expected.append(1 + sum(other > own for other in others) + sum(other == own for other in others) / 2)
            assert int(candidates[row]) == len(others) + 1
        assert rank.tolist() == expected
        found = mean_quality(rank.numpy(), candidates.numpy())
        gains = [1 / np.log2(r + 1) if r <= 10 else 0.0 for r in expected]
        assert found["ndcg@10"] == pytest.approx(np.mean(gains))
        assert found["hr@10"] == pytest.approx(np.mean([r <= 10 for r in expected]))
        aucs = [(int(c) - r) / (int(c) - 1) for r, c in zip(expected, candidates, strict=True)]
        assert found["auc"] == pytest.approx(np.mean(aucs))

    def test_every_users_part_is_bounded(self) -> None:
        parts = per_user_metrics(np.array([1.0, 5.5, 99.0]), np.array([1, 100, 99]))
        assert parts.shape == (3, len(METRICS)) and ((parts >= 0) & (parts <= 1)).all()

    def test_nobody(self) -> None:
        assert set(mean_quality(np.zeros(0), np.zeros(0, np.int64)).values()) == {0.0}
