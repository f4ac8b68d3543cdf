"""The documentation as a site: ``sphinx-build -W docs site``."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # mathml

project = "soda_compile"
author = "the authors of soda_compile"
copyright = "the authors of soda_compile, Apache-2.0"
release = metadata.version("soda-compile")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "soda_compile"
templates_path: list[str] = []
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
