"""Sums of what users like, on one platform: directions of texts, items, and pairs of items. Nothing is trained.

Each user's part is a vector of L2 norm 1 at most (`client/privacy/preference_release.py`, `taste_release.py`), and the noise
is as planned (`shared/privacy/plan.py`). A platform that has none of the items, or whose own file keeps its users out, is charged
nothing: under the secure sum it adds its share of the noise, and no row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.bounded_sum import BoundedSum, nothing
from client.privacy.charged_question import charged_question
from client.privacy.mechanism import CountMechanism, noised_steps
from client.privacy.preference_release import bounded_likes, bounded_preferences
from client.privacy.taste_release import bounded_tastes
from client.run.joining import joined
from client.run.run_context import RunContext
from client.run.run_state import PreferenceAnswer
from client.secagg.persistent_participant import PersistentParticipant
from shared.base.errors import OutOfOrder, PrivacyError, ProtocolError
from shared.preferences.item_index import MOST_DECLARED, Hashes, parse_items, places_of
from shared.preferences.popularity_axis import parse_direction
from shared.preferences.sum_kind import SumKind
from shared.privacy.plan import sum_multiplier
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.messages import Joined, Phase, Prefer, Preferred, Secure, Secured, Summed

_ROUND = 0
_KINDS = {
    SumKind.TASTE: ReleaseKind.TASTE,
    SumKind.LIKES: ReleaseKind.POPULARITY,
    SumKind.PREFERENCES: ReleaseKind.PREFERENCES,
}


@dataclass(frozen=True, kw_only=True)
class AskedPreferences:
    """A question for a sum, looked at before anything is charged or made for it.

    Args:
        items: Hashes of the items; none for a taste map.
        direction: Of popularity, float32 (items,); None where no pairs of items are asked for.
        noise: Noise multiplier that the plan has for it.
        question: What it is charged under.
        answered: Whether the run's state says that this very question was answered.
    """

    request: Prefer
    items: Hashes
    direction: NDArray[np.float32] | None
    noise: float
    question: str
    answered: bool

    @classmethod
    def of(cls, run: RunContext, request: Prefer) -> AskedPreferences:
        """Look at a question.

        Raises:
            ProtocolError: a run of these settings does not ask for it.
            OutOfOrder: another was answered, or training has begun.
        """
        asked, of = run.settings.preferences, request.of
        pairs = of is SumKind.PREFERENCES
        items = parse_items(request.items, most=asked.items if pairs else MOST_DECLARED)
        if of is SumKind.TASTE:
            if not asked.map or len(items) or request.lists:
                raise ProtocolError(f"asked for a taste map with {len(items)} items; this run has one of {asked.map} directions")
        elif not asked.items or not len(items):
            raise ProtocolError(f"asked for preferences of {len(items)} items; this run shares those of {asked.items} at most")
        direction = parse_direction(request.axis, items=len(items)) if pairs else None
        if not pairs and request.axis:
            raise ProtocolError(f"asked for {of} beside an axis")
        question = charged_question(request, of.value)
        known = run.state.preferences
        answered = known is not None and known.question == question
        if not answered and (run.state.finished or (known is not None and of not in known.of.later)):
            raise OutOfOrder(f"asked for {of} after what the run has answered")
        noise = sum_multiplier(of, preference_noise=run.plan.preference_noise, taste_noise=run.plan.taste_noise)
        return cls(request=request, items=items, direction=direction, noise=noise, question=question, answered=answered)

    @property
    def name(self) -> str:
        """What is summed, in a word."""
        return self.request.of.value

    @property
    def kind(self) -> ReleaseKind:
        """As what it is charged."""
        return _KINDS[self.request.of]

    @property
    def dimension(self) -> int:
        """Numbers of the sum."""
        return self.request.size

    def sums(self, run: RunContext) -> BoundedSum | None:
        """This platform's exact sum, or None where its users have no part in it."""
        place = places_of(run.rows.item_hashes, self.items)
        taste = self.request.of is SumKind.TASTE
        if not run.prefers or (not taste and (place < 0).all()):
            return None
        liked, items, direction = run.rows.split.train, len(self.items), self.direction

        def bounded(users: NDArray[np.int64]) -> BoundedSum:
            if taste:
                return bounded_tastes(liked, run.directions, only=users)
            if direction is None:
                return bounded_likes(liked, place, items=items, only=users)
            return bounded_preferences(liked, place, direction=direction, items=items, only=users)

        return run.sum_over_users(bounded, items=self.dimension, what=self.name)

    def remember(self, run: RunContext, began: float, preferred: Mapping[str, torch.Tensor]) -> None:
        """The question was answered."""
        stamp = run.stamp(began, self.question)
        known = PreferenceAnswer(question=self.question, of=self.request.of, stamp=stamp)
        run.keep(preferences=known, preferred=preferred)


