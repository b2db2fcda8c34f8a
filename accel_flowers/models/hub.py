"""Models on the Hugging Face hub: read by `hub:OWNER/NAME`, and written there when somebody asks for it."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from accel_flowers.config.paths import HUB_PREFIX
from accel_flowers.core.errors import UserError, error_text, printable
from accel_flowers.core.files import refused

_FILES = ("config.json", "model.safetensors")
"""All that is read of a repository: nothing in it is run."""
_CARD = "README.md"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_log = logging.getLogger(__name__)


def is_on_hub(path: str | Path) -> bool:
    """Whether a model is named as one of the hub's."""
    return str(path).startswith(HUB_PREFIX)


@functools.cache
def fetch_model(path: str) -> Path:
    """A folder with the model's files, from the hub's cache where they were fetched before; once in a process.

    Args:
        path: "hub:OWNER/NAME", where wanted with "@" and a branch, a tag or the hash of a commit.

    Raises:
        UserError: no such name, no such model, or it cannot be reached and was not fetched before.
    """
    name, _, asked = path.removeprefix(HUB_PREFIX).partition("@")
    _check_name(name, f"{HUB_PREFIX}OWNER/NAME")
    try:
        HfApi().model_info(name, revision=asked or None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(_not_there(name, asked, error)) from None
    except Exception as error:  # noqa: BLE001 - of which kind the HTTP client's are depends on huggingface_hub's version
        return _from_cache(name, asked, error)
    folder = _from_hub(name, asked)
    revision = folder.name
    _log.info(f"{HUB_PREFIX}{name} is at revision {revision}" + ("" if asked == revision else "; @ and this pins it"))
    return folder


def push_model(directory: Path, name: str, *, private: bool, card: str) -> str:
    """Write a model folder to the hub, as one commit.

    The digests of the images that it has seen stay here.

    Args:
        directory: the folder, known to be a model's.
        name: OWNER/NAME; it is made where it is not there yet.
        private: whether a new one is for its owner alone.
        card: text of the model card.

    Returns:
        Its address.

    Raises:
        UserError: no such name, no token, not allowed, or the hub cannot be reached.
    """
    _check_name(name, "OWNER/NAME")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True, token=True)
        files: dict[str, Any] = {file: directory / file for file in _FILES} | {_CARD: card.encode()}
        api.create_commit(
            name,
            [CommitOperationAdd(file, content) for file, content in files.items()],
            commit_message="Model by accel-flowers",
            token=True,
        )
    except LocalTokenNotFoundError:
        raise UserError(
            "Writing to the hub needs a token of yours: make one with the right to write in your account's settings there, "
            "then type hf auth login, or set the environment variable HF_TOKEN."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"The hub does not let you write to {name} (status {status}): it wants a token with the right to write there. "
                "hf auth whoami tells whose token is used; hf auth login takes another one."
            ) from None
        raise UserError(f"The hub refused {name}: {_line(error)}.") from None
    except Exception as error:  # noqa: BLE001 - as in fetch_model
        raise UserError(
            f"The hub cannot be reached, so nothing was written: {_line(error)}. The model stays in {directory}; type the same "
            "again where there is a network."
        ) from None
    return f"{api.endpoint}/{name}"


def _check_name(name: str, form: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UserError(f"'{printable(name)}' is no model of the hub: type {form}.")


def _from_hub(name: str, asked: str) -> Path:
    api = HfApi()
    try:
        # By the name of a branch, so that the cache knows it; all others are of the commit that this one was.
        folder = Path(api.hf_hub_download(name, _FILES[0], revision=asked or None)).parent
        for file in _FILES[1:]:
            api.hf_hub_download(name, file, revision=folder.name)
        return folder
    except RemoteEntryNotFoundError:
        raise UserError(f"{HUB_PREFIX}{name} is no model of this program: it lacks {' or '.join(_FILES)}.") from None
    except Exception as error:  # noqa: BLE001 - as in fetch_model
        if place := refused(error):
            raise UserError(
                f"Downloads are kept in a place that cannot be written ({place}): give another one with the environment "
                "variable HF_HOME, or make room."
            ) from None
        raise UserError(f"{HUB_PREFIX}{name} cannot be fetched: {_line(error)}.") from None


def _from_cache(name: str, asked: str, unreachable: Exception) -> Path:
    """What an earlier day fetched, and the log says which revision that is."""
    try:
        places = [
            Path(HfApi().hf_hub_download(name, file, revision=asked or None, local_files_only=True)) for file in _FILES
        ]
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(
            f"{HUB_PREFIX}{name} cannot be fetched, and is not kept here from an earlier time: {_line(unreachable)}. "
            "Check the network, or give a folder."
        ) from None
    _log.info(f"{HUB_PREFIX}{name} cannot be reached: revision {places[0].parent.name}, fetched at an earlier time")
    return places[0].parent


def _not_there(name: str, asked: str, error: Exception) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f"{HUB_PREFIX}{name} has no revision '{printable(asked)}': take a branch, a tag or the hash of a commit."
    return f"There is no model '{name}' on the hub, or it is private and you have no token for it (hf auth login)."


def _line(error: Exception) -> str:
    """An error's first line, without its full stop."""
    lines = error_text(error).strip().splitlines()
    return printable(lines[0]).rstrip(".") if lines else type(error).__name__


def own_card(directory: Path) -> str | None:
    """The card in a folder; None where there is none."""
    path = directory / _CARD
    return path.read_text("utf-8") if path.is_file() else None


def with_licence(card: str, licence: str) -> str:
    """A card that names a licence in the block that the hub reads."""
    changed = ModelCard(card, ignore_metadata_errors=True)
    changed.data["license"] = licence
    return str(changed)
