"""What a report says: `report.json`, of which the page and the registry entry are two views.

Its JSON Schema is `docs/report.schema.json`. Everything in it is public, declared, charged, or an exact figure of a simulation.
"""

from __future__ import annotations

import json
import math
import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

MOST_PLATFORMS = 1000
"""Platforms that are listed; a report says how many it leaves out."""
MOST_ROWS = 2000
MOST_TEXT = 400

# JSON knows no infinity: it is the word "inf".
Nats = Annotated[
    float,
    Field(ge=0),
    PlainSerializer(lambda value: "inf" if math.isinf(value) else value, return_type=float | Literal["inf"]),
]
Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-1, le=1)]
Words = Annotated[str, Field(max_length=MOST_TEXT + 1)]


class SubjectKind(StrEnum):
    """What a report is of."""

    SIMULATION = "simulation"
    PLATFORM = "platform"
    COORDINATOR = "coordinator"
    LEDGERS = "ledgers"


class PromiseStanding(StrEnum):
    """What users may rely on."""

    PROMISED = "promised"
    SIMULATED = "simulated"
    OFF = "off"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportVerdict(_Part):
    """What it comes to.

    Args:
        verdict: As `fedfuse audit` gives it; 'unsound' also where an attack proves more than is claimed.
        exit_code: Of the command: 0 sound, 1 unsound, 2 cannot tell.
        reasons: What the verdict rests on, the gravest first.
    """

    verdict: Literal["sound", "unsound", "cannot tell"]
    exit_code: Literal[0, 1, 2]
    standing: PromiseStanding
    headline: Words
    reasons: tuple[Words, ...]


class BudgetLine(_Part):
    """What one platform has spent of its budget.

    Args:
        spent: Epsilon: what the ledger charges against the budget, or what its entries give where that is more; where the ledger
            is not here, what the platform says.
        recomputed: Whether it was recomputed from a ledger.
        guess: Greatest chance of being right for whoever guesses whether one person is among the users, where a coin would be
            right half the time: (e^epsilon + delta) / (e^epsilon + 1) (Kairouz, Oh and Viswanath 2015, Theorem 2.1).
        verdict: Of the platform's ledger.
    """

    platform: Words
    spent: Nats | None
    budget: Nats | None
    delta: Ratio | None
    recomputed: bool
    guess: Ratio | None
    verdict: Literal["sound", "unsound", "cannot tell"]


class PersonEverywhere(_Part):
    """A person who is a user of every platform: all releases of all ledgers composed, at the sum of the deltas;
    not of ledgers that do not hold.
    """

    platforms: Whole
    epsilon: Nats
    delta: Ratio


class SpentPoint(_Part):
    """Epsilon once a round of a run was charged; round 0 is what comes before training."""

    run: Words
    round: Whole
    epsilon: Nats


class SpentHistory(_Part):
    """How one platform's epsilon grew; of many rounds, evenly chosen ones and the last."""

    platform: Words
    points: tuple[SpentPoint, ...]


class ReleasedSum(_Part):
    """Charges of one mechanism on one platform.

    Args:
        what: In words.
        times: Steps charged.
        answers: Releases that the ledger names as paid by these charges; None where its version names none.
        one_user: The most that one user changes in it, in words.
        group: Examples that a user is part of, at most.
        noise_multiplier: Standard deviation of the noise over that bound.
        sample_rate: Probability that a user takes part in a step.
        numbers: Coordinates of one answer that leave; None where the ledger's version does not say.
        bytes_at_most: Of one answer's numbers, 4 each at most; 0 where no answer left.
        grid: Bound of one user in steps of the integer grid; None without one.
    """

    platform: Words
    kind: Words
    what: Words
    times: Whole
    answers: Whole | None
    one_user: Words
    group: Whole
    noise_multiplier: Annotated[float, Field(ge=0)]
    sample_rate: Ratio
    numbers: Whole | None
    bytes_at_most: Whole | None
    grid: Annotated[float, Field(ge=0)] | None


class AnswerField(_Part):
    """One field of an answer, whatever it holds.

    Args:
        message: Kind of answer.
        one_user: What one user can change in it.
        size: In bytes, in words.
        answers: Such answers that the coordinator has receipts for; None where receipts do not count them.
    """

    message: Words
    field: Words
    what: Words
    one_user: Words
    size: Words
    answers: Whole | None


class Participant(_Part):
    """One platform's part in the run.

    Args:
        users, items: Declared.
        rounds: Rounds whose sum holds its update.
        answers: Receipts of its answers.
        refusals, failures: Requests that it refused; errors, silences and unusable answers.
        bytes_up, bytes_down: Before Flower's framing.
        trouble: What went wrong, the last of it; why it was left out.
    """

    platform: Words
    users: Whole | None
    items: Whole | None
    rounds: Whole | None
    answers: Whole | None
    refusals: Whole | None
    failures: Whole | None
    bytes_up: Whole | None
    bytes_down: Whole | None
    trouble: Words


