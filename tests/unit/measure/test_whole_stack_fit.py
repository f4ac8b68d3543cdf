"""Plans that keep one value of all regions, run again on recorded generations."""

from collections.abc import Iterator

import pytest
from test_replayed_plans import ddim, plan_of, recorded
from tracing import eager_graphs

import soda_compile


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


def test_it_is_compared_and_fitted() -> None:
    recording = recorded(ddim())
    whole, each = (plan_of("CrC11C12", slots=slots) for slots in ("stack", "region"))
    errors = soda_compile.compare(recording, {"stack": whole, "region": each}).errors
    assert (errors["stack"] != errors["region"]).all()
    fit = soda_compile.fit(recording, whole)
    assert fit.plan.slots == "stack"
    assert fit.after.mean() < fit.before.mean()
    after = soda_compile.compare(recording, {"fitted": fit.plan}).errors["fitted"]
    assert after == pytest.approx(fit.after, rel=1e-3)
