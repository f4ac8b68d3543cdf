"""Folders that users name: on this machine, or a repository of the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from soda_compile.errors import OptionError

_REPOSITORY = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def named_folder(place: str, patterns: Sequence[str], what: str) -> Path:
    """Return a folder on this machine; a repository of the hub is downloaded, or found in the hub's own cache.

    Args:
        place: A path, or ``owner/name``, or ``owner/name@revision`` with a branch, a tag or a commit.
        patterns: Names of the files that are needed, with wildcards.
        what: What the folder holds, for messages.

    Raises:
        OptionError: There is no such folder and no such repository, or the hub cannot be reached and nothing is
            cached, or huggingface_hub is missing.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    named = _REPOSITORY.fullmatch(place)
    if named is None:
        raise OptionError(f"{what} {place!r} is no folder, nor a repository of the hub (owner/name or owner/name@v1)")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ModuleNotFoundError as error:
        raise OptionError(
            f"there is no folder {place!r}, and to look for it on the hub huggingface_hub is needed: "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(named["id"], revision=named["revision"], allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:  # the hub's own errors are OSErrors
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
        reason = " ".join(lines[:3]) or type(error).__name__
        raise OptionError(
            f"{what} {place!r}: there is no such folder, and the hub gives none for the repository {named['id']} at "
            f"revision {named['revision'] or 'main'}: {reason}"
        ) from error
