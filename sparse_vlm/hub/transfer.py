"""Uploads to the Hugging Face hub, and downloads from it."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparse_vlm.errors import UserError, one_line
from sparse_vlm.hub.cards import CARD, is_unedited

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME

UPLOAD_OPTIONS = ("private", "token", "revision", "commit_message", "commit_description", "create_pr")


def upload(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Upload a directory to a repository of the hub, which is created if it does not exist.

    A card in the repository that was edited there is kept.

    Args:
        directory: the files.
        repo_id: OWNER/NAME, or NAME for your own account.
        private, token, revision, commit_message, commit_description, create_pr: as in transformers' `push_to_hub`.

    Returns:
        huggingface_hub's CommitInfo.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=directory,
        commit_message=commit_message or "Upload",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
        ignore_patterns=[CARD] if _edited_there(api, repo_id, revision) else None,
    )


def _edited_there(api: Any, repo_id: str, revision: str | None) -> bool:
    """Return whether a repository has a card that was edited or not written here."""
    from huggingface_hub.errors import EntryNotFoundError

    with TemporaryDirectory() as folder:
        try:
            card = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder)
        except EntryNotFoundError:
            return False
        return not is_unedited(Path(card).read_text(encoding="utf-8", errors="replace"))


def local_directory(name: str | Path, *files: str) -> Path:
    """Return a directory: `name` itself, or where huggingface_hub has downloaded `files` of the repository OWNER/NAME.

    A name of another form is returned as it is, whether it exists or not.

    Raises:
        UserError: the repository cannot be downloaded.
    """
    if Path(name).exists() or isinstance(name, Path) or not NAME.fullmatch(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # huggingface_hub raises many kinds: offline, not found, no access
        raise UserError(
            f"There is no directory {name}, and it cannot be downloaded from the Hugging Face hub: {one_line(error)}."
        ) from error
