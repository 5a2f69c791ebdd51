"""Every field of every answer of a platform: what it holds, what one user can change in it, and its size.

`docs/guarantees.md` has the same list in prose. A test holds it equal to the message classes.
"""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = "nothing"


@dataclass(frozen=True)
class FieldFacts:
    """What one field holds.

    Args:
        messages: Kinds of answer that have it.
        name: As in the message class.
        one_user: What one user can change in it.
        size: Bytes, in words.
    """

    messages: tuple[str, ...]
    name: str
    what: str
    one_user: str
    size: str


_RELEASED = ("update", "summed", "preferred", "metrics", "personalised")
_NAMED = (*_RELEASED, "joined", "quoted", "secured", "refusal")
_ROUND = (*_RELEASED, "secured", "refusal")
_PLANNED = "follows from the platform file, the settings and the charges so far"

FIELDS = (
    FieldFacts(("update",), "change", "the noised change of the adapter", "each step's sum by the clipping bound", "4 a number"),
    FieldFacts(
        ("summed",), "body", "a noised sum under masks; only the sum over platforms is readable", "its bound", "4 a number"
    ),
    FieldFacts(("preferred",), "sums", "a noised sum of what users like of shared items", "a vector of norm 1", "4 a number"),
    FieldFacts(("metrics",), "quality", "ranking quality, from noised sums (exact in a simulation)", "a vector of norm 1", "24"),
    FieldFacts(("personalised",), "chosen", "whether a noised comparison was won", "a gain between -1 and 1", "1"),
    FieldFacts(_NAMED, "platform", "the platform's name, declared", NOTHING, "63 at most"),
    FieldFacts(_NAMED, "run", "the run's name, as the coordinator gave it", NOTHING, "63 at most"),
    FieldFacts((*_RELEASED, "joined", "quoted"), "users", "declared number of users, never the counted one", NOTHING, "8"),
    FieldFacts(_ROUND, "round", "number of the round that is answered", NOTHING, "8"),
    FieldFacts(_RELEASED, "epsilon", "what is spent, from the ledger", NOTHING, "8"),
    FieldFacts(_RELEASED, "ledger", "hash of the ledger's line that names this answer", NOTHING, "64"),
    FieldFacts(_RELEASED, "signature", "the platform's signature of that hash", NOTHING, "88"),
    FieldFacts(_RELEASED, "seconds", "time to answer, as one of few public moments", "which moment", "8"),
    FieldFacts(("metrics",), "label", "which model was measured", NOTHING, "9 at most"),
    FieldFacts(("metrics",), "exact", "whether it is without noise, as in a simulation alone", NOTHING, "1"),
    FieldFacts(("joined",), "items", "size of the public catalogue", NOTHING, "8"),
    FieldFacts(("joined",), "catalogue", "hash of the public catalogue", NOTHING, "64"),
    FieldFacts(("joined",), "item_list", "hashes of the public items' keys", NOTHING, "8 an item"),
    FieldFacts(("joined",), "budget", "the platform's budget", NOTHING, "8"),
    FieldFacts(("joined", "quoted"), "delta", "the delta of its budget", NOTHING, "8"),
    FieldFacts(("joined",), "planned_epsilon", f"what the plan will spend; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("joined", "quoted"), "noise_multiplier", f"noise of training; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("joined", "quoted"), "preference_noise", f"noise of preferences; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("joined", "quoted"), "taste_noise", f"noise of the taste map; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("joined",), "signal_to_noise", f"a bound of signal over noise; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("joined",), "finished", "last round answered", NOTHING, "8"),
    FieldFacts(("joined",), "rank", "rank that it trains", NOTHING, "8"),
    FieldFacts(("joined",), "keys", "public keys for the secure sum", NOTHING, "fixed by the protocol"),
    FieldFacts(("joined", "quoted"), "trust", "signed digests of the identities that it trusts", NOTHING, "32 a platform"),
    FieldFacts(("quoted",), "epsilon", f"by how much the run would raise what is spent; {_PLANNED}", NOTHING, "8"),
    FieldFacts(("quoted",), "shown", "whether the platform lets its budget be seen", NOTHING, "1"),
    FieldFacts(("quoted",), "left", "what is left of its budget, if it lets that be seen", NOTHING, "8"),
    FieldFacts(("quoted",), "left_after", "the same after the run", NOTHING, "8"),
    FieldFacts(("secured",), "phase", "step of the secure sum", NOTHING, "10 at most"),
    FieldFacts(("secured",), "body", "keys, signatures and sealed shares of the secure sum", NOTHING, "fixed by the protocol"),
    FieldFacts(("refusal",), "reason", "one word of a closed list", NOTHING, "8 at most"),
)
