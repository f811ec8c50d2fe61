"""A server on loopback that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from engine.settings import ServerSettings

Answer = Callable[[dict[str, Any]], Any]


@dataclass
class Loopback:
    """Attributes:
    answer: from the JSON asked to what is answered: JSON, or bytes, or (status, headers, bytes), or a Stall.
    asked: path, headers and JSON of each request, in order.
    """

    answer: Answer
    url: str = ""
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    at_once: int = 0
    most_at_once: int = 0

    def settings(self, **options: Any) -> ServerSettings:
        return ServerSettings(url=self.url, **{"retries": 0, "timeout": 5.0} | options)


@dataclass(frozen=True)
class Stall:
    """No answer, or a byte of one now and then, until the test ends."""

    drips: bool = False


class _Handler(BaseHTTPRequestHandler):
    loopback: Loopback
    lock = threading.Lock()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.loopback.asked.append((self.path, dict(self.headers), asked))
            self.loopback.at_once += 1
            self.loopback.most_at_once = max(self.loopback.most_at_once, self.loopback.at_once)
        try:
            answer = self.loopback.answer(asked)
        finally:
            with self.lock:
                self.loopback.at_once -= 1
        if isinstance(answer, Stall):
            self._stall(answer)
            return
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def _stall(self, stall: Stall) -> None:
        while not self.loopback.released.wait(0.02):
            if stall.drips:
                try:
                    self.wfile.write(b"H")
                except OSError:
                    return

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Loopback]:
    """A server for the time of a test, over https if there is a context for it."""
    loopback = Loopback(answer)
    handler = type("Handler", (_Handler,), {"loopback": loopback})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    loopback.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield loopback
    finally:
        loopback.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def origin_of(loopback: Loopback) -> str:
    return loopback.url.removesuffix("/score")
