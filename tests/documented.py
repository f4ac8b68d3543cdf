"""The examples in docs/extending.md."""

import re
from typing import Any

from paths import ROOT


def example(name: str) -> str:
    document = (ROOT / "docs/extending.md").read_text()
    found = re.search(rf"<!-- example: {name} -->\n```\w*\n(.*?)```", document, re.DOTALL)
    assert found is not None, f"docs/extending.md has no example {name!r}"
    return found[1].rstrip()


def scope_of(name: str, **scope: Any) -> dict[str, Any]:
    """Runs an example among the values of ``scope``, and returns what is defined after it."""
    scope = {"__name__": "extending", **scope}
    exec(compile(example(name), "docs/extending.md", "exec"), scope)
    return scope
