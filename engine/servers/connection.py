"""Asking one server: JSON there and back over HTTP, under limits of time and size, tried again where that may help.

The standard library's client does here what it should and no more: it follows no redirect, heeds no proxy variable or
.netrc, asks for no compression, and connects to the very address that was checked.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from engine.servers.allowed import AllowedServers, Origin
from engine.settings import ServerSettings

LARGEST_ANSWER = 16 * 2**20
"""Bytes of an answer that are read; a longer one is refused. Log-probabilities of long thoughts take megabytes."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_MAY_GO_BETTER = frozenset({408, 425, 429, 500, 502, 503, 504})


class ServerError(Exception):
    """What went wrong, as part of a sentence that holds no key; and whether another try may go better."""

    def __init__(self, reason: str, *, may_go_better: bool = False, wait: float = 0.0) -> None:
        """`wait` is how long the server asks to be left alone, in seconds."""
        super().__init__(reason)
        self.may_go_better = may_go_better
        self.wait = wait


@dataclass(frozen=True)
class Connection:
    """One server, allowed and resolved.

    Attributes:
        address: the IP address to connect to, whatever the name may come to mean later.
        pause: waits so many seconds between two tries.
    """

    settings: ServerSettings
    origin: Origin
    address: str
    key: SecretStr | None
    pause: Callable[[float], None] = time.sleep

    @classmethod
    def to(cls, settings: ServerSettings) -> Connection:
        """To the server of the settings. Raises ValueError, with what to do, if it may not be asked."""
        allowed = AllowedServers.from_environment()
        origin = allowed.require(settings.url)
        return cls(settings, origin, allowed.resolve(origin), allowed.keys.get(origin))

    def ask(self, data: Any, path: str = "") -> Any:
        """What the server answers to JSON posted at its address with `path` added. Raises ServerError."""
        body = json.dumps(data).encode()
        for tried in range(self.settings.retries + 1):
            try:
                return self._read(self._exchange(body, path))
            except ServerError as error:
                if not error.may_go_better or tried == self.settings.retries:
                    raise
                backoff = _FIRST_PAUSE * 2**tried * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
                self.pause(min(_LONGEST_PAUSE, max(backoff, error.wait)))
        raise AssertionError("the last try returns or raises")

    def without_key(self, text: str) -> str:
        """A text of the server's, on one line, short, and without the key if it has been sent back."""
        if self.key is not None:
            text = text.replace(self.key.get_secret_value(), "…")
        return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()[:120]

    def _exchange(self, body: bytes, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of one request, within `timeout` seconds from start to end."""
        watch = _Watch(self.settings.timeout)
        try:
            return self._exchange_watched(body, path, watch)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if watch.has_ended or isinstance(error, TimeoutError):
                reason = f"the server {self.origin} did not answer within {self.settings.timeout:g} s"
            elif isinstance(error, ConnectionRefusedError):
                reason = f"no server answers at {self.origin}"
            elif isinstance(error, ssl.SSLError):
                reason = f"no secure connection to {self.origin} could be made ({error.reason})"
            else:
                reason = f"the connection to {self.origin} failed ({type(error).__name__})"
            raise ServerError(reason, may_go_better=not isinstance(error, ssl.SSLError)) from None
        finally:
            watch.end()

    def _exchange_watched(
        self, body: bytes, path: str, watch: _Watch
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.address, self.origin.port, timeout=self.settings.timeout)
        try:
            plain = socket.create_connection((self.address, self.origin.port), self.settings.timeout)
            watch.over(plain)
            connection.sock = plain
            if self.origin.scheme == "https":
                secure = ssl.create_default_context().wrap_socket(
                    plain, server_hostname=self.origin.host, do_handshake_on_connect=False
                )
                watch.over(secure)
                connection.sock = secure
                secure.do_handshake()
            target = urlsplit(self.settings.url).path.rstrip("/") + path
            connection.request("POST", target or "/", body, self._headers())
            response = connection.getresponse()
            content = response.read(LARGEST_ANSWER + 1)
            if watch.has_ended:
                raise TimeoutError
            return response.status, response.headers, content
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Host": self.origin.netloc, "Content-Type": "application/json", "Accept": "application/json",
                   "User-Agent": "palate", "Connection": "close"}  # fmt: skip
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key.get_secret_value()}"
        return headers

    def _read(self, answer: tuple[int, http.client.HTTPMessage, bytes]) -> Any:
        status, headers, content = answer
        if status != 200:
            raise self._refusal(status, headers, content)
        if len(content) > LARGEST_ANSWER:
            raise ServerError(f"the server {self.origin} answered more than {LARGEST_ANSWER / 2**20:.0f} MiB")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ServerError(f"the server {self.origin} answered no JSON") from None

    def _refusal(self, status: int, headers: http.client.HTTPMessage, content: bytes) -> ServerError:
        """What a status other than 200 means."""
        if status in (401, 403):
            # Such answers often quote parts of the key.
            return ServerError(f"the server {self.origin} wants another key (status {status}; see PALATE_REWARD_KEYS)")
        if 300 <= status < 400:
            return ServerError(f"the server {self.origin} redirects elsewhere, which is not followed")
        said = self.without_key(content.decode(errors="replace"))
        wait = headers.get("Retry-After", "")
        return ServerError(
            f"the server {self.origin} answered with status {status}" + (f": {said}" if said else ""),
            may_go_better=status in _MAY_GO_BETTER, wait=float(wait) if wait.isascii() and wait.isdecimal() else 0.0,
        )  # fmt: skip


class _Watch:
    """Shuts a socket when the time is up, for a server that sends a byte now and then keeps every read alive."""

    def __init__(self, seconds: float) -> None:
        self.has_ended = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def over(self, watched: socket.socket) -> None:
        """Watch this socket from now on."""
        self._socket = watched
        if self.has_ended:
            self._ring()

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _ring(self) -> None:
        self.has_ended = True
        if self._socket is not None:
            with suppress(OSError):
                # Of an SSL socket too: the plain shutdown, which waits for nobody.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
