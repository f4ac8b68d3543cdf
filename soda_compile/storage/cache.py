"""The folder of measurements that are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "SODA_COMPILE_CACHE"


def cache_folder() -> Path:
    """Return the folder named by SODA_COMPILE_CACHE, or ``soda_compile`` in the user's cache directory.

    Profiles lie in ``profiles`` in it; each other folder in it belongs to one pipeline, with its sensitivity and plans.
    """
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "soda_compile"
