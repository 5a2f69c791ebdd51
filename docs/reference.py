"""Writes the pages of `docs/` that are made from the code: `python docs/reference.py`, or `make docs`.

Each page is a function of the code alone, and `tests/test_papers.py` holds the files equal to them.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import click  # noqa: E402
import typer.main  # noqa: E402
from rich.text import Text  # noqa: E402

import fedfuse  # noqa: E402
from client.config import reference  # noqa: E402
from shared.base.errors import ExitCode  # noqa: E402
from shared.protocol import messages  # noqa: E402

MADE = "This page is made from the code by `make docs`, and a test holds it equal."
API: Mapping[str, tuple[str, ...]] = {
    "Files and settings": (
        "shared.base.settings.build",
        "client.config.platform_file.load",
        "client.sources.platform_tables.read_tables",
        "client.examples.split.leave_one_out",
        "simulations.worlds.world.open_world",
    ),
    "Runs": ("simulations.run.run_simulation", "server.run.federation.run_federation", "strategies.composition.named"),
    "Recommending": (
        "client.recommender.own_model.fit_own",
        "client.recommender.fused_model.fit_fused_model",
        "client.recommender.own_evaluation.evaluate_platform",
        "client.recommender.model_comparison.compare_models",
        "client.recommender.model_comparison.bootstrap_interval",
        "client.recommender.serving.recommend.recommend_items",
        "client.recommender.serving.recommend_all.recommend_everybody",
    ),
    "Models": (
        "shared.model.backbone.load_backbone",
        "shared.model.peft_export.export",
        "shared.model.peft_export.load_published",
        "shared.preferences.shared_preferences.load_preferences",
        "shared.preferences.denoising.preference_factors",
        "server.registry.pull.pull_model",
    ),
    "Privacy": (
        "client.privacy.bounded_sum.BoundedSum",
        "client.privacy.mechanism.Mechanism",
        "shared.privacy.releases.Release",
        "shared.privacy.calibration.noise_multiplier",
        "shared.privacy.plan.make_plan",
        "shared.privacy.plan.signal_to_noise",
        "shared.ledger.reading.read_ledger",
        "shared.ledger.audit.audit_ledgers",
        "shared.ledger.audit.audit_run",
        "shared.ledger.what_if.epsilon_curve",
    ),
}
"""What a program that uses Fedfuse calls most."""


def command_line() -> str:
    """The text of `docs/command-line.md`."""
    parts = [
        "# The command line",
        f"Every command, its arguments and its options, as `--help` shows them. {MADE}",
        "Commands that print a result take `--json`, and then an error is a JSON object on standard output, too.",
        "## Exit codes",
        "\n".join(["| code | means |", "| --- | --- |", *(f"| {code} | {code.meaning} |" for code in ExitCode)]),
        "Starting again may help after 1; after 7 `fedfuse run --resume` does. 2 to 6 need a person first, and the units of "
        "`fedfuse deploy files` start nothing again that ended with a code that its role cannot recover from. `fedfuse audit`, "
        "`fedfuse ledger verify` and `fedfuse report` have codes of their own: 0 sound, 1 unsound, 2 cannot tell.",
    ]
    return "\n\n".join([*parts, *_commands(typer.main.get_command(fedfuse.app), "fedfuse")]) + "\n"


def _commands(command: click.Command, name: str) -> Iterator[str]:
    """The sections of a command and of those below it."""
    group = isinstance(command, click.Group)
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if isinstance(one, click.Argument)]
    usage = " ".join([name, *(_metavar(one) for one in arguments), *(["COMMAND"] if group else []), "[OPTIONS]"])
    yield f"## {name}" if name.count(" ") < 1 else f"### {name}"
    yield f"`{usage}`"
    if command.help:
        yield _plain(inspect.cleandoc(command.help))
    if arguments:
        rows = [f"| `{_metavar(one)}` | {_cell(getattr(one, 'help', None) or '')} |" for one in arguments]
        yield "\n".join(["| argument | is |", "| --- | --- |", *rows])
    options = [one for one in shown if isinstance(one, click.Option)]
    if options:
        rows = [f"| {_spelled(one)} | {_default(one)} | {_cell(one.help or '')} |" for one in options]
        yield "\n".join(["| option | default | does |", "| --- | --- | --- |", *rows])
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            if not command.commands[inner].hidden:
                yield from _commands(command.commands[inner], f"{name} {inner}")


def _metavar(argument: click.Argument) -> str:
    name = str(argument.metavar or argument.name).upper().strip("[]")
    dots = "..." if argument.nargs == -1 else ""
    return f"{name}{dots}" if argument.required else f"[{name}]{dots}"


def _spelled(option: click.Option) -> str:
    kind = ""
    if not option.is_flag:
        kind = "|".join(map(str, option.type.choices)) if isinstance(option.type, click.Choice) else option.type.name.upper()
    return ", ".join(f"`{one} {kind}`".replace(" `", "`") for one in (*option.opts, *option.secondary_opts)).replace("|", "\\|")


def _default(option: click.Option) -> str:
    value = option.default
    if value is None or value is False or value in ("", ()) or callable(value) or repr(value).startswith("Sentinel"):
        return ""
    return f"`{value.value if isinstance(value, enum.Enum) else value}`"


def _plain(text: str) -> str:
    """Without rich's markup, one paragraph a line; what click is not to wrap is code."""
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(text: str) -> str:
    if text.startswith("\b\n") and "\n" in text[2:].strip():
        return "\n".join(["```text", text[2:].strip(), "```"])
    return " ".join(Text.from_markup(text).plain.replace("\b", "").split())


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("\n\n", " ")


