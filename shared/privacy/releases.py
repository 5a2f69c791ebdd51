"""The algebra of releases: what a platform publishes about its users, as numbers alone.

A release says how noise was added and to what share of the examples; it holds no data and no
result. Accountants (`shared/privacy/accountants.py`) are interpreters of lists of releases, so the
same list can be planned, charged, written to a ledger and recomputed by an auditor.

Beside this algebra, `groups` says what one user touches; `rdp`, `prv` and `pld` are three interpreters of the same releases;
`accountants` chooses between them, `calibration` inverts them, and `plan` decides before the first round. `integers` is the part
of a release that is of integers, `rounding` says how far a user moves rounded integers, and `discrete` which Gaussian mechanism
their noise is worth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from shared.base.errors import InputError
from shared.privacy.integers import Integers

MAX_STEPS = 1 << 40
MAX_GROUP = 1 << 20
MAX_INTEGER_GROUP = 16


class ReleaseKind(StrEnum):
    """What was released. Accounting does not depend on it; an auditor's table shows it."""

    POPULARITY = "popularity"
    PREFERENCES = "preferences"
    TASTE = "taste"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True)
class Release:
    """A Gaussian mechanism of L2 sensitivity 1 per example, on Poisson samples of the examples.

    In each of `steps` steps every example enters independently with probability `sample_rate`;
    the sum of the entered examples' vectors, each of L2 norm at most 1, is published with
    N(0, noise_multiplier² I) added. The steps may be chosen adaptively.

    With `integers` it is the integer mechanism of a secure sum instead: the sum is rounded by chance and discrete
    Gaussian noise is added (`shared/privacy/discrete_sum.py`).

    Args:
        kind: What was released.
        noise_multiplier: Standard deviation of the noise over the L2 bound of one example
            (dimensionless, finite, >= 0). 0 means that nothing was added: its epsilon is infinite,
            which no finite budget pays for; it exists so that a run without privacy can say so.
        sample_rate: Poisson sampling probability of one example, in (0, 1].
        steps: How many times, >= 1.
        group_size: Greatest number of *examples* that change when one user is added or removed:
            the user's own, and up to group_size - 1 examples of others in which the user appears
            (social influence). See `shared/privacy/groups.py`. At most 16 with `integers`.
        integers: The integer mechanism's part; None for the Gaussian one.

    Raises:
        InputError: a value is of another type or out of its range.

    | given | result |
    |---|---|
    | a noise multiplier of 0 | `exact`; its epsilon is infinite |
    | one that is negative, NaN or infinite | `InputError` |
    | a sample rate of 1 | everybody, in each step |
    | a sample rate of 0, NaN or above 1 | `InputError` |
    | 0 steps, a group of 0, True for a number | `InputError` |
    """

    kind: ReleaseKind
    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1
    group_size: int = 1
    integers: Integers | None = None

    def __post_init__(self) -> None:
        # An int is a fine float to people, but not to the ledger's canonical text: make it one.
        for name in ("noise_multiplier", "sample_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _wrong(name, value, "a number")
            object.__setattr__(self, name, float(value))
        for name in ("steps", "group_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise _wrong(name, value, "a whole number")
        if not isinstance(self.kind, ReleaseKind):
            raise _wrong("kind", self.kind, f"one of {', '.join(ReleaseKind)}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise _wrong("noise_multiplier", self.noise_multiplier, "finite and at least 0")
        if not 0 < self.sample_rate <= 1:
            raise _wrong("sample_rate", self.sample_rate, "above 0 and at most 1")
        if not 1 <= self.steps <= MAX_STEPS:
            raise _wrong("steps", self.steps, f"between 1 and {MAX_STEPS}")
        if not 1 <= self.group_size <= MAX_GROUP:
            raise _wrong("group_size", self.group_size, f"between 1 and {MAX_GROUP}")
        if self.integers is not None and not isinstance(self.integers, Integers):
            raise _wrong("integers", self.integers, "an `Integers`, or None")
        if self.integers is not None and self.group_size > MAX_INTEGER_GROUP:
            raise InputError(
                f"group_size is {self.group_size} under distributed noise",
                where="a privacy release",
                do="rounding must keep its bound for every set of examples that one user touches, and there are 2^group_size: "
                f"let the social source's influence be at most {MAX_INTEGER_GROUP - 1}",
            )

    @property
    def exact(self) -> bool:
        """True when no noise was added, so that no finite epsilon holds."""
        return self.noise_multiplier == 0


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Equal releases taken together: what accounting needs of them, and nothing else."""

    noise_multiplier: float
    sample_rate: float
    group_size: int
    steps: int
    integers: Integers | None = None


def merge_releases(releases: Iterable[Release]) -> tuple[Steps, ...]:
    """Equal releases added up, in a fixed order, so that cost does not grow with the number of rounds.

    Adaptive composition of the same dominating pair does not depend on the order in which steps
    come (Zhu, Dong and Wang 2022, "Optimal accounting of differential privacy via characteristic
    function", Theorem 10), so neither does anything computed from the result.

    >>> a = Release(kind=ReleaseKind.TRAIN, noise_multiplier=2.0, sample_rate=0.1, steps=20)
    >>> [(s.steps, s.noise_multiplier) for s in merge_releases([a, a, a])]
    [(60, 2.0)]
    """
    total: Counter[tuple[float, float, int, tuple[Integers, ...]]] = Counter()
    for release in releases:
        integers = () if release.integers is None else (release.integers,)  # a tuple has a place in an order, None has not
        total[(release.noise_multiplier, release.sample_rate, release.group_size, integers)] += release.steps
    return tuple(
        Steps(noise_multiplier=noise, sample_rate=rate, group_size=group, steps=steps, integers=next(iter(integers), None))
        for (noise, rate, group, integers), steps in sorted(total.items())
    )


def _wrong(name: str, found: object, expected: str) -> InputError:
    return InputError(f"{name} is {found!r}", where="a privacy release", do=f"{name} must be {expected}")
