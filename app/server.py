"""The workbench's web server: Streamlit's pages and our own file routes, on one loopback address.

`python -m app.server` runs it (`palate up` starts it with `--with-parent`). Requests that name another host (DNS
rebinding) are refused on every route, not only on Streamlit's; files are also refused to pages of other sites.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from app.file_routes import file_routes
from app.loopback import is_loopback, open_to_others
from store.config import load_config

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_PR_SET_PDEATHSIG = 1
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


class OwnHostOnly:
    """Middleware that answers 403 to requests for other host names, and to other sites' requests for our files."""

    def __init__(self, application: Application, hosts: frozenset[str]) -> None:
        self._application = application
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            if not allowed(headers, scope["path"], self._hosts):
                response = PlainTextResponse("This workbench answers only to pages of its own.\n", status_code=403)
                await response(scope, receive, send)
                return
        await self._application(scope, receive, send)


def allowed(headers: dict[str, str], path: str, hosts: frozenset[str]) -> bool:
    """Whether a request names one of our hosts and, for a file, does not come from another site."""
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return False
    if host not in hosts:
        return False
    return not (path.startswith("/files/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"))


def make_app() -> st.App:
    """The ASGI application; nothing connects until a request comes."""
    config = load_config()
    hosts = LOCAL_NAMES | {config.host}
    return st.App(
        Path(__file__).with_name("main.py"), routes=file_routes(config), middleware=[Middleware(OwnHostOnly, hosts)]
    )


def end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies, however it dies, so that no orphan keeps the port."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM, or with `--with-parent` until the parent dies; returns the exit code.

    `--in-container` allows an address that others can reach: in a container it is the container's port mapping that
    decides who does.
    """
    if "--with-parent" in arguments:
        end_with_parent()
    config = load_config()
    if not is_loopback(config.host) and "--in-container" not in arguments:
        print(open_to_others(config.host), file=sys.stderr)  # noqa: T201 - for the person who started it
        return 2
    make_app().run(config={"server.address": config.host, "server.port": config.port})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
