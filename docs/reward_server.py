"""A small reward server, to copy and change: `python docs/reward_server.py --port 8000` scores how bright images are.

The protocol is in docs/guides/reward-servers.md. It needs Pillow; put your own model in `score`. It listens on this
machine alone, and knows no keys: put a server that others can reach behind one that does.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image, ImageStat

LARGEST_REQUEST = 256 * 2**20


def score(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
    """A number an image, higher is better; None where there is none. This one: the mean brightness, 0 to 1."""
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]


def answer(body: bytes) -> dict[str, Any]:
    """What is answered to a request. Raises ValueError, KeyError or TypeError if it is none."""
    request = json.loads(body)
    images, prompts = request["images"], request["prompts"]
    if len(images) != len(prompts) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("there must be as many prompts as images, and each a text")
    decoded = [Image.open(io.BytesIO(base64.b64decode(image, validate=True))).convert("RGB") for image in images]
    return {"scores": score(decoded, prompts)}


class Handler(BaseHTTPRequestHandler):
    """Answers POST at any path."""

    def do_POST(self) -> None:
        """Score the images of one request."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= LARGEST_REQUEST:
                raise ValueError("the request is empty or too large")
            status, result = 200, answer(self.rfile.read(length))
        except (ValueError, KeyError, TypeError, OSError) as error:
            status, result = 400, {"error": f"{type(error).__name__}: {error}"}
        body = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A reward server that scores brightness.")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free")
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    print(f"Scoring at http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
