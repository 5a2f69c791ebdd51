"""A small stand-in for Google's object store: the requests that gcsfs makes of it, and the condition that counts."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class GoogleStore(http.server.ThreadingHTTPServer):
    """Objects in memory; create-only where `ifGenerationMatch=0` says so, as the real one promises."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *args: Any) -> None:
        """A client that has read enough, or has gone, is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: GoogleStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for its second part

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, about, content = body.split(b"--==0==")[:3]
        name = json.loads(about.split(b"\n\n", 1)[1])["name"]
        data = content.split(b"\n\n", 1)[1].removesuffix(b"\n")
        with self.server.lock:
            if query.get("ifGenerationMatch") == ["0"] and name in self.server.objects:
                return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            self.server.objects[name] = data
        return self._answer(200, self._about(name))

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = unquote(parts.path.partition("/o/")[2])
        with self.server.lock:
            data = self.server.objects.get(name)
        if parts.path.endswith("/o"):
            return self._answer(200, {"items": [], "prefixes": []})
        if data is None:
            return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
        if not parts.path.startswith("/download"):
            return self._answer(200, self._about(name))
        begin, end = 0, len(data)
        if self.headers["Range"]:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last) + 1 if last else end
        return self._send(206 if self.headers["Range"] else 200, data[begin:end])

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.objects.pop(unquote(urlsplit(self.path).path.partition("/o/")[2]), None)
        self._send(204, b"")

    def _about(self, name: str) -> dict[str, Any]:
        size = str(len(self.server.objects[name]))
        return {"kind": "storage#object", "bucket": "bucket", "name": name, "size": size, "generation": "1", "contentType": "x"}

    def _answer(self, status: int, values: dict[str, Any]) -> None:
        self._send(status, json.dumps(values).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
