"""Prompt embeddings on disk: each prompt is encoded once, and the text encoders are then let go.

A file a prompt, under a folder named by what encodes: the family, the encoders' and tokenizers' files, the precision,
the kind of device and the versions of the libraries. Prompts are encoded one at a time, so that what a file holds
depends on nothing but its prompt. A file that cannot be read is made anew; without a disk that can be written to, the
embeddings are kept in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.artifacts.tensor_files import write_tensors
from engine.models.base import PromptEmbeddings, TextToImage, stack_embeddings
from engine.settings import ModelSettings
from engine.versions import versions

_ENCODING_PARTS = ("text_encoder*", "tokenizer*")
_ENCODING_LIBRARIES = ("torch", "transformers", "diffusers")
# Whole files up to this size enter the fingerprint; of larger ones their size and both ends.
_WHOLE_FILE_BYTES = 2**24
_END_BYTES = 2**20
_NUM_PADDING = "num_padding"
_FORMAT = "2"  # of the files: texts/… and empty/…

Progress = Callable[[int, int], None]
"""(prompts encoded, prompts to encode)"""


def cache_root() -> Path:
    """Where embeddings are kept: `palate/embeddings` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palate" / "embeddings"


def fingerprint(folder: Path, settings: ModelSettings, device: torch.device) -> str:
    """Hex digits that name what encodes prompts: the pipeline folder's encoders, and how they are run."""
    digest = hashlib.sha256()
    known = versions()
    libraries = [known[name] for name in _ENCODING_LIBRARIES]
    for fact in (_FORMAT, settings.name, settings.precision, device.type, *libraries):
        digest.update(fact.encode() + b"\0")
    for path in sorted(path for part in _ENCODING_PARTS for path in folder.glob(f"{part}/**/*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(_content(path))
    return digest.hexdigest()[:32]


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _WHOLE_FILE_BYTES:
            return hashlib.sha256(stream.read()).digest()
        start = stream.read(_END_BYTES)
        stream.seek(-_END_BYTES, os.SEEK_END)
        return hashlib.sha256(size.to_bytes(8, "little") + start + stream.read()).digest()


class EmbeddingCache:
    """Embeddings by prompt, from disk where they are there, and from the model where not.

    Args:
        model: encodes what is missing.
        folder: this model's own, `cache_root() / fingerprint(…)`.
        device: where embeddings go.
    """

    def __init__(self, model: TextToImage, folder: Path, device: torch.device) -> None:
        self.model = model
        self.folder = folder
        self.device = device
        self._unwritten: dict[str, PromptEmbeddings] = {}

    def fill(self, prompts: Sequence[str], progress: Progress) -> None:
        """Encode every prompt that is not there yet. Its files may then be read without the encoders."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._holds(prompt)]
        for done, prompt in enumerate(missing):
            progress(done, len(missing))
            self._encode(prompt)

    def encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Embeddings of P prompts, on the device."""
        found = [self._read(prompt) or self._encode(prompt) for prompt in prompts]
        return stack_embeddings(found, self.device)

    def _encode(self, prompt: str) -> PromptEmbeddings:
        embeddings = self.model.encode([prompt])
        tensors = {f"texts/{name}": tensor for name, tensor in embeddings.texts.items()}
        tensors |= {f"empty/{name}": tensor for name, tensor in (embeddings.empty or {}).items()}
        path = self._path(prompt)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(temporary, tensors, {_NUM_PADDING: str(embeddings.num_padding)})
            temporary.replace(path)
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink()
            self._unwritten[prompt] = embeddings
        return embeddings

    def _holds(self, prompt: str) -> bool:
        """Whether the prompt's file is whole, from its header and length alone: real embeddings are megabytes."""
        if prompt in self._unwritten:
            return True
        try:
            with safe_open(self._path(prompt), framework="pt") as file:
                return _NUM_PADDING in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def _read(self, prompt: str) -> PromptEmbeddings | None:
        if prompt in self._unwritten:
            return self._unwritten[prompt]
        try:
            with safe_open(self._path(prompt), framework="pt") as file:
                parts: dict[str, dict[str, Tensor]] = {"texts": {}, "empty": {}}
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    kind, _, own_name = name.partition("/")
                    parts[kind][own_name] = file.get_tensor(name)
                if not parts["texts"]:
                    return None
                return PromptEmbeddings(parts["texts"], parts["empty"] or None, int(file.metadata()[_NUM_PADDING]))
        except (OSError, SafetensorError, TypeError, KeyError):
            return None

    def _path(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"
