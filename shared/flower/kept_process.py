"""Flower's helper process, started again when it ends.

Flower's server and its SuperNode each start one `flower-superexec`, which starts the apps, and never look at it again. It ends by
itself when a request of its own fails, as on a full disk, or when the system kills it. Everything else goes on: the server
answers, the SuperNode is online, and no run and no message is processed any more, with nothing in the log.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from typing import Any

_AGAIN = 1.0
"""Seconds after which it is started again, so that one that cannot start does not take a processor."""


class KeptProcess:
    """A process that is restarted whenever it ends before `terminate`.

    It has the methods of `subprocess.Popen` that Flower calls.

    Args:
        start: Starts it.
        ended: Called with how it ended ("code 1", "signal 9"), each time that it is to be started again.
        again: Seconds until it is.

    Raises:
        OSError: it cannot be started at first.
    """

    def __init__(
        self, start: Callable[[], subprocess.Popen[bytes]], *, ended: Callable[[str], object], again: float = _AGAIN
    ) -> None:
        self._start, self._ended, self._again = start, ended, again
        self._told, self._changing = threading.Event(), threading.Lock()
        self._process = start()
        threading.Thread(target=self._keep, name="kept-process", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process that runs now, or ran last."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it to end, and leave it ended."""
        with self._changing:
            self._told.set()
            self._process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """The code that it ended with.

        Raises:
            subprocess.TimeoutExpired: it has not ended after so many seconds.
        """
        return self._process.wait(timeout)

    def poll(self) -> int | None:
        """The code that it ended with; None while it runs."""
        return self._process.poll()

    def _keep(self) -> None:
        while True:
            code = self._process.wait()
            if self._told.is_set():
                return
            self._ended(f"signal {-code}" if code < 0 else f"code {code}")
            if not self._begun_again():
                return

    def _begun_again(self) -> bool:
        """Whether it runs again; not if it was told to end meanwhile."""
        while not self._told.wait(self._again):
            with self._changing:
                if self._told.is_set():
                    return False
                try:
                    self._process = self._start()
                except OSError as error:
                    self._ended(f"it cannot be started: {error.strerror}")
                else:
                    return True
        return False


class Keeping:
    """Replaces the `subprocess` module where Flower starts its helper.

    Args:
        ended: As `KeptProcess`.
        real: The module, or another replacement of it.
    """

    def __init__(self, ended: Callable[[str], object], real: Any = subprocess) -> None:
        self._ended, self._real = ended, real

    def Popen(self, *words: Any, **options: Any) -> KeptProcess:
        """Start a process, and keep it going."""
        return KeptProcess(lambda: self._real.Popen(*words, **options), ended=self._ended)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real module's."""
        return getattr(self._real, name)
