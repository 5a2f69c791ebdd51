"""The losses: against torch's own, over the candidates alone, finite at every edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.training.losses import CLICK_BIAS, OBJECTIVES, Answers, click, click_bias, initial_bias, softmax

LOCAL = {CLICK_BIAS: torch.tensor([0.3])}


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Tensor, Answers]:
    """Scores of some rows with targets (some padded) and exclusions (never a target)."""
    rows, items, most = draw(st.integers(1, 4)), draw(st.integers(2, 9)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = np.full((rows, most), -1)
    excluded = np.zeros((rows, items), bool)
    for row in range(rows):
        own = random.permutation(items)[: random.integers(1, min(most, items) + 1)]
        targets[row, : len(own)] = own
        excluded[row] = random.random(items) < 0.4
        excluded[row, own] = False
    scores = torch.from_numpy(random.normal(0, 4, (rows, items)))
    return scores, Answers(targets=torch.from_numpy(targets), excluded=torch.from_numpy(excluded))


def own(answers: Answers, row: int) -> list[int]:
    return [int(target) for target in answers.targets[row] if target >= 0]


@given(drawn())
@settings(deadline=None)
def test_softmax_is_cross_entropy_over_the_candidates(case: tuple[Tensor, Answers]) -> None:
    scores, answers = case
    found = softmax(scores, answers, {})
    for row in range(len(scores)):
        candidates = (~answers.excluded[row]).nonzero().flatten().tolist()
        each = [
            F.cross_entropy(scores[row, candidates][None], torch.tensor([candidates.index(item)])) for item in own(answers, row)
        ]
        torch.testing.assert_close(found[row], torch.stack(each).mean())


@given(drawn())
@settings(deadline=None)
def test_click_is_binary_cross_entropy_over_the_candidates(case: tuple[Tensor, Answers]) -> None:
    scores, answers = case
    found = click(scores, answers, LOCAL)
    for row in range(len(scores)):
        labels = torch.zeros(scores.shape[1], dtype=scores.dtype)
        labels[own(answers, row)] = 1.0
        every = F.binary_cross_entropy_with_logits(scores[row] + 0.3, labels, reduction="none")
        torch.testing.assert_close(found[row], every[~answers.excluded[row]].sum() / len(own(answers, row)))


@pytest.mark.parametrize("name", OBJECTIVES)
class TestContract:
    @given(drawn())
    @settings(deadline=None, max_examples=30)
    def test_what_is_excluded_has_no_part(self, name: str, case: tuple[Tensor, Answers]) -> None:
        scores, answers = case
        leaf = scores.clone().requires_grad_()
        loss = OBJECTIVES[name](leaf, answers, LOCAL)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert torch.isfinite(gradient).all()
        assert not gradient[answers.excluded].any()
        other = torch.where(answers.excluded, torch.full_like(scores, 55.0), scores)
        torch.testing.assert_close(OBJECTIVES[name](other, answers, LOCAL), loss.detach())

    @given(drawn())
    @settings(deadline=None, max_examples=30)
    def test_padding_of_the_targets_has_no_part(self, name: str, case: tuple[Tensor, Answers]) -> None:
        scores, answers = case
        more = Answers(targets=F.pad(answers.targets, (0, 3), value=-1), excluded=answers.excluded)
        assert torch.equal(OBJECTIVES[name](scores, more, LOCAL), OBJECTIVES[name](scores, answers, LOCAL))

    @given(drawn())
    @settings(deadline=None, max_examples=30)
    def test_rows_do_not_see_one_another(self, name: str, case: tuple[Tensor, Answers]) -> None:
        scores, answers = case
        together = OBJECTIVES[name](scores, answers, LOCAL)
        for row in range(len(scores)):
            one = slice(row, row + 1)
            alone = Answers(targets=answers.targets[one], excluded=answers.excluded[one])
            torch.testing.assert_close(OBJECTIVES[name](scores[one], alone, LOCAL), together[one])

    def test_a_better_score_of_the_target_is_a_smaller_loss(self, name: str) -> None:
        answers = Answers(targets=torch.tensor([[2, -1]]), excluded=torch.zeros(1, 4, dtype=torch.bool))
        scores = torch.zeros(1, 4)
        better = scores.clone()
        better[0, 2] = 1.0
        worse = scores.clone()
        worse[0, 1] = 1.0
        values = [float(OBJECTIVES[name](these, answers, LOCAL)) for these in (better, scores, worse)]
        assert values == sorted(values)
        assert len(set(values)) == 3

    def test_great_scores_are_finite(self, name: str) -> None:
        answers = Answers(targets=torch.tensor([[0], [1]]), excluded=torch.zeros(2, 3, dtype=torch.bool))
        scores = torch.tensor([[500.0, -500.0, 0.0], [500.0, -500.0, 0.0]], requires_grad=True)
        loss = OBJECTIVES[name](scores, answers, LOCAL)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), scores)[0]).all()

    def test_a_row_without_targets_has_no_infinite_gradient(self, name: str) -> None:
        # -1 is read as item 0, which is excluded here: -inf must not reach the sum.
        excluded = torch.tensor([[True, False, False]])
        scores = torch.zeros(1, 3, requires_grad=True)
        loss = OBJECTIVES[name](scores, Answers(targets=torch.tensor([[-1, -1]]), excluded=excluded), LOCAL)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), scores)[0]).all()


class TestClickBias:
    @given(seed=st.integers(0, 999), items=st.integers(2, 80), targets=st.integers(1, 6))
    @settings(deadline=None, max_examples=40)
    def test_begins_calibrated(self, seed: int, items: int, targets: int) -> None:
        prior = torch.log_softmax(torch.randn(items, generator=torch.Generator().manual_seed(seed)) * 3, 0)
        bias = initial_bias(prior, targets)[CLICK_BIAS]
        assert bias.shape == (1,)
        expected = min(targets, items)
        assert float(torch.sigmoid(prior + bias).sum()) == pytest.approx(expected, rel=1e-3)

    def test_the_loss_is_least_at_the_calibrated_probability(self) -> None:
        # Ten items of equal score, two targets: the best constant probability is 2 / 10.
        answers = Answers(targets=torch.tensor([[3, 7]]), excluded=torch.zeros(1, 10, dtype=torch.bool))
        bias = torch.zeros(1, requires_grad=True)
        for _ in range(400):
            (gradient,) = torch.autograd.grad(click(torch.zeros(1, 10), answers, {CLICK_BIAS: bias}).sum(), bias)
            bias = (bias - 0.5 * gradient).detach().requires_grad_()
        assert float(torch.sigmoid(bias.detach())) == pytest.approx(0.2, abs=1e-3)

    def test_one_shared_or_one_for_each_row(self) -> None:
        shared = click_bias({CLICK_BIAS: torch.tensor([0.5])}, 3)
        copies = click_bias({CLICK_BIAS: torch.tensor([0.5]).expand(3, 1)}, 3)
        assert shared.shape == copies.shape == (3, 1)
        assert torch.equal(shared, copies)
        assert click_bias({CLICK_BIAS: torch.tensor([[1.0], [2.0]])}, 2).flatten().tolist() == [1.0, 2.0]
