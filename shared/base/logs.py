"""Log lines of every process: one JSON object a line, or one line for a person, and never a word of anybody's rows.

    {"ts": "2030-01-02T03:04:05.678Z", "level": "info", "component": "worker", "run": "spring", "round": 3, "platform": "shop",
     "event": "refused", "message": "refused (budget): ..."}

Whoever logs says what is said in words of its own. What others say may quote data: a database quotes the value that it
could not read, a file's first row may pass for its header, an exception's text may hold anything. So in the components that touch
rows (`PRIVATE`)

- an exception's text is never written: its type and where it was raised are, and of a `FedfuseError` what it found and where,
  which are our own words (`FedfuseError.brief`);
- a message of a library is withheld; that there was one, and of which library, is written.

What goes to a person at a terminal (`fedfuse check`) is not a log and says everything.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from shared.base.errors import FedfuseError, InputError

PRIVATE = frozenset({"worker", "messenger"})
"""Rooms whose processes touch rows, or speak with one that does."""
LONGEST = 4000
"""Characters of a message that are written: another party must not fill this one's disk."""
FORMAT, LEVEL = "FEDFUSE_LOG_FORMAT", "FEDFUSE_LOG_LEVEL"
"""Environment of processes that Flower starts for us."""

_OURS = frozenset({"fedfuse", "client", "server", "shared", "strategies", "simulations", "flwr", "root", "__main__"})
_FACTS: ContextVar[Mapping[str, str | int]] = ContextVar("facts", default={})  # noqa: B039 - never changed in place
_FIELDS = ("run", "round", "platform", "event")


class Form(StrEnum):
    """How a line looks."""

    JSON = "json"
    TEXT = "text"


def configure(
    component: str,
    *,
    form: Form | str = Form.TEXT,
    level: str = "info",
    platform: str = "",
    flower: bool = False,
    stream: IO[str] | None = None,
) -> None:
    """Send this process's log to `stream` in one form, in place of whatever was set up before.

    Args:
        component: What the process is: server, worker, messenger...
        level: debug, info, warning or error.
        platform: Whose process it is, where it is a platform's.
        flower: Take Flower's own lines in as well; imports it.
        stream: Standard error if None.

    Raises:
        InputError: the form or the level is unknown.
    """
    words = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in words or str(form) not in set(Form):
        raise InputError(
            f"log format {str(form)!r:.40} at level {level!r:.40}", where="the log", do=f"json or text; one of {', '.join(words)}"
        )
    handler = logging.StreamHandler(stream) if stream is not None else _Errors()
    handler.setFormatter(Lines(component, form=Form(form), platform=platform))
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING if words[level] < logging.WARNING else words[level])
    for name in _OURS - {"root"}:
        logging.getLogger(name).setLevel(words[level])
    logging.captureWarnings(True)
    if flower:
        import flwr.supercore.logger  # noqa: F401 - it sets up a handler of its own when it is imported

        theirs = logging.getLogger("flwr")
        for other in list(theirs.handlers):
            theirs.removeHandler(other)
        theirs.propagate = True


def configure_as_told(component: str, *, flower: bool = False) -> None:
    """As `configure`, in a process that a person or systemd started: what the environment says, else text."""
    configure(component, form=os.environ.get(FORMAT, Form.TEXT), level=os.environ.get(LEVEL, "info"), flower=flower)


def configure_from_environment(component: str, *, platform: str = "") -> None:
    """As `configure`, in a process that Flower started, if whoever started Flower asked for it (`log_environment`)."""
    if os.environ.get(FORMAT):
        configure(component, form=os.environ[FORMAT], level=os.environ.get(LEVEL, "info"), platform=platform, flower=True)


def log_environment(form: Form | str, level: str = "info") -> dict[str, str]:
    """What to put into a process's environment so that the components in it, and below it, log in this form."""
    return {FORMAT: str(form), LEVEL: level}


@contextmanager
def about(**facts: str | int) -> Iterator[None]:
    """Lines written inside, in this thread, are about this run, round or platform.

    >>> with about(run="spring", round=3):
    ...     dict(_FACTS.get())
    {'run': 'spring', 'round': 3}
    """
    token = _FACTS.set({**_FACTS.get(), **facts})
    try:
        yield
    finally:
        _FACTS.reset(token)


def tell(log: logging.Logger, event: str, message: str, *args: object, level: int = logging.INFO, **facts: str | int) -> None:
    """Log one event under a name that a machine can look for, with its facts (run, round, platform)."""
    log.log(level, message, *args, extra={"event": event, **facts}, stacklevel=2)


class _Errors(logging.StreamHandler[IO[str]]):
    """Writes to whatever standard error is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> IO[str]:  # type: ignore[override]
        return sys.stderr


class Lines(logging.Formatter):
    """Makes one line of a record.

    Guarantees: one line whatever is in the message; in a private component, nothing of an exception's or a library's text.
    """

    def __init__(self, component: str, *, form: Form = Form.JSON, platform: str = "") -> None:
        super().__init__()
        self._component, self._form, self._platform = component, form, platform
        self._private = component in PRIVATE

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        facts = {**({"platform": self._platform} if self._platform else {}), **_FACTS.get()}
        facts |= {name: getattr(record, name) for name in _FIELDS if getattr(record, name, None) is not None}
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "component": self._component,
            **{name: facts.get(name) for name in _FIELDS},
            "message": self._message(record)[:LONGEST],
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = self._error(error)
        return json.dumps(line) if self._form is Form.JSON else _text(line)

    def _message(self, record: logging.LogRecord) -> str:
        if self._private and record.name.partition(".")[0] not in _OURS:
            return f"a message of {record.name}, withheld: it may quote data"
        if self._private and record.args:
            given = record.args
            record = logging.makeLogRecord(record.__dict__)
            record.args = (
                {key: _named(value) for key, value in given.items()}
                if isinstance(given, Mapping)
                else tuple(_named(value) for value in given)
            )
        try:
            return record.getMessage()
        except Exception as error:  # noqa: BLE001 - a wrong placeholder must not stop what is being logged
            return f"a message of {record.name} that cannot be formatted ({type(error).__name__})"

    def _error(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        shown: dict[str, Any] = {"type": type(error).__name__}
        if isinstance(error, FedfuseError) or not self._private:
            shown["text"] = str(_named(error) if self._private else error)[:LONGEST]
        if error.__cause__ is not None:
            shown["cause"] = type(error.__cause__).__name__
        return {**shown, "at": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-20:]]}


def _named(value: object) -> object:
    """What may be written of a value that is to be logged: of an exception, its type, and our own words."""
    if isinstance(value, FedfuseError):
        return f"{type(value).__name__}: {value.brief}"
    return type(value).__name__ if isinstance(value, BaseException) else value


def _text(line: Mapping[str, Any]) -> str:
    place = "/".join(str(line[name]) for name in ("platform", "run", "round") if line[name] is not None)
    parts = [
        str(line["ts"])[11:19],
        str(line["level"]).upper(),
        str(line["component"]),
        place,
        line["event"] and f"[{line['event']}]",
    ]
    parts.append(str(line["message"]))
    if "error" in line:
        parts.append(json.dumps(line["error"]))
    return " ".join(_one_line(str(part)) for part in parts if part)


def _one_line(text: str) -> str:
    # Another party's words could otherwise write lines of their own, or move the cursor of who reads.
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
