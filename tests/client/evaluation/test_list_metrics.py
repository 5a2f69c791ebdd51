"""Metrics of lists against trec_eval, and against sums over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from client.evaluation.list_metrics import LIST_METRICS, ItemFacts, JudgedLists, item_facts

ITEMS, USERS, LONGEST = 40, 60, 20


def ranking(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores, and one held-out item for every user."""
    random = np.random.default_rng(seed)
    return random.permuted(np.tile(np.arange(ITEMS, dtype=np.float32), (USERS, 1)), axis=1), random.integers(0, ITEMS, USERS)


def judged(scores: np.ndarray, held: np.ndarray) -> JudgedLists:
    order = np.argsort(-scores, axis=1)
    rank = 1.0 + (scores > scores[np.arange(USERS), held][:, None]).sum(1)
    return JudgedLists(items=order[:, :LONGEST].astype(np.int32), rank=rank)


def some_facts(seed: int, items: int = ITEMS) -> ItemFacts:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(items, 5))
    vectors[0] = 0.0
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return item_facts(random.integers(0, 50, items), scipy.sparse.csr_matrix(vectors), users=50)


@pytest.mark.parametrize("seed", range(5))
def test_trec_eval_says_the_same(seed: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores, held = ranking(seed)
    lists, facts = judged(scores, held), some_facts(seed)
    truth = {f"u{user}": {f"i{item}": 1} for user, item in enumerate(held.tolist())}
    run = {f"u{user}": {f"i{item}": float(score) for item, score in enumerate(row)} for user, row in enumerate(scores)}
    oracle = pytrec_eval.RelevanceEvaluator(truth, {"ndcg_cut.5,10,20", "success.5,10,20", "recip_rank"}).evaluate(run)
    for k in (5, 10, 20):
        for metric, theirs in (("ndcg", f"ndcg_cut_{k}"), ("hr", f"success_{k}")):
            mine = LIST_METRICS[metric].per_user(lists, facts, k)
            np.testing.assert_allclose(mine, [oracle[f"u{user}"][theirs] for user in range(USERS)], atol=1e-9)
        # trec_eval's reciprocal rank has no cut: a run that ends after k items has.
        cut = {user: dict(sorted(found.items(), key=lambda one: -one[1])[:k]) for user, found in run.items()}
        reciprocal = pytrec_eval.RelevanceEvaluator(truth, {"recip_rank"}).evaluate(cut)
        mine = LIST_METRICS["mrr"].per_user(lists, facts, k)
        np.testing.assert_allclose(mine, [reciprocal[f"u{user}"]["recip_rank"] for user in range(USERS)], atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_diversity_novelty_and_coverage_are_their_definitions(k: int) -> None:
    scores, held = ranking(7)
    lists, facts = judged(scores, held), some_facts(3)
    lists.items[0, 3:], lists.items[1] = -1, -1  # a short list, and an empty one
    diversity = LIST_METRICS["diversity"].per_user(lists, facts, k)
    novelty = LIST_METRICS["novelty"].per_user(lists, facts, k)
    cosine = (facts.vectors @ facts.vectors.T).toarray()
    for user, row in enumerate(lists.items[:, :k]):
        shown = row[row >= 0]
        pairs = [1.0 - cosine[a, b] for at, a in enumerate(shown) for b in shown[at + 1 :]]
        assert diversity[user] == pytest.approx(np.mean(pairs)) if pairs else np.isnan(diversity[user])
        bits = [-np.log2(facts.popularity[item]) for item in shown]
        assert novelty[user] == pytest.approx(np.mean(bits)) if bits else np.isnan(novelty[user])
    shown = {item for row in lists.items[:, :k].tolist() for item in row if item >= 0}
    assert LIST_METRICS["coverage"].pooled(lists.items[:, :k], facts) == pytest.approx(len(shown) / ITEMS)


def test_no_item_is_impossible_and_none_more_than_certain() -> None:
    facts = item_facts(np.array([0, 4, 9]), scipy.sparse.eye(3), users=4)
    assert facts.popularity.tolist() == [0.2, 1.0, 1.0]
