"""Planning needs no torch, not even through another module of the project."""

import ast
import sys
from pathlib import Path

import soda_compile.planner

PACKAGE = Path(soda_compile.planner.__file__).parents[1]
ALLOWED = {"numpy", "pydantic", "safetensors", "rich"} | set(sys.stdlib_module_names)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_it_reaches_imports_torch():
    todo, seen = list((PACKAGE / "planner").glob("*.py")), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            package, *rest = name.split(".")
            if package == "soda_compile":
                base = PACKAGE.joinpath(*rest)
                todo += [file for file in (base.with_suffix(".py"), base / "__init__.py") if rest and file.exists()]
            else:
                drawn = package == "matplotlib" and "figure" in path.name  # on demand, in notebooks
                assert package in ALLOWED or drawn, f"{path.name} imports {name}"
    assert {"plan.py", "sensitivity.py", "files.py", "anchors.py"} <= {path.name for path in seen}
    assert not any(path.name == "normalisation.py" for path in seen)
