"""Models on the Hugging Face Hub, through the `hub` extra, which is imported only when the Hub is asked."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import save_model
from .model_card import CARD_FILE, make_model_card
from .saved_config import CONFIG_FILE
from .weights import WEIGHTS_FILE

if TYPE_CHECKING:
    from .model import HierarchicalTransformer

# all that is fetched of a repository, whatever else lies there
FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_name.json", CARD_FILE)
NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.))(?!.*\.git$){NAME}/{NAME}")
SIGN_IN = "give token=…, or sign in once with `hf auth login`"


def find(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that `from_pretrained` is to load: one that is here, or else a copy of a repository on the Hub.

    Raises:
        ValueError: for options of the Hub with a folder that is here, or if the `hub` extra isn't installed.
        OSError: if the Hub can't be reached, or has no such model.
    """
    if not (isinstance(name, str) and REPOSITORY.fullmatch(name)) or Path(name).exists():
        for option, value in (("revision", revision), ("token", token), ("cache_dir", cache_dir)):
            if value is not None:
                raise ValueError(
                    f"{option}={'…' if option == 'token' else repr(value)} has no effect on a folder that is here, "
                    f"got {name}: name a model on the Hub, such as user/name, or leave {option} out"
                )
        return Path(name)
    try:
        from huggingface_hub import constants, snapshot_download
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no folder {name} here, and {missing_extra('to look for it on')}") from error
    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=offline,
            allow_patterns=list(FILES),
        )
    except Exception as error:  # the package's network library has errors of its own, which differ by its version
        raise explained(error, f"there is no folder {name} here, and", name, revision, offline=offline) from error
    return Path(folder)


def push(
    model: HierarchicalTransformer,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload model",
    revision: str | None = None,
    model_card: str | None = None,
) -> str:
    """Save a model into a folder for the moment, and upload that; see `HierarchicalTransformer.push_to_hub`."""
    check_name(repo_id)
    card = model_card
    if card is None:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        title = repo_id.rpartition("/")[2]
        card = make_model_card(model.config, title=title, location=repo_id, parameters=parameters)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, card)
        return upload(
            folder,
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            keep_card=model_card is None,
        )


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload model",
    revision: str | None = None,
    keep_card: bool = False,
) -> str:
    """Upload the files of a saved model, and returns the address of the commit.

    Args:
        folder: that `save_pretrained` wrote, or the `model` of a training run.
        repo_id: `user/name`; it is made where it isn't there.
        private: whether a repository that is made is private; None for what the account's settings say.
        token: of the Hub; None for the one that this machine is signed in with.
        commit_message: of the commit.
        revision: branch to upload to, which is made where it isn't there; None for the main one.
        keep_card: let a model card that is there already stand.

    Raises:
        ValueError: for a name that is none, or if the `hub` extra isn't installed.
        OSError: if the Hub can't be reached, or doesn't take the files.
    """
    check_name(repo_id)
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ValueError(missing_extra("to upload to")) from error
    api, folder = HfApi(token=token), Path(folder)
    files = [name for name in FILES if (folder / name).is_file()]
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if keep_card and api.file_exists(repo_id, CARD_FILE, revision=revision):
            files.remove(CARD_FILE)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            allow_patterns=files,
        )
    except Exception as error:  # as in `find`
        raise explained(error, "nothing was uploaded:", repo_id, revision, offline=False) from error
    return commit.commit_url


def check_name(repo_id: str) -> None:
    if not isinstance(repo_id, str) or not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"repo_id must name a repository on the Hub, got {repo_id!r}: give one such as user/name")


def missing_extra(what: str) -> str:
    remedy = 'pip install "simple-hierarchical-transformer[hub]"'
    return f"{what} the Hub needs huggingface_hub, which isn't installed: {remedy}"


def explained(error: Exception, what: str, name: str, revision: str | None, *, offline: bool) -> Exception:
    """What went wrong between here and the Hub, in words, with a remedy."""
    from huggingface_hub import errors

    at = name if revision is None else f"{name} at revision {revision}"
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{what} {name} is gated: accept its terms on the Hub, and {SIGN_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{what} the Hub has no {name} that you may see: check the name; if it is private, {SIGN_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{what} the Hub has no {at}: name one of its branches, tags or commits")
    if isinstance(error, errors.OfflineModeIsEnabled) or offline:
        return FileNotFoundError(
            f"{what} {at} isn't, or not wholly, in the cache, and the Hub isn't asked in offline mode: load it once "
            "with the network, without HF_HUB_OFFLINE=1 and local_files_only=True"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"{what} the Hub doesn't let you do that with {at}: {SIGN_IN}")
    return ConnectionError(
        f"{what} the Hub couldn't be asked for {at} ({first_line(error)}): check the name or the network"
    )


def first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
