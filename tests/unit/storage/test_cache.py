"""One folder for all that is kept between runs."""

import sys
from pathlib import Path

import pytest

from soda_compile.measure.profile_store import default_folder
from soda_compile.storage.cache import cache_folder


def test_one_variable_moves_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert default_folder() == tmp_path / "profiles"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these have other conventions")
def test_the_users_cache_directory_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SODA_COMPILE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "soda_compile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "soda_compile"
