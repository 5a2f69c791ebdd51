"""The report of a run that goes on, served on this machine alone and made anew for every reader."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from time import monotonic

from server.report.page import render_page
from server.report.report_model import RunReport, bounded_text
from shared.base.errors import FedfuseError, StorageError

ADDRESS = "127.0.0.1"
REFRESH = 5
"""Seconds after which a browser asks again; a report is made no more often."""


class LiveReport(ThreadingHTTPServer):
    """Serves `/` (the page, which asks again by itself) and `/report.json` on 127.0.0.1.

    Args:
        make: Makes the report.
        port: 0: any that is free.

    Raises:
        StorageError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, make: Callable[[], RunReport], *, port: int = 0) -> None:
        self._make, self._lock = make, Lock()
        self._made: RunReport | None = None
        self._when = 0.0
        try:
            super().__init__((ADDRESS, port), _Reader)
        except OSError as error:
            raise StorageError(
                f"the port cannot be had ({error.strerror})", where=f"{ADDRESS}:{port}", do="name another with --port"
            ) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def current(self) -> RunReport:
        """The report as of now, or of less than `REFRESH` seconds ago.

        Raises:
            FedfuseError: there is nothing to report yet.
        """
        with self._lock:
            if self._made is None or monotonic() - self._when >= REFRESH:
                self._made, self._when = self._make(), monotonic()
            return self._made


class _Reader(BaseHTTPRequestHandler):
    server: LiveReport

    def do_GET(self) -> None:
        """Answer with the page or the JSON."""
        # A page of somebody else whose name resolves to this machine must not read the report (DNS rebinding).
        if self.headers.get("Host") not in [f"{name}:{self.server.server_address[1]}" for name in (ADDRESS, "localhost")]:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "this is served to 127.0.0.1 alone\n")
        elif self.path not in ("/", "/report.json"):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /report.json\n")
        else:
            try:
                report = self.server.current()
            except FedfuseError as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"cannot tell yet: {bounded_text(error.found)}\n")
                return
            if self.path == "/":
                self._send(HTTPStatus.OK, "text/html", render_page(report, refresh=0 if report.finished else REFRESH))
            else:
                self._send(HTTPStatus.OK, "application/json", report.to_json())

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Refresh", str(REFRESH))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
