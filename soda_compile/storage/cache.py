"""The folder of measurements that are kept between runs, and what happens where it cannot be written."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

VARIABLE = "SODA_COMPILE_CACHE"

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder named by SODA_COMPILE_CACHE, or ``soda_compile`` in the user's cache directory.

    Profiles lie in ``profiles`` in it; each other folder in it belongs to one pipeline, with its sensitivity and plans.
    """
    if named := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(named))
    try:
        return platformdirs.user_cache_path("soda_compile", appauthor=False)
    except RuntimeError:  # there is no home directory, which ``keep`` will say
        return Path("~", ".cache", "soda_compile")


def keep(folder: Path, save: Callable[[], object], variable: str = VARIABLE) -> bool:
    """Save to a folder, which is made; where it cannot be written, say so once and go on.

    Args:
        folder: The folder.
        save: Writes to it.
        variable: Environment variable that names another one.

    Returns:
        Whether it was saved.
    """
    try:
        if folder.parts[:1] == ("~",):
            raise FileNotFoundError("this user has no home directory")
        folder.mkdir(parents=True, exist_ok=True)
        save()
    except OSError as error:
        _warn(folder, variable, error.strerror or str(error))
        return False
    return True


@functools.cache
def _warn(folder: Path, variable: str, reason: str) -> None:
    log.warning(
        "%s cannot be written (%s), so nothing is kept for the next run; name a folder that can be, such as by the "
        "environment variable %s",
        folder,
        reason,
        variable,
    )
