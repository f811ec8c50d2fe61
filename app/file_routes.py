"""Files of the data home over HTTP: sampled images and exports, and only those that a row of the database names.

An address holds a tag of the row's path: an image drawn anew has another address, so browsers may keep images for ever.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from store.config import Config
from store.database import Database
from store.files import OutsideError, resolve
from store.results import get_export, get_sample

THUMBNAIL_SIDE = 256
_KEEP = {"Cache-Control": "private, max-age=31536000, immutable"}
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}
_IMAGE_TYPES = {".png": "image/png", ".webp": "image/webp"}
Handler = Callable[[Request], Response]


def tag(path: str) -> str:
    """Ten hex digits that name a row's path."""
    return hashlib.sha256(path.encode()).hexdigest()[:10]


def sample_address(sample_id: int, path: str) -> str:
    """The address of an image below `/files/samples/`."""
    return f"{sample_id}/{tag(path)}"


def export_address(export_id: str) -> str:
    """The address of an export's file."""
    return f"/files/exports/{export_id}"


def file_routes(config: Config) -> list[Route]:
    """The routes, on a database that is connected to at the first request."""
    database = Database(config)
    return [
        Route("/files/samples/{sample_id:int}/{tag}", _sample_handler(config, database), methods=["GET"]),
        Route("/files/exports/{export_id}", _export_handler(config, database), methods=["GET"]),
    ]


def _sample_handler(config: Config, database: Database) -> Handler:
    def sample(request: Request) -> Response:
        try:
            with database.read() as session:
                row = get_sample(session, request.path_params["sample_id"])
        except (OperationalError, OverflowError):
            row = None
        if row is None or tag(row.path) != request.path_params["tag"]:
            raise HTTPException(404, "There is no such image.")
        path = _existing(config, row.path)
        if request.query_params.get("full") == "1":
            kind = _IMAGE_TYPES.get(path.suffix.lower(), "application/octet-stream")
            return FileResponse(path, media_type=kind, headers=_KEEP | _SAFE)
        data, kind = thumbnail(path, path.stat().st_mtime_ns)
        return Response(data, media_type=kind, headers=_KEEP | _SAFE)

    return sample


def _export_handler(config: Config, database: Database) -> Handler:
    def export(request: Request) -> Response:
        with database.read() as session:
            row = get_export(session, request.path_params["export_id"])
        if row is None or row.path is None:
            raise HTTPException(404, "There is no such export.")
        path = _existing(config, row.path)
        return FileResponse(path, filename=path.name, media_type="application/octet-stream", headers=_SAFE)

    return export


def _existing(config: Config, relative: str) -> Path:
    """The file of a row's path. Raises a 404 if it leads out of the data home or is gone."""
    try:
        path = resolve(config, relative)
    except OutsideError as error:
        raise HTTPException(404, "There is no such file.") from error
    if not path.is_file():
        raise HTTPException(404, "The file is gone.")
    return path


@lru_cache(maxsize=4096)
def thumbnail(path: Path, modified: int) -> tuple[bytes, str]:
    """An image's bytes and media type: a small file as it is, a larger one as WebP of at most 256 pixels a side.

    `modified` only tells versions of a file apart in the cache. Raises a 404 for what is no image.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) <= THUMBNAIL_SIDE and path.suffix.lower() in _IMAGE_TYPES:
                return path.read_bytes(), _IMAGE_TYPES[path.suffix.lower()]
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise HTTPException(404, "The file is no image.") from error
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=88)
    return buffer.getvalue(), "image/webp"
