"""The folder of measurements that are kept between runs."""

import os
from pathlib import Path

import platformdirs

VARIABLE = "SODA_COMPILE_CACHE"


def cache_folder() -> Path:
    """Return the folder named by SODA_COMPILE_CACHE, or ``soda_compile`` in the user's cache directory.

    Profiles lie in ``profiles`` in it; each other folder in it belongs to one pipeline, with its sensitivity and plans.
    """
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    return platformdirs.user_cache_path("soda_compile", appauthor=False)
