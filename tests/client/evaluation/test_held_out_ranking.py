"""Ranks of held-out items, against plain numpy: for every user that has one, in the order of the users, once each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config.platform_file import load
from client.evaluation.held_out_ranking import held_out_ranks
from client.fusion.operators import fusion_named
from client.model.prepared_platform import PreparedPlatform, prepare
from shared.base.settings import Settings
from shared.model.adapter import initial

USERS, ITEMS = 600, 14
"""More users than are ranked at a time, twice over."""
TWINS = {2, 3}
"""Two items that nobody can tell apart."""


class World:
    """A platform, a model's parameters, and everything that a ranking follows from."""

    def __init__(self, platform: PreparedPlatform, settings: Settings) -> None:
        random = np.random.default_rng(5)
        self.platform, self.settings = platform, settings
        self.parameters = {name: torch.from_numpy(value) for name, value in initial(settings).items()}
        for name in self.parameters:
            self.parameters[name] = torch.from_numpy(random.normal(0, 0.3, self.parameters[name].shape).astype(np.float32))
        self.parameters |= fusion_named(settings.model.fusion).initial({}, platform.towers.encoder.hidden, random)
        self.bank = platform.towers.encode(platform.items, self.parameters)
        self.bank[3] = self.bank[2]
        self.prior = torch.from_numpy(random.normal(0, 2, ITEMS).astype(np.float32))
        self.prior[3] = self.prior[2]

    def ranked(self, *, serving: bool = True, only: Any = None) -> tuple[Any, Any]:
        return held_out_ranks(self.platform, self.settings, self.bank, self.parameters, self.prior, serving=serving, only=only)

    def by_hand(self, wanted: list[int], *, above: float = 0.0) -> tuple[list[float], list[int]]:
        """One user after the other: held-out items among all that the user never met, ties counted half.

        Args:
            above: By how much another item must score more than the held-out one in order to count as better.
        """
        split = self.platform.split
        users = [user for user in range(split.users) if split.held[user] >= 0]
        (everybody,) = self.platform.held_out.read(np.arange(len(users)), serving=True)
        # Apart, since in bfloat16 a text's last bits differ with those that are encoded beside it.
        vectors = self.platform.towers.encode(everybody.rows, self.parameters, apart=True).numpy().astype(np.float64)
        found, among = [], []
        for at in wanted:
            scores = self.bank.numpy().astype(np.float64) @ vectors[at] / self.settings.model.temperature + self.prior.numpy()
            held, known = int(split.held[users[at]]), set(split.known[users[at]].tolist())
            others = [item for item in range(ITEMS) if item not in known and item != held]
            equal = sum({item, held} == TWINS for item in others)
            better = sum(bool(scores[item] > scores[held] + above) for item in others if {item, held} != TWINS)
            found.append(1 + better + equal / 2)
            among.append(1 + len(others))
        return found, among


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranking")


@pytest.fixture
def world(folder: Path, write_platform: Callable[..., Path], tiny_settings: Callable[..., Settings]) -> World:
    settings = tiny_settings()
    path = write_platform(folder=folder, users=USERS, items=ITEMS, declared=USERS, seed=3)
    return World(prepare(load(path), settings, cache=folder / "trunk"), settings)


@pytest.mark.parametrize("serving", [True, False])
def test_every_held_out_item_is_ranked_once(world: World, serving: bool) -> None:
    ranks, candidates = world.ranked(serving=serving)
    held = int((world.platform.split.held >= 0).sum())
    assert held > 2 * 256
    expected = world.by_hand(list(range(held)))
    assert ranks.shape == candidates.shape == (held,) and ranks.dtype == np.float64 and candidates.dtype == np.int64
    assert (ranks.tolist(), candidates.tolist()) == expected
    assert len(set(ranks.tolist())) > ITEMS / 2 and any(rank % 1 for rank in ranks)  # all places, and ties, are met


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 513])
def test_of_some_users_only_theirs_in_their_order(world: World, count: int) -> None:
    held = int((world.platform.split.held >= 0).sum())
    only = np.random.default_rng(count).permutation(held)[:count]
    ranks, candidates = world.ranked(only=only)
    assert (ranks.tolist(), candidates.tolist()) == world.by_hand(only.tolist())


def test_whether_others_are_there_does_not_move_a_rank(world: World) -> None:
    """Items that an adapter makes alike but for the last bits of their scores: by these one user moved the ranks of three."""
    random = np.random.default_rng(2)
    noise = torch.from_numpy(random.normal(0, 1e-8, world.bank.shape).astype(np.float32))
    world.bank, world.prior = world.bank[:1] + noise, torch.zeros(ITEMS)
    everybody, _ = world.ranked(serving=False)
    assert len(set(everybody.tolist())) > ITEMS / 2
    for count in (1, 2, 3, 4, 5, 8, 9, 257, 258, 259):
        ranks, _ = world.ranked(serving=False, only=np.arange(count))
        assert ranks.tolist() == everybody[:count].tolist(), count


def test_friends_speak_where_it_stays_on_the_platform_and_nowhere_else(
    tmp_path: Path, write_platform: Callable[..., Path], tiny_settings: Callable[..., Settings]
) -> None:
    """With `influence = 0` what is released is what it would be had nobody named a friend."""
    settings, users = tiny_settings(), 40
    ties = "user,friend\n" + "".join(f"u{user},u{(user + 1) % users}\n" for user in range(users))
    social = '[sources.ties]\nkind = "social"\npath = "ties.csv"\ninfluence = 0\n'
    worlds = []
    for name, extra in (("with", social), ("without", "")):
        path = write_platform(folder=tmp_path / name, users=users, items=ITEMS, seed=3, files={"ties.csv": ties}, extra=extra)
        worlds.append(World(prepare(load(path), settings, cache=tmp_path / "trunk"), settings))
    friends, nobody = worlds
    alone = nobody.ranked(serving=True)
    assert [part.tolist() for part in nobody.ranked(serving=False)] == [part.tolist() for part in alone]
    assert [part.tolist() for part in friends.ranked(serving=False)] == [part.tolist() for part in alone]
    served = friends.ranked(serving=True)
    assert served[0].tolist() != alone[0].tolist()
    everybody = list(range(len(served[0])))
    assert served[1].tolist() == friends.by_hand(everybody)[1]
    # In bfloat16 two items' scores may differ by less than float32 says of them.
    best, worst = (np.array(friends.by_hand(everybody, above=above)[0]) for above in (1e-5, -1e-5))
    assert (best <= served[0]).all() and (served[0] <= worst).all() and np.mean(best == worst) > 0.9
