"""Code of the README, of docs/ and of the notebooks, run as a reader would."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from paths import ROOT
from typer.testing import CliRunner

from soda_compile.cli import app

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
NOTEBOOKS = tuple(sorted((ROOT / "examples/notebooks").glob("*.ipynb")))
_FENCE = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUNNABLE = ("python", "bash")
# Markers before a block that say that it is not run by these tests.
_APART = ("not run: ", "demo command", "test command", "example: ")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Attributes:
        language: python or bash.
        code: Its text.
        line: The line of the page where it begins.
        prints: The text that the page shows as printed by it, if any.
    """

    language: str
    code: str
    line: int
    prints: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """Return what runs on a page; a block of text after the marker ``prints`` is what the one before it prints."""
    if page in NOTEBOOKS:
        yield from _cells(page)
        return
    text = page.read_text()
    found: Block | None = None
    for match in _FENCE.finditer(text):
        marker, language, code = match[1] or "", match[2], match[3]
        if marker == "prints":
            assert found is not None, f"{page}: nothing is run before what is printed"
            yield Block(found.language, found.code, found.line, code)
            found = None
            continue
        if found is not None:
            yield found
        runs = language in _RUNNABLE and not marker.startswith(_APART)
        found = Block(language, code, text.count("\n", 0, match.start(3)) + 1) if runs else None
    if found is not None:
        yield found


def _cells(notebook: Path) -> Iterator[Block]:
    cells = json.loads(notebook.read_text())["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], f"{notebook}: cell {number} is stored with its outputs; clear them"
            yield Block("python", "".join(cell["source"]) + "\n", number)


def run(page: Path) -> dict[str, Any]:
    """Run the blocks of a page, in one namespace, and compare what they print; return the namespace."""
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        printed = _python(block, page, scope) if block.language == "python" else _commands(block, place)
        missing = [line for line in _lines(block.prints or "") if line not in _lines(printed)]
        assert not missing, f"{place} does not print {missing}, but\n{printed}"
    return scope


def _python(block: Block, page: Path, scope: dict[str, Any]) -> str:
    tree, shown = ast.parse("\n" * (block.line - 1) + block.code), None  # tracebacks name the line of the page
    if page in NOTEBOOKS and isinstance(tree.body[-1], ast.Expr):
        shown = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, str(page), "exec"), scope)
        if shown is not None:
            print(_displayed(eval(compile(shown, str(page), "eval"), scope)))
    return printed.getvalue()


def _displayed(value: Any) -> Any:
    """Return what a notebook shows of a value."""
    return value._repr_html_() if hasattr(value, "_repr_html_") else value


def _commands(block: Block, place: str) -> str:
    printed = ""
    for line in block.code.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "soda-compile", f"{place}: {program} cannot be run here; mark the block as not run, and why"
        arguments = [each for word in words for each in _expanded(word)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{place}: {line}\n{result.output}"
        printed += result.output
    return printed


def _expanded(word: str) -> list[str]:
    """Return the files that a pattern matches, as a shell does."""
    return [str(path) for path in sorted(Path().glob(word))] if "*" in word else [word]


def _lines(text: str) -> list[str]:
    """Return the lines of a text without what differs from machine to machine: numbers, rows of plans, widths."""
    plain = re.sub(r"[A.Crp\d]{10,}|\b[\da-f]{8,}\b", "~", text)
    plain = re.sub(r"\d[\d.,]*(?:e[+-]?\d+)?", "#", re.sub(r"[━─┏┳┓┡╇┩└┴┘┌┬┐├┼┤│┃]+", " ", plain))
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
