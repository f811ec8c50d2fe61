"""What a base model's folder says of it: its name on a hub, its revision, and its licence."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.artifacts.manifest import sha256_of

# Where huggingface_hub keeps a snapshot: models--ORG--NAME/snapshots/COMMIT.
_SNAPSHOT = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})$")
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")


@dataclass(frozen=True)
class Licence:
    """A licence as a model card names it.

    Attributes:
        identifier: as hubs have it, such as apache-2.0, or "other".
        name, link: of an "other" one, where the base's card gives them.
        file: the text that lies in the base's folder.
    """

    identifier: str
    name: str | None = None
    link: str | None = None
    file: Path | None = None

    @property
    def text(self) -> str:
        """In a word or two."""
        return self.name or self.identifier

    def card_fields(self, beside: bool) -> dict[str, str]:
        """The fields of a model card's head; `beside`: the file lies beside the card."""
        fields = {"license": self.identifier}
        if self.identifier == "other" and self.name:
            fields["license_name"] = self.name
        link = self.file.name if beside and self.file is not None else self.link
        if self.identifier == "other" and link:
            fields["license_link"] = link
        return fields


def read_licence(folder: Path) -> Licence:
    """The licence that a model's folder gives: in its card, or as a text of its own; "other" if it gives none."""
    card = _card_head(folder)
    file = next((folder / name for name in _LICENCE_FILES if (folder / name).is_file()), None)
    identifier = str(card.get("license") or "other")
    name, link = card.get("license_name"), card.get("license_link")
    return Licence(identifier, str(name) if name else None, str(link) if link else None, file)


def hub_name(folder: Path) -> str | None:
    """ORG/NAME of a folder that is a hub's snapshot in the local cache, else None."""
    match = _SNAPSHOT.search(folder.as_posix())
    return f"{match['org']}/{match['name']}" if match else None


def revision_of(folder: Path) -> str:
    """What tells these weights from others: the commit of a hub's snapshot, or else the digest of the transformer."""
    match = _SNAPSHOT.search(folder.as_posix())
    if match:
        return match["revision"]
    digest = hashlib.sha256()
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _card_head(folder: Path) -> dict[str, object]:
    """The metadata at the top of a folder's README.md; empty if there is none."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if not text.startswith("---"):
        return {}
    try:
        head = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}
