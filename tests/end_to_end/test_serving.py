"""The replicas of examples/serving, in threads and without Ray."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from package_tools import eager_subgraphs
from short_digits import save_short_pipeline
from threads import at_once
from tracing import graphs_as_they_are

from examples.serving import export, metrics
from examples.serving.orders import Order, catalogue
from examples.serving.reference import relative_errors
from examples.serving.replicas import (
    Accelerated,
    Interrupted,
    Original,
    Packaged,
    Replica,
    accelerate_from_store,
    pipeline,
)
from soda_compile.acceleration.trying import TRIED

SERVED = {"STEPS": (6, 8), "SIZES": (1, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("serving")
    save_short_pipeline(made)
    # What replicas set for their threads, this one too, is not to stay for the tests that run here later.
    as_before = torch._dynamo.config.patch(automatic_dynamic_shapes=True)
    with as_before, pytest.MonkeyPatch.context() as patch:
        graphs_as_they_are(patch)
        for module in ("orders", "replicas", "export"):
            for name, value in SERVED.items():
                patch.setattr(f"examples.serving.{module}.{name}", value, raising=False)
        yield made


@pytest.fixture(scope="module")
def accelerated(folder: Path) -> Replica:
    return Accelerated(folder)


@pytest.mark.thorough
def test_one_replica_measures_and_the_next_one_finds_it(accelerated: Replica, folder: Path) -> None:
    assert accelerated.measured == 4 + TRIED
    assert accelerate_from_store(pipeline(folder), folder) == []
    assert len(list(folder.glob("store/*/setting.json"))) == 1


@pytest.mark.thorough
def test_orders_in_threads_are_drawn_as_alone_and_close_to_the_original(accelerated: Replica, folder: Path) -> None:
    orders, drawn = catalogue(2), dict[Order, torch.Tensor]()
    alone = {order: accelerated.draw(order) for order in orders}
    at_once(lambda order: drawn.__setitem__(order, accelerated.draw(order)), orders)
    original = Original(folder)
    for order in orders:
        assert torch.equal(drawn[order], alone[order])
        assert 0 < relative_errors(drawn[order], original.draw(order)).max() < 0.5
    assert not any(each["misses"] for each in accelerated.stats().values())


def test_an_order_that_is_given_up_ends_early_and_harms_no_other(accelerated: Replica) -> None:
    order, cancelled = catalogue(1)[-1], threading.Event()
    wanted, before = accelerated.draw(order), accelerated.counts.copy()
    cancelled.set()
    with pytest.raises(Interrupted):
        accelerated.draw(order, cancelled)
    assert torch.equal(accelerated.draw(order), wanted)
    assert accelerated.counts - before == {"interrupted": 1, "finished": 1}
    assert all(each["slot_bytes"] == 0 for each in accelerated.stats().values()), "what it kept is free again"


def test_packages_of_the_stored_measurement_draw_what_the_pipeline_draws(
    accelerated: Replica, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("replicas", "export"):
        monkeypatch.setattr(f"examples.serving.{module}.STEPS", (8,))
    with eager_subgraphs():
        export.export(folder)
        packaged = Packaged(folder)
        for order in catalogue(1):
            if order.steps == 8:
                torch.testing.assert_close(packaged.draw(order), accelerated.draw(order), rtol=0, atol=1e-5)
    assert len(list(folder.glob("store/*/setting.json"))) == 1


def test_a_page_of_metrics_sums_up_all_replicas(accelerated: Replica) -> None:
    states = [{"replica": name, "stats": accelerated.stats()} for name in ("one", "other")]
    text, counted = metrics.page(states), accelerated.stats()["transformer"]
    assert 'soda_compile_calls_total{denoiser="one/transformer"}' in text
    sums = metrics.totals(text)
    assert sums["soda_compile_calls_total"] == 2 * counted["calls"] > 0
    assert sums["soda_compile_regions_total:compute"] == 2 * counted["regions"]["compute"]


@pytest.mark.parametrize(
    "data", [{}, {"labels": [1], "steps": 8}, {"labels": [1], "steps": 7, "seed": 0}, {"labels": 1}]
)
def test_what_is_no_order_is_refused(folder: Path, data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"has labels, steps and a seed|is not served"):
        Order.from_json(data)
