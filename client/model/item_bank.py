"""The bank: the vectors of all of a platform's items, which every user's loss is a softmax over.

Catalogues are public and no gradient passes here, so how often the bank is encoded is a matter of time alone. Platforms that
share a process, a catalogue and an adapter (a simulation's) share the bank, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from client.compute.feature_cache import Ids
from client.examples.vectors import VectorRows
from client.fusion.projector import weight_of
from client.model.towers import Rows, Towers
from shared.base.errors import OutOfOrder
from shared.base.safetensors_checks import feed

SINCE = "since"
_KNOWN: WeakValueDictionary[bytes, Tensor] = WeakValueDictionary()


class Bank:
    """Encodes the items of one platform.

    Args:
        towers: The model.
        items: One row per item.
        sequences, vectors: What the rows were made of, to know equal ones by.
    """

    def __init__(self, towers: Towers, items: Rows, sequences: Sequence[Ids], vectors: VectorRows) -> None:
        self._towers, self._items = towers, items
        # A source that no item has is zero whatever its projector, which may be trained, and differ, by platform.
        self._unused = {weight_of(name) for name, present in vectors.present.items() if not present.any()}
        encoder = towers.encoder
        facts = (encoder.backbone.sha256, encoder.cut, encoder.scale, encoder.dtype, encoder.device, type(towers.fusion).__name__)
        sha = hashlib.sha256("|".join(map(str, facts)).encode())
        for ids in sequences:
            sha.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        feed(sha, vectors.values)
        feed(sha, vectors.present)
        self._digest = sha.digest()

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Unit vectors, float32 (items, width); not to be changed, since others may hold the same."""
        sha = hashlib.sha256(self._digest)
        feed(sha, {name: value.detach().cpu().numpy() for name, value in parameters.items() if name not in self._unused})
        key = sha.digest()
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = self._towers.encode(self._items, parameters)
        return found


class BankOfRounds:
    """A run's bank on one platform, round after round.

    Args:
        rounds: How many rounds one encoding serves; below 2 each has its own.
        remembered: `remembered` of the process before, or empty.
    """

    def __init__(self, bank: Bank, *, rounds: int, device: torch.device, remembered: Mapping[str, Tensor]) -> None:
        self._bank, self._rounds, self._device = bank, rounds, device
        self.remembered = remembered
        """What the serving vectors were encoded with, and under `SINCE` the round: so a platform that was started again goes on
        with the same."""
        self._since = 0
        self._serving: Tensor | None = None
        # Kept so that the next one to need the same bank, here or on another platform of this process, finds it.
        self._latest: Tensor | None = None

    def now(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The vectors under just these parameters."""
        self._latest = self._bank(parameters)
        return self._latest

    def of_round(self, round_: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """The vectors for a round that begins with these parameters; they may be those of an earlier round."""
        held = self.remembered
        fresh = bool(held) and 0 <= round_ - int(held[SINCE]) < self._rounds
        return self.since(int(held[SINCE]) if fresh else round_, round_, parameters)

    def require(self, since: int, round_: int) -> None:
        """Check that a round's vectors can be had.

        Raises:
            OutOfOrder: they are of an earlier round, and those that are remembered are not of that one.
        """
        if since != round_ and (not self.remembered or int(self.remembered[SINCE]) != since):
            raise OutOfOrder(f"round {round_} goes on with the items' vectors of round {since}, which are not remembered here")

    def since(self, since: int, round_: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """The vectors of round `since`, for a round that begins with these parameters.

        Raises:
            OutOfOrder: as `require`.
        """
        self.require(since, round_)
        if self._rounds < 2:
            return self.now(parameters)
        held = self.remembered
        if since == round_:
            # Also where this round was begun before and broke off: it may have begun with other parameters.
            held, self._serving = {SINCE: torch.tensor([float(round_)]), **parameters}, None
            self.remembered = held
        if self._serving is None or self._since != since:
            self._serving = self._bank({name: value.to(self._device) for name, value in held.items() if name != SINCE})
            self._since = since
        return self._serving
