"""Folders by path or from the hub; the hub is a stand-in on this machine, which ``snapshot_download`` itself asks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub
from paths import ROOT

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

from soda_compile.errors import OptionError
from soda_compile.storage.hub import named_folder

FILES = {"setting.json": b"first", "big.bin": b"not asked for"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    disable_progress_bars()
    with Hub().serving() as serving:
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        template = serving.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield serving


def read(place: str) -> bytes:
    return (named_folder(place, ["*.json"], "measurement") / "setting.json").read_bytes()


def test_a_local_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "setting.json").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    hub.push("owner/name", FILES)
    assert read("owner/name") == b"mine"
    assert hub.requests == []


def test_a_repository_is_downloaded_once_and_only_what_is_needed(hub: Hub) -> None:
    hub.push("owner/name", FILES)
    assert read("owner/name") == b"first"
    assert not [request for request in hub.requests if "big.bin" in request]
    hub.requests.clear()
    assert read("owner/name") == b"first"
    assert not [request for request in hub.requests if request.startswith("GET") and "resolve" in request]


def test_revisions_are_pinned(hub: Hub) -> None:
    first = hub.push("owner/name", FILES, "v1")
    hub.push("owner/name", {"setting.json": b"second"}, "refs/pr/1")
    assert [read(f"owner/name{at}") for at in ("", "@v1", f"@{first}")] == [b"second", b"first", b"first"]
    with pytest.raises(OptionError, match=r"owner/name at revision v9.*(?i:not found|404)"):
        read("owner/name@v9")


def test_what_is_cached_serves_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("owner/name", FILES, "v1")
    assert read("owner/name@v1") == b"first"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    assert read("owner/name@v1") == b"first"
    with pytest.raises(OptionError, match="the hub gives none for the repository owner/other"):
        read("owner/other")


def test_a_missing_repository_is_named(hub: Hub) -> None:
    with pytest.raises(OptionError, match=r"'owner/nothing': there is no such folder, and the hub gives none.* main"):
        read("owner/nothing")


@pytest.mark.parametrize("place", ["nowhere", "/no/such/folder", "a/b/c", "./nowhere", "owner/name@", "../a"])
def test_what_is_neither_is_refused_before_the_hub_is_asked(place: str, hub: Hub) -> None:
    with pytest.raises(OptionError, match="is no folder, nor a repository"):
        read(place)
    assert hub.requests == []


def test_a_name_that_the_hub_refuses_is_an_error_of_ours(hub: Hub) -> None:
    with pytest.raises(OptionError, match=r"a--b"):
        read("owner/a--b")


def test_without_huggingface_hub_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OptionError, match="pip install huggingface_hub"):
        read("owner/name")


SCRIPT = """
import importlib.util, sys
from soda_compile.storage.hub import named_folder
print((named_folder("owner/name", ["*.json"], "measurement") / "setting.json").read_text())
"""


@pytest.mark.thorough
def test_the_environment_of_the_hub_counts(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, as users set them."""
    hub.push("owner/name", FILES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    for more in ({}, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        command = [sys.executable, "-c", SCRIPT]
        run = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=300)
        assert run.stdout.strip() == "first", run.stderr
