"""Imports go one way: every room may import rooms of the levels below its own, imports inside functions included."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

LEVELS = (
    ("errors",),
    ("storage", "torch_internals"),
    ("distributed",),
    ("plans",),
    ("ir", "planner"),
    ("analysis", "capture"),
    ("passes",),
    ("compiler",),
    ("runtime",),
    ("backend", "integrations"),
    ("measure", "packages"),
    ("acceleration",),
    ("learning",),
    ("engines", "report"),
    ("demo", "cli"),
)
LEVEL = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
LEVEL["digits"] = LEVEL["measure"]  # the model that the demo runs
BESIDE = {("cli", "demo"), ("torch_internals", "storage")}  # rooms of one level, in one direction


def sources() -> dict[Path, str]:
    """The room of every module."""
    found = {path: path.relative_to(ROOT / "soda_compile").parts[0] for path in (ROOT / "soda_compile").rglob("*.py")}
    found |= dict.fromkeys((ROOT / "passes").rglob("*.py"), "passes")
    return {path: room.removesuffix(".py") for path, room in found.items() if not path.parent.is_symlink()}


def imported_names(path: Path) -> set[str]:
    """Names that a module imports, wherever in the module the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported(path: Path) -> set[str]:
    """Rooms that a module imports from."""
    return {name.split(".")[1] for name in imported_names(path) if name.startswith("soda_compile.")}


@pytest.mark.parametrize("room", [room for rooms in LEVELS for room in rooms])
def test_imports_go_down(room: str):
    wrong = [
        f"{path.relative_to(ROOT)} imports soda_compile.{other}"
        for path, own in sources().items()
        if own == room
        for other in imported(path)
        if other != room and (room, other) not in BESIDE and LEVEL.get(other, len(LEVELS)) >= LEVEL[room]
    ]
    assert not wrong


@pytest.mark.parametrize("room", [room for rooms in LEVELS for room in rooms if LEVEL[room] < LEVEL["acceleration"]])
def test_frameworks_are_known_by_their_protocol_alone(room: str):
    """Only what accelerates a pipeline may import one framework; measuring and planning ask ``integrations.base``."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, own in sources().items()
        if own == room != "integrations"
        for name in imported_names(path)
        if name.startswith("soda_compile.integrations.") and not name.startswith("soda_compile.integrations.base.")
    ]
    assert not wrong


def test_every_folder_is_a_room():
    """Only two modules stay flat, and each folder says what lives there and what may be imported there."""
    flat = {path.stem for path in (ROOT / "soda_compile").glob("*.py")}
    assert flat == {"__init__", "errors"}
    folders = {path.parent.name for path in (ROOT / "soda_compile").glob("*/__init__.py")}
    assert folders | {"errors"} == set(LEVEL)
    for room in folders - {"digits"}:
        docstring = ast.get_docstring(ast.parse((ROOT / "soda_compile" / room / "__init__.py").read_text()))
        assert docstring is not None, f"soda_compile/{room} has no docstring"
        assert "ay import" in docstring, f"soda_compile/{room} does not say what may be imported there"


def test_private_torch_is_imported_in_one_room():
    private = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path, room in sources().items()
        if room != "torch_internals"
        for line in path.read_text().splitlines()
        if line.lstrip().startswith(("from torch._", "import torch._"))
        or ("from torch." in line and "._" in line.split(" import ")[0])
    ]
    assert not private
