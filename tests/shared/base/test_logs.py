"""Log lines: one a record, of one form, with their facts; in private components, our own words only."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.base.logs import FORMAT, LEVEL, LONGEST, Form, Lines, about, configure, log_environment, tell

FIELDS = ["ts", "level", "component", "run", "round", "platform", "event", "message"]
log = logging.getLogger("client.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    names = ("fedfuse", "client", "server", "shared", "strategies", "simulations", "flwr")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)


def lines(component: str, form: Form = Form.JSON, **how: Any) -> io.StringIO:
    stream = io.StringIO()
    configure(component, form=form, stream=stream, **how)
    return stream


def last(stream: io.StringIO) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return values


class TestALine:
    def test_has_every_field_in_order(self) -> None:
        stream = lines("server")
        log.info("hello %s", "you")
        assert list(last(stream)) == FIELDS
        assert {key: last(stream)[key] for key in FIELDS[1:]} == {
            "level": "info",
            "component": "server",
            "run": None,
            "round": None,
            "platform": None,
            "event": None,
            "message": "hello you",
        }
        assert last(stream)["ts"].endswith("Z") and len(last(stream)["ts"]) == 24

    def test_knows_what_it_is_about(self) -> None:
        stream = lines("worker", platform="shop")
        with about(run="spring", round=3):
            tell(log, "refused", "no more", level=logging.WARNING)
            with about(round=4):
                tell(log, "answered", "yes", run="summer")
            inner = last(stream)
            log.info("after")
        assert (inner["run"], inner["round"], inner["platform"], inner["event"]) == ("summer", 4, "shop", "answered")
        assert (last(stream)["run"], last(stream)["round"]) == ("spring", 3)
        log.info("outside")
        assert (last(stream)["run"], last(stream)["round"], last(stream)["platform"]) == (None, None, "shop")

    def test_facts_stay_in_their_thread(self) -> None:
        stream = lines("worker")
        with about(run="spring"):
            thread = threading.Thread(target=log.info, args=("elsewhere",))
            thread.start()
            thread.join()
        assert last(stream)["run"] is None

    @given(st.text(max_size=200))
    @pytest.mark.parametrize("form", list(Form))
    @pytest.mark.parametrize("component", ["worker", "server"])
    def test_is_one_line_whatever_is_said(self, form: Form, component: str, text: str) -> None:
        record = logging.LogRecord("client.x", logging.INFO, "", 1, "%s", (text,), None)
        line = Lines(component, form=form).format(record)
        assert len(line.splitlines()) <= 1 and "\x1b" not in line and line.isprintable()
        if form is Form.JSON:
            assert json.loads(line)["message"] == text[:LONGEST]

    def test_is_bounded(self) -> None:
        stream = lines("worker")
        log.info("x" * 1_000_000)
        assert len(stream.getvalue()) < LONGEST + 500

    def test_a_wrong_placeholder_stops_nothing(self) -> None:
        for component in ("worker", "server"):
            stream = lines(component)
            log.info("%d", "secret-value")
            assert "cannot be formatted" in last(stream)["message"] and "secret-value" not in stream.getvalue()

    def test_text_is_for_a_person(self) -> None:
        stream = lines("server", Form.TEXT)
        tell(log, "round", "round %d is done", 3, run="spring", round=3)
        assert stream.getvalue()[8:] == " INFO server spring/3 [round] round 3 is done\n"


class TestConfigure:
    @pytest.mark.parametrize(("form", "level"), [("xml", "info"), ("json", "loud"), ("", "info")])
    def test_what_is_unknown(self, form: str, level: str) -> None:
        with pytest.raises(InputError, match="log format"):
            configure("server", form=form, level=level)

    def test_levels(self) -> None:
        stream = lines("server", level="error")
        log.warning("not this")
        logging.getLogger("other").warning("nor this")
        log.error("this")
        assert len(stream.getvalue().splitlines()) == 1
        stream = lines("server", level="debug")
        log.debug("mine")
        logging.getLogger("other").info("a library's chatter")
        assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["mine"]

    def test_again_takes_the_place_of_before(self) -> None:
        first = lines("server")
        second = lines("worker")
        log.info("x")
        assert first.getvalue() == "" and last(second)["component"] == "worker"

    def test_flower_speaks_the_same_form(self) -> None:
        from flwr.supercore.logger import FLOWER_LOGGER

        handlers, propagate = list(FLOWER_LOGGER.handlers), FLOWER_LOGGER.propagate
        try:
            stream = lines("server", flower=True)
            FLOWER_LOGGER.info("Starting\tFlower")
            assert last(stream)["message"] == "Starting\tFlower" and len(stream.getvalue().splitlines()) == 1
        finally:
            FLOWER_LOGGER.handlers[:], FLOWER_LOGGER.propagate = handlers, propagate

    @pytest.mark.parametrize("module", ["client.app", "server.app"])
    def test_processes_that_flower_starts_learn_it_from_their_environment(self, module: str) -> None:
        code = (
            f"import logging, {module}; logging.getLogger('flwr').error('from flower'); logging.getLogger('client').info('mine')"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[3],
            env={**os.environ, **log_environment("json", "info")},
            capture_output=True,
            text=True,
            check=True,
        )
        found = [json.loads(line) for line in run.stderr.splitlines()]
        assert [line["message"] for line in found] == ["from flower", "mine"]
        assert {line["component"] for line in found} == {"messenger" if module == "client.app" else "server"}

    def test_without_it_nothing_is_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from shared.base.logs import configure_from_environment

        monkeypatch.delenv(FORMAT, raising=False)
        monkeypatch.setenv(LEVEL, "debug")
        before = list(logging.getLogger().handlers)
        configure_from_environment("messenger")
        assert logging.getLogger().handlers == before


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("component", ["worker", "messenger"])
class TestPrivateRooms:
    """Whatever quotes data on its way into the log, the data does not arrive."""

    def test_the_text_of_an_exception_is_not_written(self, component: str, form: Form) -> None:
        stream = lines(component, form)
        try:
            try:
                raise KeyError("zebrafinch")
            except KeyError as error:
                raise ValueError("user u17 bought quokka") from error
        except ValueError as error:
            log.exception("it failed: %s", error)
            log.error("it failed: %(error)s", {"error": error})
            logging.getLogger("flwr").error("ClientApp raised an exception", exc_info=error)
        text = stream.getvalue()
        assert not [canary for canary in ("zebrafinch", "quokka", "u17") if canary in text]
        assert text.count("ValueError") >= 3 and "KeyError" in text and "test_logs.py" in text

    def test_of_our_own_errors_what_they_found_and_where(self, component: str, form: Form) -> None:
        stream = lines(component, form)
        error = InputError("column 'id' does not exist", where="shop.csv", do="expected one of: zebrafinch", quote="quokka")
        try:
            raise error
        except InputError:
            log.exception("refused: %s", error)
        text = stream.getvalue()
        assert text.count("does not exist") == 2 and "shop.csv" in text
        assert "zebrafinch" not in text and "quokka" not in text
        assert "zebrafinch" in str(error) and "quokka" in str(error)  # a person at the terminal sees them

    def test_a_librarys_words_are_withheld(self, component: str, form: Form) -> None:
        stream = lines(component, form)
        logging.getLogger("sqlalchemy.engine").warning("INSERT zebrafinch")
        logging.getLogger("polars").error("could not parse %s", "quokka")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("axolotl", stacklevel=1)
        text = stream.getvalue()
        assert not [canary for canary in ("zebrafinch", "quokka", "axolotl") if canary in text]
        assert "sqlalchemy.engine" in text and "polars" in text and "py.warnings" in text


def test_other_rooms_say_all() -> None:
    stream = lines("server")
    try:
        raise StorageError("no space", do="free some")
    except StorageError:
        log.exception("stopped")
    assert "free some" in last(stream)["error"]["text"]
    logging.getLogger("urllib3").warning("retrying")
    assert last(stream)["message"] == "retrying"


def test_a_brief_error_has_no_quote() -> None:
    error = FedfuseError("found", where="there", do="this", quote="data")
    assert error.brief == "found (there)" and str(error) == "found\n  it says: data\n  where: there\n  do: this"
    assert FedfuseError("found").brief == str(FedfuseError("found")) == "found"
