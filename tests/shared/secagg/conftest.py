"""A whole secure sum in one process: every message and every platform's state is serialised on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from client.secagg.enrolment import Dealing, Enrolled
from client.secagg.participant import Active
from shared.secagg import quorum
from shared.secagg.codec import decode, encode
from shared.secagg.identity import Identity, digest_of
from shared.secagg.masks import MaskFrame
from shared.secagg.roster import Advert, SumTerms
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Enrolment, SumCoordinator

QUESTION = digest_of("question", b"model")


def stream(*seed: object) -> Callable[[int], bytes]:
    """Bytes that look random and can be had again."""
    key = hashlib.sha256(repr(seed).encode()).digest()
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: cipher.update(bytes(count))


def wire(message: Any) -> Any:
    """What arrives of a message."""
    return decode(type(message), encode(message))


class World:
    """n platforms p00, p01, ... and a coordinator; `state[i]` is what platform i has on its disk."""

    def __init__(
        self,
        n: int,
        *,
        rounds: int = 2,
        threshold: float = 0.6,
        colluders: int = 0,
        length: int = 5,
        bits: int = 20,
        seed: object = 0,
        run: str = "run",
        direct: bool = False,
    ) -> None:
        self.n, self.length, self.bits, self.seed = n, length, bits, seed
        self.direct = direct  # no bytes: for tests that ask very many questions
        self.objects: list[Any] = [None] * n
        self.terms = SumTerms(run=run, rounds=rounds, threshold=threshold, colluders=colluders)
        self.names = [f"p{number:02d}" for number in range(n)]
        self.identities = [Identity(stream(seed, "identity", name)(32)) for name in self.names]
        self.peers = {name: identity.public for name, identity in zip(self.names, self.identities, strict=True)}
        self.disk: list[bytes] = [b""] * n
        self.kinds: list[type[Any]] = [Enrolled] * n
        enrolment = Enrolment(self.terms)
        for number, name in enumerate(self.names):
            entropy = stream(seed, "keys", name)
            enrolled = Enrolled.enrol(self.terms, platform=name, identity=self.identities[number], entropy=entropy)
            self.keep(number, enrolled)
            enrolment.add(wire(enrolled.advert), platform=name)
        self.coordinator = SumCoordinator(enrolment.close())
        random = np.random.default_rng(7)
        self.vectors = random.integers(0, 1 << bits, (n, length), dtype=np.uint32)

    def wire(self, message: Any) -> Any:
        return message if self.direct else wire(message)

    def keep(self, number: int, state: Any) -> None:
        if self.direct:
            self.objects[number] = state
        else:
            self.kinds[number], self.disk[number] = type(state), encode(state)

    def state(self, number: int) -> Any:
        if self.direct:
            return self.objects[number]
        return decode(self.kinds[number], self.disk[number])

    def deal(self, among: Iterable[int] | None = None) -> None:
        for number in range(self.n) if among is None else among:
            state, answer = self.state(number).deal(
                wire(self.coordinator.deal_for(number)), peers=self.peers, entropy=stream(self.seed, "deal", number)
            )
            self.keep(number, state)
            self.coordinator.dealt(number, wire(answer))
        self.coordinator.settle()

    def round(self, number: int = 1) -> Round:
        return Round(self.coordinator, MaskFrame(round=number, length=self.length, bits=self.bits, question=QUESTION))

    def ask_mask(self, number: int, request: Any, *, question: bytes = QUESTION) -> Any:
        state = self.state(number)
        if isinstance(state, Dealing):
            state = state.open(wire(request))
        known = state.answered(wire(request), question)
        if known is not None:
            return wire(known)
        ready = state.ready(wire(request), question)
        state, answer = state.mask(ready, self.vectors[number], identity=self.identities[number])
        self.keep(number, state)
        return wire(answer)

    def ask_confirm(self, number: int, request: Any) -> Any:
        state, answer = self.state(number).confirm(self.wire(request), identity=self.identities[number])
        self.keep(number, state)
        return self.wire(answer)

    def ask_unmask(self, number: int, request: Any) -> Any:
        state, answer = self.state(number).unmask(self.wire(request))
        self.keep(number, state)
        return self.wire(answer)

    def play(
        self,
        round_: int = 1,
        *,
        lost: Collection[int] = (),
        unconfirmed: Collection[int] = (),
        silent: Collection[int] = (),
    ) -> np.ndarray:
        """A round in which some are lost before the first phase, some before the second, some before the last."""
        work = self.round(round_)
        for number in self.coordinator.session.present:
            if number not in lost:
                work.masked(number, self.ask_mask(number, work.mask_for(number)))
        work.close()
        if not work.whole:
            for number in work.survivors:
                if number not in unconfirmed:
                    work.confirmed(number, self.ask_confirm(number, work.confirm()))
        for number in work.survivors:
            if number not in unconfirmed and number not in silent:
                work.unmasked(number, self.ask_unmask(number, work.unmask_for(number)))
        return work.sum()

    def total(self, among: Iterable[int]) -> np.ndarray:
        return self.vectors[list(among)].sum(0, dtype=np.uint32) & np.uint32((1 << self.bits) - 1)

    def active(self, number: int) -> Active:
        state = self.state(number)
        assert isinstance(state, Active)
        return state


@pytest.fixture
def world() -> Callable[..., World]:
    """Makes a `World`, shares dealt."""

    def make(n: int, **over: Any) -> World:
        made = World(n, **over)
        made.deal()
        return made

    return make


@pytest.fixture
def fresh() -> Callable[..., World]:
    """Makes a `World` in which nothing was dealt yet."""
    return World


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Arranges a dozen platforms in a ring."""
    monkeypatch.setattr(quorum, "COMPLETE", 4)
    monkeypatch.setattr(quorum, "RISK", 1e9)
    quorum.quorum_of.cache_clear()
    yield
    quorum.quorum_of.cache_clear()


__all__ = ["QUESTION", "Advert", "World", "stream", "wire"]
