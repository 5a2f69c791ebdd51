"""A TCP relay that can be cut: what a firewall, a pulled cable or a broken route looks like to both ends."""

from __future__ import annotations

import contextlib
import socket
import threading


class WireCutter:
    """Relays connections to `port` of this machine until it is cut.

    Args:
        port: Where the server really listens.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        self._whole = threading.Event()
        self._whole.set()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing passes any more: what is open dies, what is new hangs."""
        self._whole.clear()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Everything passes again."""
        self._whole.set()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole.is_set():
                # Left unanswered, as a packet that is dropped.
                threading.Timer(8.0, near.close).start()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5.0)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.close()
