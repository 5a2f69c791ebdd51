"""Distributed noise: the coordinator sees the sum over platforms and nothing else, and takes an Adam step with it.

The sum of all platforms' clipped gradients with the noise in it, over the expected number of users in all their batches, is the
step of central DP-SGD on the pooled users (Abadi et al. 2016); it does not matter over how many platforms they are spread.
Which factors are trained is left to the linear strategy (`ffa`, `rolora`, `fedsa`, `fedsb`, or both as here).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError, ProtocolError
from shared.base.settings import Settings
from shared.preferences.item_index import list_digest, parse_items
from shared.protocol.messages import Arrays, Joined, Quoted
from shared.secagg.codec import decode, encode
from shared.secagg.noise_agreement import Agreement, batch_of, declared_by, pooled, terms_of
from shared.secagg.roster import Advert, RosterEntry
from shared.secagg.shared_catalogues import DeclaredCatalogue
from shared.secagg.trust_statement import TrustStatement
from strategies.base import AdapterStrategy, Card
from strategies.optimizers import ServerOptimizer, State
from strategies.secure_sum.mutual_trust import UntrustedPlatform, trusting_platforms
from strategies.secure_sum.protocol import Enrolment

_COUNT = "count:"


class SecureSumStrategy(AdapterStrategy):
    """Both factors, trained by one clipped, noised gradient sum a round over all platforms together."""

    card: ClassVar[Card] = Card(
        name="secure-sum",
        when="for many platforms, small ones too: learns as if users were pooled, at the same epsilon; wants 50 rounds up",
        trusts="that no more than secure.colluders platforms side with the coordinator, which itself is trusted with nothing",
        sends="one masked gradient sum of A and B a round; only the sum over platforms can be read",
    )


class StepOnSums(ServerOptimizer):
    """Adam (Kingma & Ba 2015) at the coordinator; its moments are post-processing of the noised sum.

    Args:
        settings: The rate is `server.learning_rate`, or `training.learning_rate` where that is 0.
    """

    moments = ("first", "second")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.server)
        self._rate = settings.server.learning_rate or settings.training.learning_rate
        self._counts: dict[str, int] = {}

    def move(self, name: str, change: NDArray[np.float64]) -> NDArray[np.float64]:
        """One step; `change` is the descent direction. Each tensor counts its own steps, as not every round trains all."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        first = 0.9 * self._moment("first", name, change) + 0.1 * change
        second = 0.999 * self._moment("second", name, change) + 0.001 * np.square(change)
        self._state[f"first:{name}"], self._state[f"second:{name}"] = first, second
        return self._rate * first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)

    def state(self) -> State:
        """As `ServerOptimizer.state`, with the counts."""
        return {**super().state(), **{f"{_COUNT}{name}": np.array([float(count)]) for name, count in self._counts.items()}}

    def restore(self, state: Mapping[str, NDArray[np.float64]], adapter: Arrays) -> None:
        """As `ServerOptimizer.restore`."""
        counts = {key.removeprefix(_COUNT): value for key, value in state.items() if key.startswith(_COUNT)}
        if any(name not in adapter or value.shape != (1,) or not _is_count(value[0]) for name, value in counts.items()):
            raise InputError(
                "the server optimizer's counts do not fit this run", do="resume with the checkpoint of this very run"
            )
        super().restore({key: value for key, value in state.items() if not key.startswith(_COUNT)}, adapter)
        self._counts = {name: int(value[0]) for name, value in counts.items()}


def _is_count(value: np.float64) -> bool:
    return bool(value >= 1) and float(value).is_integer()


def sufficient_noise(
    said: Collection[Joined | Quoted], *, batch: float, catalogues: tuple[DeclaredCatalogue, ...] = ()
) -> Agreement:
    """An agreement on noise that suffices for each platform, by its own word.

    Args:
        batch: As `batch_of` gives it.
    """
    return Agreement(
        noise_multiplier=max((one.noise_multiplier for one in said), default=0.0),
        preference_noise=max((one.preference_noise for one in said), default=0.0),
        taste_noise=max((one.taste_noise for one in said), default=0.0),
        batch=batch,
        catalogues=catalogues,
    )


