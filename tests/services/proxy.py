"""A TCP proxy that breaks connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        port: Port of the loopback that it listens on.
        break_after_bytes: Bytes from the server after which it breaks a connection; None for never.
        breaks_left: Number of connections that it still breaks.
        broken: Number of connections that it broke.
    """

    port: int
    break_after_bytes: int | None = None
    breaks_left: int = 1_000
    broken: int = 0
    _sockets: list[socket.socket] = field(default_factory=list, repr=False)

    def _serve(self, listener: socket.socket, server_port: int) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", server_port))
                self._sockets += [client, server]
                for source, target, counts in ((client, server, False), (server, client, True)):
                    arguments = source, target, counts
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        n_bytes = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                n_bytes += len(data)
                limit = self.break_after_bytes
                if counts and limit is not None and n_bytes > limit and self.breaks_left:
                    self.breaks_left -= 1
                    self.broken += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(server_port: int) -> Iterator[Proxy]:
    """Run a proxy to a port of the loopback while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Proxy(listener.getsockname()[1])
        thread = threading.Thread(target=running._serve, args=(listener, server_port), daemon=True)
        thread.start()
        try:
            yield running
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for end in running._sockets:
                end.close()
