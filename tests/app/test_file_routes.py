"""Files go out only if a row names them and they lie in the data home."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.middleware import Middleware

from app.file_routes import THUMBNAIL_SIDE, export_address, file_routes, sample_address
from app.server import LOCAL_NAMES, OwnHostOnly, allowed
from store.results import SampleRow, exports_of, samples_of
from store.tables import Export, Sample
from tests.app.conftest import Workbench


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def get(workbench: Workbench, address: str, **headers: str) -> Reply:
    """One request to the routes behind their middleware, without a server."""
    application = Starlette(routes=file_routes(workbench.config), middleware=[Middleware(OwnHostOnly, LOCAL_NAMES)])
    path, _, query = address.partition("?")
    sent = {"host": "127.0.0.1:8501"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", 8501),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }
    reply = Reply()
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not requests:
            await asyncio.Event().wait()  # the reader never leaves
        return requests.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            reply.body += message.get("body", b"")

    asyncio.run(application(scope, receive, send))
    return reply


def first_sample(workbench: Workbench) -> SampleRow:
    with workbench.database.read() as session:
        return samples_of(session, workbench.ids["done"])[0]


def address_of(sample: SampleRow) -> str:
    return f"/files/samples/{sample_address(sample.id, sample.path)}"


def test_image_comes_with_long_cache(workbench: Workbench) -> None:
    reply = get(workbench, address_of(first_sample(workbench)))
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/png"
    assert "immutable" in reply.headers["cache-control"]
    assert Image.open(io.BytesIO(reply.body)).size == (64, 64)


def test_large_images_become_small_webp(workbench: Workbench) -> None:
    sample = first_sample(workbench)
    Image.new("RGB", (1024, 512), "teal").save(workbench.config.home / sample.path)
    reply = get(workbench, address_of(sample))
    assert reply.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(reply.body)).size) == THUMBNAIL_SIDE
    full = get(workbench, f"{address_of(sample)}?full=1")
    assert Image.open(io.BytesIO(full.body)).size == (1024, 512)


def test_unknown_and_mistagged_images(workbench: Workbench) -> None:
    sample = first_sample(workbench)
    assert get(workbench, f"/files/samples/{sample.id}/0123456789").status == 404
    assert get(workbench, f"/files/samples/999999/{address_of(sample).rpartition('/')[2]}").status == 404
    assert get(workbench, f"/files/samples/{10**30}/0123456789").status == 404


def move_row(workbench: Workbench, sample: SampleRow, path: str) -> str:
    with workbench.database.write() as session:
        session.execute(update(Sample).where(Sample.id == sample.id).values(path=path))
    return f"/files/samples/{sample_address(sample.id, path)}"


@pytest.mark.parametrize("path", ["../outside.png", "/etc/passwd", "runs/../../outside.png", "runs/x\x00.png", "."])
def test_rows_cannot_lead_out_of_the_home(workbench: Workbench, path: str) -> None:
    Image.new("RGB", (8, 8)).save(workbench.config.home.parent / "outside.png")
    reply = get(workbench, move_row(workbench, first_sample(workbench), path))
    assert reply.status == 404


def test_links_cannot_lead_out_of_the_home(workbench: Workbench) -> None:
    outside = workbench.config.home.parent / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    (workbench.config.home / "link.png").symlink_to(outside)
    assert get(workbench, move_row(workbench, first_sample(workbench), "link.png")).status == 404


def test_files_that_are_gone_or_no_images(workbench: Workbench) -> None:
    sample = first_sample(workbench)
    (workbench.config.home / sample.path).write_text("<script>alert(1)</script>")
    assert get(workbench, address_of(sample)).status == 404
    (workbench.config.home / sample.path).unlink()
    assert get(workbench, address_of(sample)).status == 404


def test_export_downloads_under_its_name(workbench: Workbench) -> None:
    with workbench.database.read() as session:
        export = exports_of(session, workbench.ids["done"])[0]
    reply = get(workbench, export_address(export.id))
    assert (reply.status, len(reply.body)) == (200, 2048)
    assert "pytorch_lora_weights.safetensors" in reply.headers["content-disposition"]
    assert get(workbench, export_address("nothing")).status == 404


def test_unfinished_export_is_no_file(workbench: Workbench) -> None:
    with workbench.database.write() as session:
        session.execute(update(Export).values(path=None))
        export_id = exports_of(session, workbench.ids["done"])[0].id
    assert get(workbench, export_address(export_id)).status == 404


def test_other_hosts_and_sites_are_refused(workbench: Workbench) -> None:
    address = address_of(first_sample(workbench))
    assert get(workbench, address, host="evil.example").status == 403
    assert get(workbench, address, host="").status == 403
    assert get(workbench, address, sec_fetch_site="cross-site").status == 403
    assert get(workbench, address, sec_fetch_site="same-origin").status == 200
    assert get(workbench, address, host="localhost:8501").status == 200


def test_pages_may_be_linked_from_elsewhere() -> None:
    """A link to a page is harmless; a script or image of another site that wants a file is not."""
    headers = {"host": "127.0.0.1:8501", "sec-fetch-site": "cross-site"}
    assert allowed(headers, "/run", LOCAL_NAMES)
    assert not allowed(headers, "/files/exports/x", LOCAL_NAMES)
    assert not allowed({"host": "[::1"}, "/", LOCAL_NAMES)
