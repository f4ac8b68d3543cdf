"""Packages without machine code, for the tests that are not about it."""

from collections.abc import Iterator
from pathlib import Path

import package_tools as toy
import pytest


@pytest.fixture(scope="module")
def eager_subgraphs() -> Iterator[None]:
    with toy.eager_subgraphs():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")
