"""One folder for all that is kept between runs."""

import sys
from pathlib import Path

import pytest

from soda_compile.measure.profile_store import default_folder
from soda_compile.storage.cache import cache_folder, keep


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


def test_a_home_in_the_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no shell expands it: in a Dockerfile, in a service's settings."""
    monkeypatch.setenv("SODA_COMPILE_CACHE", "~/soda")
    assert cache_folder() == Path.home() / "soda"


def test_what_can_be_written_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "a" / "b"
    assert keep(folder, lambda: (folder / "file").write_text("kept"))
    assert (folder / "file").read_text() == "kept"
    assert not caplog.records


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these have other conventions")
def test_a_user_without_a_home_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(_: int) -> None:
        raise KeyError("no such user")

    for variable in ("SODA_COMPILE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    saved: list[int] = []
    for number in range(2):
        assert not keep(cache_folder(), lambda number=number: saved.append(number))
    assert not saved
    assert not list(tmp_path.iterdir()), "a folder called ~ is nobody's home"
    (record,) = caplog.records
    assert "no home directory" in record.getMessage()
    assert "SODA_COMPILE_CACHE" in record.getMessage()
