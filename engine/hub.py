"""Pipelines from the Hugging Face hub, in its own cache folder: weights as safetensors, and never code.

A revision becomes a commit once, so that a run names what it was made from and can be made again. A token comes from
the environment (HF_TOKEN), by the hub's own library, and is kept nowhere here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.pipeline_folders import CARD_NAME, INDEX_NAME, check_class, missing_files, part_names, read_index
from engine.settings import ModelName

COMMIT = re.compile(r"[0-9a-f]{40}")
# What diffusers and transformers read of a part; nothing that is code or a pickle.
_SUFFIXES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_NOT_NEEDED = ("*.fp16*", "*.bf16*", "*.fp8*", "*.non_ema*")

Got = TypeVar("Got")


class HubError(ValueError):
    """A model that cannot be had from the hub, in a sentence that says what to do."""


def commit_of(hub_id: str, revision: str | None) -> str:
    """The commit that a revision is at now; from the cache, where the hub cannot be reached. Raises HubError."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    index = Path(_ask(hub_id, revision, lambda: hf_hub_download(hub_id, INDEX_NAME, revision=revision)))
    return index.parent.name


def hub_folder(hub_id: str, revision: str | None) -> Path:
    """The folder of a pipeline at a revision, downloaded unless the cache holds it whole. Raises HubError."""
    commit = commit_of(hub_id, revision)
    folder = Path(_ask(hub_id, revision, lambda: hf_hub_download(hub_id, INDEX_NAME, revision=commit))).parent
    if not missing_files(folder):
        return folder
    patterns = [f"{part}/{suffix}" for part in part_names(read_index(folder)) for suffix in _SUFFIXES]

    def download() -> str:
        return snapshot_download(
            hub_id, revision=commit, allow_patterns=[INDEX_NAME, CARD_NAME, *patterns],
            ignore_patterns=list(_NOT_NEEDED),
        )  # fmt: skip

    folder = Path(_ask(hub_id, revision, download))
    missing = missing_files(folder)
    if missing:
        raise HubError(
            f"The pipeline {hub_id} holds no {missing[0]}, which its {INDEX_NAME} names; its weights may be there as "
            "pickles only, which are not read. Choose another, or convert it to safetensors."
        )
    return folder


def cached_folder(hub_id: str, revision: str | None) -> Path | None:
    """The same folder if the cache holds it whole; nobody is asked."""
    found = try_to_load_from_cache(hub_id, INDEX_NAME, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return None if missing_files(folder) else folder


def look_up(hub_id: str, revision: str | None, name: ModelName) -> str:
    """The commit that a revision is at now, of a pipeline of that family. Fetches its index. Raises ValueError."""
    commit = commit_of(hub_id, revision)
    index = Path(_ask(hub_id, revision, lambda: hf_hub_download(hub_id, INDEX_NAME, revision=commit)))
    check_class(read_index(index.parent), name, hub_id)
    return commit


def _ask(hub_id: str, revision: str | None, question: Callable[[], Got]) -> Got:
    """What the hub or its cache answers. Raises HubError with a sentence for whatever can go wrong there."""
    at = f" at {revision}" if revision else ""
    page = f"https://huggingface.co/{hub_id}"
    try:
        return question()
    except HFValidationError as error:
        raise HubError(f"{hub_id} is no name that the hub could have; check model.hub_id.") from error
    except GatedRepoError as error:
        raise HubError(
            f"{hub_id} is gated: accept its terms on {page}, then set HF_TOKEN to a token of that account and start "
            "again."
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"The hub knows no model {hub_id}, or it is private: check model.hub_id, or set HF_TOKEN to a token that "
            "may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{hub_id} has no revision {revision}; check model.revision on {page}.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{hub_id}{at} is not whole on this machine, and the hub cannot be reached (no network, or HF_HUB_OFFLINE "
            "is set): connect once to download it, or set model.folder to a copy."
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{hub_id}{at} is not a diffusers pipeline (it has no {INDEX_NAME}); check model.hub_id."
        ) from error
    except HfHubHTTPError as error:
        raise HubError(f"The hub did not give {hub_id}{at} ({error}); try again later.".replace("\n", " ")) from error
