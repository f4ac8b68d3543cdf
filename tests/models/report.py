"""Writes docs/coverage.md: ``python tests/models/report.py`` examines every denoiser, a few minutes on one core."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "coverage.md"

if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))

from models.base import Denoiser  # noqa: E402
from models.catalogue import DENOISERS, EXCLUDED, GROUPS  # noqa: E402
from models.harness import Finding, examine  # noqa: E402

COLUMNS = (
    "model", "captured", "regions found", "work in regions", "compute-everything plan", "random plan",
    "all steps at once", "outputs and inputs overwritten", "note",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def names_in(document: str) -> list[str]:
    """The models in the tables of a coverage document, in order."""
    return re.findall(r"^\| `(\w+)` \|", document, flags=re.MULTILINE)


def document(findings: dict[str, Finding]) -> str:
    """The whole page."""
    return "\n".join(_lines(findings)) + "\n"


def _lines(findings: dict[str, Finding]) -> Iterator[str]:
    whole = [name for name, finding in findings.items() if finding.captured == "whole"]
    pieces = [name for name, finding in findings.items() if finding.captured == "piecewise"]
    right = [name for name, finding in findings.items() if finding.regions_right]
    exact = [name for name in right if findings[name].exact == 0]
    ahead = [name for name, finding in findings.items() if finding.ahead is not None]
    kept = [name for name, finding in findings.items() if finding.overwritten == 0]
    captured = len(whole) + len(pieces)
    yield f"""# Coverage of the denoising transformers of diffusers

Made with diffusers {version("diffusers")} and torch {version("torch")} by `python tests/models/report.py`.
Each model is a tiny random configuration, most with two blocks of each kind (`tests/models/`). Its residual modules are
written down there from its source. The rewritten graphs run as they are, without Inductor.

- **{len(findings)}** denoisers: **{len(whole)}** captured whole, **{len(pieces)}** as one of several graphs,
  **{len(findings) - captured}** not.
- Regions are exactly those written down in **{len(right)}** of the {captured} captured.
- A plan that computes everything equals the eager model bit for bit in **{len(exact)}**, to rounding in the others.
- A random plan of compute, reuse and forecast over five steps equals forward hooks in eager mode: the largest
  difference is given as a share of the largest output, and in brackets what it would be if nothing were reused.
- **{len(ahead)}** have matrix products that depend on the timestep and pooled inputs alone. With these
  computed for all steps at once, the random plan gives the same: that column has the largest difference.
- In **{len(kept)}** nothing changes where the caller writes over all outputs and inputs after each call."""
    for title, module in GROUPS.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield HEADER
        for name, subject in DENOISERS.items():
            if subject.make.__module__ == module.__name__:
                yield _row(name, subject, findings[name])
    yield ""
    yield "## Not covered"
    yield ""
    for name, finding in findings.items():
        if finding.captured == "no":
            yield f"- `{name}`: {DENOISERS[name].note} Dynamo: {finding.reason}"
    for name, reason in EXCLUDED.items():
        yield f"- `{name}`: {reason}."


def _row(name: str, subject: Denoiser, finding: Finding) -> str:
    if finding.captured == "no":
        return f"| `{name}` | no | | | | | | | {subject.note} |"
    found = f"{len(finding.found)} of {len(finding.expected)}" + ("" if finding.regions_right else " (wrong)")
    exact = "bit-equal" if finding.exact == 0 else f"{finding.exact / finding.scale:.0e}"
    reuse = f"{finding.reuse / finding.scale:.0e} ({finding.stale / finding.scale:.0e})"
    ahead = "none" if finding.ahead is None else f"{finding.ahead / finding.scale:.0e}"
    kept = "bit-equal" if finding.overwritten == 0 else f"{finding.overwritten / finding.scale:.0e}"
    cells = (finding.captured, found, f"{finding.share:.0%}", exact, reuse, ahead, kept, subject.note)
    return f"| `{name}` | {' | '.join(cells)} |"


def main() -> None:
    """Examines all denoisers and writes the page."""
    findings = {}
    for name, subject in DENOISERS.items():
        findings[name] = examine(subject)
        print(name, findings[name].captured, findings[name].regions_right, flush=True)
    TABLE.write_text(document(findings))


if __name__ == "__main__":
    main()
