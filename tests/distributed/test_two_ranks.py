"""What two processes do together: every check of calibration, of context and of tensor parallelism."""

from collections.abc import Callable

import checks_of_calibration
import checks_of_context
import checks_of_tensor
import pytest
from distributed_checks import launch, names_of
from thorough import all_but

MODULES = (checks_of_calibration, checks_of_context, checks_of_tensor)
LATER = [f"{each.__name__}:{name}" for each in MODULES for name in getattr(each, "LATER", ())]
NAMES = [name for each in MODULES for name in names_of(each)]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    folder = tmp_path_factory.mktemp("ranks")
    return launch(request, folder, seconds=1800, SODA_COMPILE_CACHE=str(folder / "cache"))


@pytest.mark.parametrize("name", all_but(LATER, NAMES))
def test_two_ranks(outcomes: Callable[[str], list[str]], name: str):
    for rank, outcome in enumerate(outcomes(name)):
        assert outcome == "ok", f"rank {rank}: {outcome}"
