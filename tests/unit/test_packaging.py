"""The explicit package list names every folder that holds a package, and each where it lies."""

import tomllib
from pathlib import Path

from paths import ROOT

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Where setuptools looks for a package."""
    mapped = SETUPTOOLS["package-dir"]
    parent, _, leaf = package.rpartition(".")
    if package in mapped:
        return ROOT / mapped[package]
    return folder_of(parent) / leaf


def test_every_listed_package_is_there():
    for package in SETUPTOOLS["packages"]:
        assert (folder_of(package) / "__init__.py").is_file(), package


def test_every_package_is_listed():
    inside = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "soda_compile").rglob("__init__.py")
        if not any(part.is_symlink() for part in [path.parent, *path.parents] if ROOT in part.parents)
    }
    assert inside | set(SETUPTOOLS["package-dir"]) == set(SETUPTOOLS["packages"])


def test_links_let_type_checkers_see_the_mapped_packages():
    for package, folder in SETUPTOOLS["package-dir"].items():
        link = ROOT.joinpath(*package.split("."))
        assert link.resolve() == (ROOT / folder).resolve(), package


def test_the_weights_of_the_demo_are_shipped():
    package = "soda_compile.digits"
    patterns = SETUPTOOLS["package-data"][package]
    folder = folder_of(package)
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    assert shipped == {path for path in (folder / "weights").rglob("*") if path.is_file()}


def test_no_other_weights_are_shipped():
    assert set(SETUPTOOLS["package-data"]) == {"soda_compile", "soda_compile.digits", "soda_compile.report"}
    assert SETUPTOOLS["package-data"]["soda_compile.report"] == ["page.html"]
