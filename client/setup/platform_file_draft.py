"""A first `platform.toml`, with comments, from what the tables look like; it is a draft, and says so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from client.setup.headerless import guess_by_position
from client.setup.schema_inference import Guess, guess, interactions_of_reviews, unread
from client.setup.table_preview import Sample
from shared.base.errors import InputError, shell_word

_HEAD = """\
# The platform '{name}'. It was drafted from the columns of your tables: read every line, correct it, then run
#
#     fedfuse check {folder}
#
# which shows what is read and what is left out, two users as the model will see them, and what a run would spend.
# Nothing in this file leaves the platform but its name and the declared number of users.

name = "{name}"
users = {users}                 # declared and public; noise is planned for it. It need not be exact, and should not be.
{state}{catalogue}
[privacy]
epsilon = {epsilon}                # what every user may lose, over all runs together
delta = {delta}
"""

_STATE = """\
state = "worker"             # ledger, caches and this platform's identity
"""

_FEDERATION = """
[federation]                 # on what terms this platform takes part; the worker refuses whatever asks for more
coordinator = "{coordinator}"
peers = "peers.toml"         # identities of the other platforms, for the secure sum: fedfuse client trust {folder} FILE
# minimum_participants = 3   # never be one of fewer; under the secure sum the cryptography holds it too
maximum_epsilon_per_run = {half}   # of one run, at most; a run that names none asks for a quarter of what is left
minimum_noise_multiplier = 0.3   # of training, of the popularity prior and of metrics
maximum_sample_rate = 0.5    # largest part of the users that a step may draw
colluders = 1                # how many platforms may be on the coordinator's side: a secure sum must withstand so many
minimum_threshold = 0.5      # smallest part of the platforms of which a secure sum may be
metrics = true               # whether noised, charged metrics are answered
maximum_evaluations = 20     # of one run
answer_step = 1.0            # seconds between the moments at which answers may leave: how long rows took says something of them
# maximum_rounds = 100
# strategies = ["secure-sum", "fedavg"]
# backbones = ["minilm"]     # models that a run may make this machine load
# show_budget = false        # show the coordinator this run's part of the budget alone
"""

_UNDECLARED = """
# Which items there are is public, so it must not come from users' rows. No table lists the items: name a public list of their
# ids, one a row, in place of the line below (or add a source of kind "items").
#     catalogue = { path = "items.csv", column = "item" }
catalogue = "from-interactions"   # for simulations alone: a deployed platform refuses to run with it
"""
_DECLARED = """
# Which items there are is public: the ids of {tables}. An item in users' rows that is not listed there is left out.
"""


def draft(
    name: str,
    samples: Iterable[Sample],
    *,
    coordinator: str | None,
    folder: Path,
    check: Path,
    users: int,
    epsilon: float,
    delta: float,
) -> tuple[str, list[tuple[Sample, Guess | None]]]:
    """The text of the platform file, and what was guessed of each table.

    Args:
        name: Of the platform.
        coordinator: Address of the federation that it takes part in; None for a simulation.
        folder: Where the file will be written.
        check: What its person gives to `fedfuse check`.

    Raises:
        InputError: no table looks like interactions; there is nothing to train on.
    """
    found = [(sample, guess(sample) if _has_header(sample) else guess_by_position(sample.frame)) for sample in samples]
    kinds = [made.kind for _, made in found if made is not None]
    if "interactions" not in kinds and "reviews" in kinds:
        # Who wrote of an item has met it: the only table that many have.
        reviewed = [sample for sample, made in found if made is not None and made.kind == "reviews"]
        found += [(sample, interactions_of_reviews(sample)) for sample in reviewed]
        kinds.append("interactions")
    if "interactions" not in kinds:
        bare = [sample.name for sample, _ in found if not _has_header(sample)]
        cures = [
            f"'{name}' seems to begin with a row, not a header: header = false, columns = {{ user = 1, item = 2 }} in its source"
            for name in bare[:1]
        ]
        cures.append("call the columns 'user' and 'item' (of a copy, or in the query)")
        seen = "; ".join(f"{sample.name}: {', '.join(sample.frame.columns[:12])}" for sample, _ in found) or "no table"
        raise InputError(
            "no table looks like interactions (a user and an item in every row)",
            where=seen,
            do="; ".join([*cures, "or write the platform file by hand: docs/platform-file.md"]),
        )
    catalogues = [sample.name for sample, made in found if made is not None and made.kind == "items"]
    text = _HEAD.format(
        catalogue=_DECLARED.format(tables=" and ".join(f"'{name}'" for name in catalogues)) if catalogues else _UNDECLARED,
        name=name,
        folder=shell_word(check),
        users=users,
        state="" if coordinator is None else _STATE,
        epsilon=float(epsilon),
        delta=delta,
    )
    if coordinator is not None:
        text += _FEDERATION.format(coordinator=coordinator, folder=shell_word(folder), half=_half(epsilon))
    names: set[str] = set()
    # Interactions first: they are what everything else is about.
    for sample, made in sorted(found, key=lambda pair: pair[1] is None or pair[1].kind != "interactions"):
        if made is None:
            text += (
                f"\n# Table '{sample.name}' ({', '.join(sample.frame.columns[:12])}) speaks of no user and no item: left out.\n"
            )
            continue
        called = sample.name
        while called in names:
            called += "-2"
        names.add(called)
        text += _section(called, sample, made, folder)
    return text, found


def _has_header(sample: Sample) -> bool:
    return sample.keys.get("header") is not False


def _half(epsilon: float) -> str:
    """Half of a budget as TOML has it: a run that asks for much gets no more, and one by mistake leaves something."""
    return f"{epsilon / 2:.6g}" if epsilon < float("inf") else "inf"


def _section(name: str, sample: Sample, made: Guess, folder: Path) -> str:
    lines = ["", f"[sources.{name}]" if name.replace("-", "").isalnum() else f"[sources.{json.dumps(name)}]"]
    lines.append(f"kind = {_quoted(made.kind)}")
    for key, value in sample.keys.items():
        if isinstance(value, bool):
            lines.append(f"{key} = {json.dumps(value)}")
            continue
        several = value if isinstance(value, list) else [value]
        shown = [os.path.relpath(one, folder) if key == "path" and not Path(one).is_absolute() else one for one in several]
        if key == "encoding":
            lines.append("# encoding: guessed from the bytes; look at the texts that `fedfuse check` shows")
        lines.append(f"{key} = {json.dumps(shown) if isinstance(value, list) else _quoted(shown[0])}")
    lines += [f"# {remark}" for remark in made.remarks]
    positions = not _has_header(sample)
    lines.append(f"columns = {_table(made.columns, positions=positions)}")
    if made.explode:
        lines.append("explode = true")
    if made.time_format is not None:
        lines.append(f"time_format = {_quoted(made.time_format)}")
    if made.keys is not None:
        lines.append(f"keys = {_quoted(made.keys)}")
    if made.events:
        lines.append(f"events = {{ {', '.join(f'{_key(event)} = {weight}' for event, weight in made.events.items())} }}")
    if made.threshold is not None:
        lines.append(f"threshold = {made.threshold}")
    if made.kind == "vectors":
        lines.append("bound = 1.0")
        if made.width is not None:
            lines.append(f"width = {made.width}   # numbers of a vector; others are left out")
    if made.kind == "social":
        lines += ["influence = 0", "friends = 3"]
    if made.texts:
        texts = [int(one) if positions else one for one in made.texts]
        lines.append(f"text = {json.dumps(texts, ensure_ascii=False)}")
    lines += _numbers(made)
    lines += [f"# not read: {', '.join(map(repr, left))}"] if (left := unread(sample, made)) else []
    return "\n".join(lines) + "\n"


def _numbers(made: Guess) -> Sequence[str]:
    """Numbers need bounds that are declared, and not the data's own; so they are only proposed."""
    lines = [
        f"# numbers = {{ {_key(name)} = {{ min = 0, max = 100, buckets = 4 }} }}   # declare public bounds; not the data's own"
        for name in made.numbers
    ]
    if made.kind == "profiles" and not made.texts:
        lines.append("values = {}   # a profile needs text, values or numbers")
    return lines


def _table(values: Mapping[str, str], *, positions: bool) -> str:
    return "{ " + ", ".join(f"{key} = {value if positions else _quoted(value)}" for key, value in values.items()) + " }"


def _key(text: str) -> str:
    return (
        text
        if text and all(character.isascii() and (character.isalnum() or character in "-_") for character in text)
        else _quoted(text)
    )


def _quoted(text: str) -> str:
    # A JSON string of ASCII escapes is a TOML basic string.
    return json.dumps(text)
