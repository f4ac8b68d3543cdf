"""Every denoising transformer of diffusers: captured, all residual branches found, plans carried out exactly."""

import pytest

diffusers = pytest.importorskip("diffusers")

from diffusers.models import transformers as library  # noqa: E402

from models.catalogue import DENOISERS, EXCLUDED  # noqa: E402
from models.harness import examine  # noqa: E402
from models.report import TABLE, names_in  # noqa: E402

ROUNDING = 1e-5  # of the largest output; forecasts add up in another order than the reference
KNOWN = "0.42"  # the release that the catalogue was written for


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser(name: str) -> None:
    subject = DENOISERS[name]
    if not hasattr(library, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    finding = examine(subject)
    assert finding.captured == subject.captured, finding.reason
    if finding.captured == "no":
        print(finding.reason)
        return
    assert sorted(finding.found) == sorted(finding.expected)
    assert {path.rpartition(".")[2] for path in finding.left} == set(subject.left)
    assert finding.exact <= ROUNDING * finding.scale
    assert finding.reuse <= ROUNDING * finding.scale
    assert (finding.ahead or 0.0) <= ROUNDING * finding.scale
    assert finding.overwritten == 0, "what the caller does with outputs and inputs after a call must not matter"
    assert finding.stale > 100 * ROUNDING * finding.scale, "the plan must show, or the comparison tells nothing"


@pytest.mark.skipif(not diffusers.__version__.startswith(KNOWN), reason="the catalogue is of another release")
def test_every_transformer_is_covered_or_excluded() -> None:
    classes = {name for name, value in vars(library).items() if isinstance(value, type)}
    assert classes == DENOISERS.keys() | EXCLUDED.keys()


def test_the_table_in_the_docs_has_every_denoiser() -> None:
    assert sorted(names_in(TABLE.read_text())) == sorted(DENOISERS)
