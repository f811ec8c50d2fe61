"""A hub on this machine that takes what is sent to it, as far as huggingface_hub asks for one model."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub(ThreadingHTTPServer):
    """Knows one token, and keeps the files of one model.

    Attributes:
        token: the only one it knows.
        private: of the model, once it is made; None before.
        files: what was committed, by path.
        refusal: an HTTP status for whoever would make the model; it repeats what it was sent.
        faults: what it finds in a card.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.refusal: int | None = None
        self.faults: list[dict[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server.token}":
            return True
        self.answer(401, {"error": f"bad {self.headers.get('Authorization')}"})
        return False

    def do_GET(self) -> None:
        if not self.known():
            return
        if self.path == "/api/whoami-v2":
            self.answer(200, {"type": "user", "name": "someone", "auth": {"type": "access_token"}})
        elif self.path.startswith("/api/models/org/mine") and self.server.private is not None:
            self.answer(200, {"id": "org/mine", "private": self.server.private, "siblings": [], "tags": []})
        else:
            self.answer(404, {"error": "nothing here"})

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rsplit("/")[-1]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        content = self.body()
        if not self.known():
            return
        if self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.answer(400 if self.server.faults else 200, {"errors": self.server.faults, "warnings": []})
        elif self.path.startswith("/api/models/org/mine/preupload/main"):
            files = [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(content)["files"]
            ]  # fmt: skip
            self.answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": item["oid"], "size": item["size"],
                 "actions": {"upload": {"href": f"{self.server.address}/blob/{item['oid']}"}}}
                for item in json.loads(content)["objects"]
            ]  # fmt: skip
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.startswith("/api/models/org/mine/commit/main"):
            self.commit([json.loads(line) for line in content.splitlines()])
        else:
            self.answer(404, {"error": f"nothing at {self.path}"})

    def create(self, asked: dict[str, Any]) -> None:
        if self.server.refusal is not None:
            self.answer(self.server.refusal, {"error": f"no rights for {self.headers['Authorization']}"})
            return
        there = self.server.private is not None
        if not there:
            self.server.private = asked["visibility"] == "private"
        self.answer(409 if there else 200, {"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
        self.answer(200, {"success": True, "commitOid": "0" * 40, "hookOutput": "",
                          "commitUrl": f"{self.server.address}/org/mine/commit/{'0' * 40}"})  # fmt: skip


@contextmanager
def fake_hub(token: str) -> Iterator[FakeHub]:
    """One that listens until the block is left."""
    hub = FakeHub(token)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