def message_format() -> str:
    """The text of `docs/messages.md`."""
    parts = [
        "# Messages",
        f"Every request of a coordinator and every answer of a platform, version {messages.PROTOCOL} of the protocol. "
        "On the wire each is a Flower `RecordDict`: what is small in a `ConfigRecord`, arrays and bodies as safetensors or "
        "bounded binary, nothing pickled "
        "(`shared/protocol/flower_records.py`). What an answer may hold, and what one user can change in it, is in "
        f"[guarantees.md](guarantees.md#what-leaves-field-by-field). {MADE}",
    ]
    kinds = [one for _, one in inspect.getmembers(messages, inspect.isclass) if getattr(one, "kind", "")]
    asked, answered = typing.get_args(messages.Request), typing.get_args(messages.Answer)
    for title, group in (("Requests", asked), ("Answers", answered)):
        parts.append(f"## {title}")
        for one in (one for one in group if one in kinds):
            parts += [f"### `{one.kind}`", _message(one)]
    parts.append("## Words")
    for name in ("Reason", "Label", "Phase", "Factors"):
        words = getattr(messages, name)
        parts += [f"### {name}", f"{inspect.cleandoc(words.__doc__)} {', '.join(f'`{one.value}`' for one in words)}."]
    return "\n\n".join(parts) + "\n"


def _message(kind: type) -> str:
    said = {key: text for one in kind.__mro__[::-1] for key, text in reference.descriptions(one).items()}
    rows = [
        f"| `{field.name}` | {_type(field.type)} | {said.get(field.name, '')} |"
        for field in dataclasses.fields(kind)
        if field.name != "settings"
    ]
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
    return "\n".join([text, "", "| field | type | is |", "| --- | --- | --- |", *rows])


def _type(annotation: Any) -> str:
    return f"`{annotation if isinstance(annotation, str) else getattr(annotation, '__name__', annotation)}`".replace("|", "\\|")


def programming_interface() -> str:
    """The text of `docs/api.md`."""
    parts = [
        "# For programs",
        "What a program that uses Fedfuse calls most. Any module may be imported; these are the functions whose names and "
        f"arguments change only with a line in the change log. {MADE}",
    ]
    for title, names in API.items():
        parts.append(f"## {title}")
        for name in names:
            module, _, what = name.rpartition(".")
            thing = getattr(importlib.import_module(module), what)
            signature = re.sub(r"<[^<>]*( object)? at 0x[0-9a-f]+>|<factory>", "...", _signature(thing))
            parts += [
                f"### {what}",
                f"`from {module} import {what}`",
                f"```python\n{_wrapped(what, signature)}\n```",
                _docstring(inspect.cleandoc(thing.__doc__ or "")),
            ]
    return "\n\n".join(parts) + "\n"


class _Written(str):
    """An annotation, shown as it is in the code and not in quotation marks."""

    __repr__ = str.__str__


def _signature(thing: Any) -> str:
    found = inspect.signature(thing)
    parts = [one.replace(annotation=_Written(one.annotation)) for one in found.parameters.values()]
    shown = str(found.replace(parameters=parts, return_annotation=_Written(found.return_annotation)))
    return re.sub(r"<(\w+\.\w+): [^<>]*>", r"\1", shown)  # a member of an enumeration


def _wrapped(name: str, signature: str) -> str:
    if len(name + signature) <= 110:
        return name + signature
    inside, _, answer = signature[1:].rpartition(")")
    listed, depth, begin = [], 0, 0
    for place, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            listed.append(inside[begin:place].strip())
            begin = place + 1
    listed.append(inside[begin:].strip())
    return "\n".join([f"{name}(", *(f"    {one}," for one in listed), f"){answer}"])


def _docstring(text: str) -> str:
    """Google's sections as lists, the rest as it is."""
    parts = []
    for part in text.split("\n\n"):
        title, _, body = part.partition("\n")
        if title in ("Args:", "Returns:", "Raises:", "Guarantees:") and body:
            entries = re.split(r"\n(?= {4}\S)", "\n" + body)
            items = [" ".join(entry.split()) for entry in entries if entry.strip()]
            listed = (
                [re.sub(r"^([\w, .]+):", r"`\1`:", one) for one in items] if title in ("Args:", "Raises:") else [" ".join(items)]
            )
            parts.append("\n".join([f"**{title[:-1]}**", "", *(f"- {one}" for one in listed)]))
        elif part.lstrip().startswith(("|", ">>>")):
            parts.append(inspect.cleandoc(part) if part.lstrip().startswith("|") else f"```python\n{part}\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)


PAGES: Mapping[str, typing.Callable[[], str]] = {
    "platform-file.md": reference.platform_file_reference,
    "settings.md": reference.settings_reference,
    "command-line.md": command_line,
    "messages.md": message_format,
    "api.md": programming_interface,
}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (DOCS / page).write_text(text(), encoding="utf-8")
