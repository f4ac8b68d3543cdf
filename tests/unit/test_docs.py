"""The documents name files that exist."""

import re

import pytest
from pages import PAGES
from paths import ROOT

import soda_compile
from soda_compile.cli import app

DOCUMENTS = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_folders_it_names_exist(document: str):
    content = (ROOT / document).read_text()
    named = re.findall(r"(?<![\w./-])((?:soda_compile|passes|tests|benchmarks|docs)/[\w/]*(?:\.\w+)?)", content)
    links = [link for link in re.findall(r"\]\(([^)#]+)", content) if not link.startswith("http")]
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert not missing


def test_messages_that_are_explained_are_given():
    """Each message of the first column stands in the sources, and each kind is one that calls without a plan have."""
    sources = "".join(path.read_text() for path in (ROOT / "soda_compile").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # messages over several lines
    columns = re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    named = [part for column in columns for part in re.findall(r"(kind )?`([^`]+)`", column)]
    assert len(named) > 15
    missing = [text for kind, text in named if (f'"{text}"' if kind else text) not in joined]
    assert not missing


def test_every_command_is_listed():
    listed = (ROOT / "docs/commands.md").read_text()
    groups = [command.name or command.callback.__name__.strip("_") for command in app.registered_commands]
    assert not [name for name in (*groups, "store list") if f"`{name}" not in listed]


def test_the_reference_has_all_that_is_public():
    written = re.findall(r"auto(?:function|class|exception):: (\w+)", (ROOT / "docs/api.md").read_text())
    assert set(written) == set(soda_compile.__all__)


def test_the_journeys_name_every_room():
    content = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "soda_compile").glob("*/__init__.py")} - {"digits"}
    assert not {room for room in rooms if f"`{room}`" not in content}