class PlatformQuality(_Part):
    """What a platform's model finds of held-out items, by itself and with what was released.

    Args:
        metric: Name of the ranking metric; 1 is the best.
        own, global_, fused: In a simulation: of the platform's own model, of what was released, of both together.
        low, gain, high: fused less own, with its 95 % interval; paired, over the held-out users.
        before, after: The global model without and with training; noised and charged on a deployed platform.
        exact: False where the figures carry noise.
        recommended_by: The model that validation chose.
    """

    platform: Words
    metric: Words
    own: Ratio | None
    global_: Ratio | None
    fused: Ratio | None
    low: Change | None
    gain: Change | None
    high: Change | None
    before: Ratio | None
    after: Ratio | None
    exact: bool
    recommended_by: Words


class AttackView(_Part):
    """What one attacker proves: a lower bound of epsilon, and how well members are distinguished from others.

    Args:
        area: AUROC: 1/2 for a guess, 1 for certainty.
        low: True-positive rate at a false-positive rate of 1 %.
        roc: (false-positive rate, true-positive rate), from (0, 0) to (1, 1); none where the result has no curve.
    """

    attacker: Words
    canaries: Whole
    bound: Nats
    area: Ratio
    low: Ratio | None
    roc: tuple[tuple[Ratio, Ratio], ...]


class AttackResult(_Part):
    """An attack on a run with canary users."""

    release: Words
    platform: Words
    claim: Nats
    delta: Ratio
    confidence: Ratio
    refuted: bool
    views: tuple[AttackView, ...]


class RecordCheck(_Part):
    """One ledger, checked.

    Args:
        recorded: Epsilon that it names.
        renyi, prv, pld: Recomputed from its entries alone: Opacus' RDP, Opacus' best, dp-accounting's PLD.
        charges, answers: Charges, and answers named by their hash.
        unreleased: Charges without an answer: it never left, or stays on the platform.
        rowless: Answers that no row took part in, as the platform states.
        checked: Heads from outside that it was held against.
        lines: Of it, the header among them.
        vouched: Number of the line that the last of these heads names, from 1; None where there is none. For lines after it,
            or cut off there, nobody outside vouches.
    """

    file: Words
    platform: Words
    verdict: Literal["sound", "unsound", "cannot tell"]
    recorded: Nats | None
    renyi: Nats | None
    prv: Nats | None
    pld: Nats | None
    charges: Whole
    answers: Whole
    unreleased: Whole
    rowless: Whole
    checked: Whole
    lines: Whole = 0
    vouched: Whole | None = None
    identity: Words
    head: Words
    problems: tuple[Words, ...]
    unknown: tuple[Words, ...]


class TrustedActor(_Part):
    """Who sees what, and what they are trusted for."""

    who: Words
    sees: Words
    trusted_for: Words


class PrivacyPromise(_Part):
    """The promise and its limits, in the fields of NIST SP 800-226 and of the OpenDP deployments registry."""

    statement: Words
    privacy_unit: Words
    units: Whole | None
    neighbours: Words
    variant: Words
    deployment_model: Words
    actors: tuple[TrustedActor, ...]
    mechanisms: tuple[Words, ...]
    composition: Words
    post_processing: Words
    preprocessing_and_tuning: Words
    assumptions: tuple[Words, ...]
    unprotected: tuple[Words, ...]
    utility: Words


class RunReport(_Part):
    """The whole report.

    Args:
        made: UTC.
        name: Of the folder or file.
        finished: Whether the run has ended; None where that does not apply.
        stopped: Why training ended before its last round, though none was given up; '' where it did not.
        gaps: What could not be read or is not here, in words.
        notes: What an auditor should know of the evidence.
    """

    format: Literal[1] = 1
    fedfuse: Words
    made: Words
    kind: SubjectKind
    name: Words
    runs: tuple[Words, ...]
    finished: bool | None
    rounds: Whole | None
    stopped: Words
    strategy: Words
    verdict: ReportVerdict
    budgets: tuple[BudgetLine, ...]
    everywhere: PersonEverywhere | None
    history: tuple[SpentHistory, ...]
    releases: tuple[ReleasedSum, ...]
    fields: tuple[AnswerField, ...]
    participants: tuple[Participant, ...]
    quality: tuple[PlatformQuality, ...]
    attack: AttackResult | None
    records: tuple[RecordCheck, ...]
    promise: PrivacyPromise
    settings: dict[Words, bool | int | float | Words]
    gaps: tuple[Words, ...]
    notes: tuple[Words, ...]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"


def report_schema() -> dict[str, Any]:
    """JSON Schema of `report.json`."""
    schema = RunReport.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def bounded_text(value: object, most: int = MOST_TEXT) -> str:
    """Another party's words on one line: no control or formatting characters, and not longer than `most`.

    >>> bounded_text("a\\u202eb\\nc", most=3)
    'ab …'
    """
    text = str(value)[: 4 * most]
    shown = "".join(" " if one in "\n\t" else "" if unicodedata.category(one).startswith("C") else one for one in text)
    return shown if len(shown) <= most else shown[:most] + "…"