class LocalPreferences:
    """The sums of a run in which this platform adds all of the noise itself."""

    def __init__(self, run: RunContext) -> None:
        self.run = run

    def join(self) -> Joined:
        """Say what is planned."""
        return joined(self.run)

    def prefer(self, request: Prefer) -> Preferred:
        """A noised sum in clear; a repeated question gets the same answer.

        Raises:
            OutOfOrder: another was answered, or the run has gone on.
            ProtocolError: a run of these settings does not ask for it.
            BudgetExceeded: the budget does not carry it.
        """
        run, began = self.run, time.monotonic()
        if request.lists or request.body:
            raise ProtocolError("asked for masked preferences in a run without a secure sum")
        asked = AskedPreferences.of(run, request)
        if not asked.answered:
            mechanism = CountMechanism(kind=asked.kind, noise_multiplier=asked.noise, dimension=asked.dimension)
            sums = asked.sums(run)
            if sums is None:
                noised = np.zeros(asked.dimension)
            else:
                run.pay(mechanism.release(), _ROUND, asked.question)
                noised = mechanism.privatise(sums, run.random(asked.name, _ROUND))
            asked.remember(run, began, {asked.name: torch.from_numpy(noised.astype(np.float32))})
        known = run.state.preferences
        if known is None or not run.state.preferred:
            raise OutOfOrder(f"{asked.name} were answered, and the run has gone on since")
        sent = {name: value.numpy() for name, value in run.state.preferred.items()}
        return Preferred(**run.released(_ROUND, known.stamp), sums=sent)


class SecurePreferences:
    """The sums of a run that only the secure sum sees.

    Args:
        participant: The platform's part in it.
    """

    def __init__(self, run: RunContext, participant: PersistentParticipant) -> None:
        self.run, self._participant = run, participant

    def join(self) -> Joined:
        """Say what is planned, the keys of all sums, and whom this platform knows."""
        return replace(
            joined(self.run),
            noise_multiplier=self._need,
            keys=self._participant.advert(),
            # The platforms of a simulation find each other as they join.
            trust=b"" if self.run.simulation else self._participant.trust(),
            catalogue=self.run.rows.catalogue_digest.hex(),
        )

    @property
    def _need(self) -> float:
        """The noise multiplier that sums of training must have for this platform."""
        return 0.0

    @property
    def _dimensions(self) -> dict[str, int]:
        """Parameters that rounds train and send, by the factors that they train."""
        return {}

    def prefer(self, request: Prefer) -> Summed:
        """A masked sum; a repeated question gets the same answer.

        Raises:
            OutOfOrder: another was answered, or the run has gone on.
            ProtocolError: a run of these settings does not ask for it, or an item is on no other platform's list.
            PrivacyError: the agreed noise is less than planned.
            BudgetExceeded: the budget does not carry it.
        """
        run, began = self.run, time.monotonic()
        asked = AskedPreferences.of(run, request)
        masking = self._participant.asked(request, finished=_ROUND if asked.answered else _ROUND - 1)
        if masking.known is not None:
            return Summed(**run.released(_ROUND, run.stamp(began, asked.question)), body=masking.known)
        if request.of is not SumKind.TASTE:
            self._participant.require_shared(masking, asked.items, request.lists)
        point = self._participant.preference_point(masking, dimension=asked.dimension, of=request.of)
        if not point.noise_multiplier >= asked.noise:
            raise PrivacyError(f"{asked.name} with a noise multiplier of {point.noise_multiplier:g}, {asked.noise:g} is planned")
        sums = asked.sums(run)
        if sums is None:
            sums = nothing({"sum": (asked.dimension,)}, bound=1.0)
        else:
            release = Release(kind=asked.kind, noise_multiplier=point.noise_multiplier, integers=point.integers)
            run.pay(release, _ROUND, asked.question)
        words = point.wrap(noised_steps(sums.vector(), point, run.random(asked.name, _ROUND)))
        body = self._participant.mask(masking, words)
        asked.remember(run, began, {})
        return Summed(**run.released(_ROUND, run.stamp(began, asked.question)), body=body)

    def secure(self, request: Secure) -> Secured:
        """A phase that reads no row.

        Raises:
            ProtocolError: a run of these settings does not have it.
        """
        run = self.run
        if request.phase is Phase.DEAL:
            body = self._participant.deal(
                request.body,
                need=self._need,
                preference_need=run.plan.preference_noise,
                taste_need=run.plan.taste_noise,
                batch=run.settings.training.batch([run.rows.file.users]),
                dimensions=self._dimensions,
            )
        elif request.phase is Phase.CONFIRM:
            body = self._participant.confirm(request.body)
        elif request.phase is Phase.UNMASK:
            body = self._participant.unmask(request.body)
        else:
            raise ProtocolError(f"phase {request.phase} of a run that trains nothing")
        return Secured(run=run.name, platform=run.rows.name, round=request.round, phase=request.phase, body=body)