def agreement_of(settings: Settings, joined: Mapping[str, Joined], entries: Sequence[RosterEntry]) -> Agreement:
    """The noise that suffices for every platform, by their own word, and the catalogues that enough of them signed.

    Args:
        joined: Platform -> what it joined with, the noise multipliers that its budget needs among it.
        entries: The platforms' lines of the roster, with what they declare.
    """
    there = [joined[entry.platform] for entry in entries]
    return sufficient_noise(
        there,
        batch=batch_of(entries, settings.training),
        # Popularities of whole catalogues serve training alone.
        catalogues=pooled(entries, colluders=settings.secure.colluders) if settings.trains else (),
    )


class Candidates:
    """Platforms that joined a run, until its roster is closed; each is checked when it comes.

    Args:
        approved: As in `Enrolment`.
    """

    def __init__(self, settings: Settings, run: str, *, approved: Mapping[str, bytes] | None = None) -> None:
        self._settings, self._run, self._approved = settings, run, approved

    def check(self, joined: Joined) -> Advert:
        """The keys that a platform joined with.

        Raises:
            ProtocolError: other platforms could not take part with this one: a key is of small order or of another run, the
                identity is not the approved one, what is signed is not what the platform says, or, where somebody approves, it
                does not state whom it trusts.
        """
        advert = decode(Advert, joined.keys)
        enrolment = Enrolment(terms_of(self._settings, self._run), approved=self._approved)
        enrolment.add(advert, platform=joined.platform)
        declared = declared_by(enrolment.entries[0])
        said = (joined.users, joined.items, joined.catalogue)
        if declared.item_list != (list_digest(parse_items(joined.item_list)) if self._settings.preferences.items else b""):
            raise ProtocolError("signed another item list than it joined with")
        if (declared.users, declared.items, declared.digest.hex()) != said:
            raise ProtocolError(
                f"signed {declared.users} users and catalogue {declared.digest.hex()[:16]} of {declared.items} items, and joined "
                f"with {said[0]} users and catalogue {said[2][:16]} of {said[1]} items"
            )
        if self._approved is not None:
            self._trust_of(joined, advert)
        return advert

    def _trust_of(self, joined: Joined, advert: Advert) -> TrustStatement | None:
        """Whom a platform says that it trusts; None in a simulation, where nobody says."""
        if self._approved is None and not joined.trust:
            return None
        said = decode(TrustStatement, joined.trust)
        if (said.run, said.platform, said.identity) != (self._run, joined.platform, advert.keys.identity):
            raise ProtocolError(f"states the trust of {said.platform!r} in run {said.run!r}")
        return said

    def trusting(self, joined: Iterable[Joined]) -> tuple[tuple[str, ...], tuple[UntrustedPlatform, ...]]:
        """The largest set of platforms that know each other, by their own signed word; and the others, with what is missing.

        Args:
            joined: Those that were checked.
        """
        by_name = {one.platform: one for one in joined}
        adverts = {name: decode(Advert, one.keys) for name, one in by_name.items()}
        identities = {name: advert.keys.identity for name, advert in adverts.items()}
        stated = {name: self._trust_of(one, adverts[name]) for name, one in by_name.items()}
        return trusting_platforms(
            {name: one.users for name, one in by_name.items()},
            {name: said for name, said in stated.items() if said is not None},
            identities,
            run=self._run,
        )

    def close(self, joined: Iterable[Joined], *, left_out: Callable[[str, str], None]) -> Enrolment.Closed:
        """The roster of a new session.

        Args:
            joined: Those that take part.
            left_out: Told of a platform that cannot, and why.

        Raises:
            InputError: the platforms are too few, or too many for so many rounds.
        """
        enrolment = Enrolment(terms_of(self._settings, self._run), approved=self._approved)
        taken: dict[str, Joined] = {}
        for one in joined:
            try:
                enrolment.add(self.check(one), platform=one.platform)
                taken[one.platform] = one
            except ProtocolError as error:
                left_out(one.platform, error.found)
        return enrolment.close(encode(agreement_of(self._settings, taken, enrolment.entries)))
