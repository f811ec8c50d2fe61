"""Sending an exported folder to the Hugging Face hub, with a token that is kept nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from zipfile import ZipFile

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import SecretStr

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the variable's name
# A hub's own rules: letters, digits and _, with single dots and hyphens inside.
_PART = r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*"
_HUB_NAME = re.compile(rf"{_PART}/{_PART}")

Answer = TypeVar("Answer")


class PushError(ValueError):
    """An export that cannot be sent, in a sentence for a person."""


class Hub:
    """The hub, asked in the name of the token's account."""

    def __init__(self, name: str, token: SecretStr, public: bool = False) -> None:
        """`name` is ORG/NAME. Raises PushError if no model could be called that."""
        if not _HUB_NAME.fullmatch(name):
            raise PushError(f"No model on the hub could be called {name}; give --push ORG/NAME, ORG being an account.")
        self.name, self.public, self._token = name, public, token
        self._api = HfApi(token=token.get_secret_value())

    def check(self) -> None:
        """Raise PushError if the hub cannot be reached or does not know the token: before a long export, not after."""
        self._ask(self._api.whoami)

    def push(self, export: Path) -> str:
        """Send the files of a folder, or in a .zip, as one commit; a sentence that says where they are.

        The model is made, private unless asked otherwise. Raises PushError, also if it is there already and public.
        """
        self._ask(lambda: self._api.create_repo(self.name, private=not self.public, exist_ok=True))
        private = bool(self._ask(lambda: self._api.model_info(self.name)).private)
        if not private and not self.public:
            raise PushError(
                f"{self.name} is already on the hub and public, so nothing was sent; add --public, or choose another "
                "name."
            )
        disable_progress_bars()  # what is said is for a person, and whole
        if export.is_dir():
            self._upload(export)
        else:
            with TemporaryDirectory(dir=export.parent, prefix=".push-") as folder, ZipFile(export) as archive:
                archive.extractall(folder)
                self._upload(Path(folder))
        return f"It is on the hub as {self.name} ({'private' if private else 'public'})."

    def _upload(self, folder: Path) -> None:
        message = "Exported by Palate"
        self._ask(lambda: self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message=message))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the hub answers. Raises PushError with a sentence of our own: the hub's might repeat the token."""
        try:
            return question()
        except OfflineModeIsEnabled as error:
            raise PushError("HF_HUB_OFFLINE is set, so nothing can be sent to the hub; unset it.") from error
        except HfHubHTTPError as error:
            raise PushError(self._refusal(error.response.status_code)) from error
        except (httpx2.HTTPError, OSError) as error:
            raise PushError("The hub cannot be reached; check the network, then try again.") from error
        except RuntimeError as error:  # huggingface_hub's, of a large file
            raise PushError("Sending to the hub broke off; check the network, then try again.") from error
        except ValueError as error:  # huggingface_hub's, where the hub finds fault with the card
            text = f"The hub does not take these files as {self.name}: its check of the card failed."
            raise PushError(text) from error

    def _refusal(self, status: int) -> str:
        if status == 401:
            return f"The hub does not know the token in {TOKEN_VARIABLE}; make a new one in your account's settings."
        if status in (403, 404):
            return (
                f"The token in {TOKEN_VARIABLE} has no right to write to {self.name}; give it one with write access to "
                f"{self.name.split('/')[0]}."
            )
        return f"The hub refused {self.name} (HTTP {status}); try again later."


def own_token() -> SecretStr:
    """The hub's token, of the environment or of its own login on this machine. Raises PushError if there is none."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or get_token()
    if not token:
        raise PushError(
            f"Sending to the hub needs a token with write access, in the environment variable {TOKEN_VARIABLE} or by "
            "`hf auth login`."
        )
    return SecretStr(token)
