"""A stand-in for PgBouncer in transaction mode: each transaction gets the connection that was used last."""

import socket
import socketserver
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

_NEVER_ENCRYPTED = (80877103, 80877104)  # what clients ask for first: SSL, GSSAPI
_IDLE = b"I"  # ReadyForQuery outside of a transaction


class _Client(socketserver.BaseRequestHandler):
    """One client's connection; what it sends ends in a Sync or is a simple query, as psycopg's messages do."""

    server: "_Pooler"
    request: socket.socket

    def handle(self) -> None:
        self.server.idle.append(self._logged_in())
        mine: socket.socket | None = None
        while (message := self.request.recv(1 << 16)) and not message.startswith(b"X"):
            mine = mine or self.server.idle.pop()
            mine.sendall(message)
            if self._relay_answer(mine) == _IDLE:
                self.server.idle.append(mine)
                mine = None

    def _logged_in(self) -> socket.socket:
        """A new connection to Postgres, of the user and the database that the client has named."""
        while True:
            length = self._read(self.request, 4)
            start = self._read(self.request, struct.unpack("!I", length)[0] - 4)
            if struct.unpack("!I", start[:4])[0] not in _NEVER_ENCRYPTED:
                break
            self.request.sendall(b"N")
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(self.server.postgres)
        upstream.sendall(length + start)
        self._relay_answer(upstream)
        return upstream

    def _relay_answer(self, upstream: socket.socket) -> bytes:
        """Gives the client all messages up to ReadyForQuery; returns the state that it tells."""
        while True:
            header = self._read(upstream, 5)
            body = self._read(upstream, struct.unpack("!I", header[1:])[0] - 4)
            self.request.sendall(header + body)
            if header[:1] == b"Z":
                return body

    @staticmethod
    def _read(source: socket.socket, size: int) -> bytes:
        return source.recv(size, socket.MSG_WAITALL) if size else b""


class _Pooler(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, postgres: str) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.postgres = postgres
        self.idle: list[socket.socket] = []


@contextmanager
def running_pooler(socket_folder: str) -> Iterator[int]:
    """The port of a pooler in front of the Postgres whose socket is in this folder."""
    with _Pooler(f"{socket_folder}/.s.PGSQL.5432") as pooler:
        thread = Thread(target=pooler.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield pooler.server_address[1]
        finally:
            pooler.shutdown()
            thread.join()
            for connection in pooler.idle:
                connection.close()
