"""The documents name files that exist."""

import re

import pytest
from paths import ROOT

DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_folders_it_names_exist(document: str):
    content = (ROOT / document).read_text()
    named = re.findall(r"(?<![\w./-])((?:soda_compile|passes|tests|benchmarks|docs)/[\w/]*(?:\.\w+)?)", content)
    links = [link for link in re.findall(r"\]\(([^)#]+)", content) if not link.startswith("http")]
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert not missing


def test_the_journeys_name_every_room():
    content = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "soda_compile").glob("*/__init__.py")} - {"digits"}
    assert not {room for room in rooms if f"`{room}`" not in content}
