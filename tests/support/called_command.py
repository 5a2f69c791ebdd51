"""The command `fedfuse` called in this process, which starts no interpreter and imports nothing anew."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
from pathlib import Path
from unittest import mock

import fedfuse
from tests.support.kept_logging import kept_logging


def called(*words: object, terminal: str | None = None) -> subprocess.CompletedProcess[str]:
    """Its exit code and what it printed; what is typed where `terminal` is given, no terminal at all where it is not."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.ExitStack() as stack:
        # A fixture of a session calls it before any test's own look at the log begins.
        stack.enter_context(kept_logging())
        if terminal is None:
            stdin = stack.enter_context(Path(os.devnull).open())
        else:
            ours, theirs = pty.openpty()
            stack.callback(os.close, ours)
            os.write(ours, terminal.encode())
            stdin = stack.enter_context(os.fdopen(theirs))
        stack.enter_context(mock.patch("sys.stdin", stdin))
        stack.enter_context(mock.patch("sys.argv", ["fedfuse", *map(str, words)]))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            fedfuse.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return subprocess.CompletedProcess(list(map(str, words)), code, out.getvalue(), err.getvalue())
