"""What every fusion operator must keep to, one contract for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.evaluation import Quality, exclusion, per_user, quality, ranks
from client.fusion import FUSIONS, fusion_named
from client.objectives import CLICK_BIAS, Answers, click, initial_bias, softmax
from client.split import ragged
from client.towers import Towers
from shared.backbone import load_backbone
from shared.encoder import Encoder
from shared.errors import InputError
from shared.settings import ModelSettings

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

    def test_no_source_at_all(self, tiny_bert: str, name: str) -> None:
        towers, hidden, mask, _, _ = self.parts(tiny_bert, name)
        assert towers.fusion.initial({}, 32, np.random.default_rng(0)) == {}
        torch.testing.assert_close(towers.vectors(hidden, mask, {}, {}).norm(dim=-1), torch.ones(4))


def test_unknown_operator() -> None:
    with pytest.raises(InputError, match="attention"):
        fusion_named("magic")


class TestObjectives:
    def answers(self) -> Answers:
        excluded = torch.zeros(2, 5, dtype=torch.bool)
        excluded[0, 4] = True
        return Answers(targets=torch.tensor([[1, -1], [0, 3]]), excluded=excluded)

    def test_softmax_is_cross_entropy_over_the_candidates(self) -> None:
        scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
        loss = softmax(scores, self.answers(), {})
        first = torch.nn.functional.cross_entropy(scores[:1, :4], torch.tensor([1]))
        second = (
            torch.nn.functional.cross_entropy(scores[1:], torch.tensor([0]))
            + torch.nn.functional.cross_entropy(scores[1:], torch.tensor([3]))
        ) / 2
        torch.testing.assert_close(loss, torch.stack([first, second]))

    def test_click_is_binary_cross_entropy_over_the_candidates(self) -> None:
        scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
        loss = click(scores, self.answers(), {CLICK_BIAS: torch.tensor([0.3])})
        labels = torch.tensor([[0, 1, 0, 0, 0], [1, 0, 0, 1, 0]]).float()
        every = torch.nn.functional.binary_cross_entropy_with_logits(scores + 0.3, labels, reduction="none")
        torch.testing.assert_close(loss, torch.stack([every[0, :4].sum(), every[1].sum() / 2]))

    def test_click_begins_calibrated(self) -> None:
        prior = torch.log_softmax(torch.randn(50, generator=torch.Generator().manual_seed(0)), 0)
        bias = initial_bias(prior, 4)[CLICK_BIAS]
        assert float(torch.sigmoid(prior + bias).sum()) == pytest.approx(4, rel=1e-3)


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
        found = quality(rank.numpy(), candidates.numpy())
        gains = [1 / np.log2(r + 1) if r <= 10 else 0.0 for r in expected]
        assert found.ndcg == pytest.approx(np.mean(gains))
        assert found.hr == pytest.approx(np.mean([r <= 10 for r in expected]))
        aucs = [(int(c) - r) / (int(c) - 1) for r, c in zip(expected, candidates, strict=True)]
        assert found.auc == pytest.approx(np.mean(aucs))

    def test_every_users_part_is_bounded(self) -> None:
        parts = per_user(np.array([1.0, 5.5, 99.0]), np.array([1, 100, 99]))
        assert all(((part >= 0) & (part <= 1)).all() for part in parts)

    def test_nobody(self) -> None:
        assert quality(np.zeros(0), np.zeros(0, np.int64)) == Quality(ndcg=0.0, hr=0.0, auc=0.0, users=0)
