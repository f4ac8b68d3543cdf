import math
from dataclasses import replace

import numpy as np
import pytest
from planner_tables import make_sensitivity

from soda_compile.errors import SensitivityError
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.sensitivity import METRICS, Sensitivity, SensitivityInfo, merge


def test_lookups():
    sensitivity = make_sensitivity(steps=6, width=4)
    assert sensitivity.table("residual", "reuse") is sensitivity.mean["residual.reuse"]
    table = sensitivity.mean["cosine.forecast1"]
    assert sensitivity.error("cosine", "forecast1", 5, "blocks.1.attn", 2, 3) == table[5, 1, 1, 2]
    assert sensitivity.error("cosine", "reuse", 5, "blocks.1.attn", 2, 99) == sensitivity.mean["cosine.reuse"][5, 1, 1]
    assert math.isnan(sensitivity.error("cosine", "forecast1", 4, "blocks.1.attn", 2, 3))
    assert math.isnan(sensitivity.error("cosine", "forecast1", 5, "blocks.1.attn", 2, 5))
    assert math.isnan(sensitivity.error("cosine", "reuse", 5, "blocks.1.attn", 0))
    with pytest.raises(SensitivityError, match="metric 'l2' and operator 'reuse'; measured are"):
        sensitivity.table("l2", "reuse")


def test_lookups_of_pruning():
    sensitivity = make_sensitivity(steps=6, width=4, scores=("random", "drift"))
    assert sensitivity.prune_scores == ("drift", "random")
    table = sensitivity.table("residual", "prune.drift")
    assert table.shape == (6, 2, 4, 7)
    assert sensitivity.error("residual", "prune.drift", 5, "blocks.1.attn", 2, rate=0.375) == table[5, 1, 1, 2]
    assert math.isnan(sensitivity.error("residual", "prune.drift", 5, "blocks.1.attn", 5, rate=0.375))
    with pytest.raises(SensitivityError, match=r"cosine\.prune\.drift, .*calibrate with prune_scores=\['feature"):
        sensitivity.table("cosine", "prune.feature_mean")
    assert make_sensitivity().prune_scores == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"max_interval": 0}, "max_interval is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"calls_per_step": 0}, "calls_per_step is 0"),
        ({"regions": ()}, "at least one region"),
        ({"regions": ("a", "a")}, "regions must all be different"),
        ({"seeds": (1, 1)}, "seeds must all be different"),
        ({"timesteps": (1.0,)}, "1 timesteps for 6 steps"),
        ({"scheduler_config": {"a": object()}}, "cannot be written as JSON"),
    ],
)
def test_refuses_impossible_info(change, message):
    with pytest.raises(SensitivityError, match=message):
        replace(make_sensitivity(steps=6).info, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": {}, "variance": {}}, "differ"),
        ({"mean": {}}, "differ"),
        ({"step_weights": np.ones(5)}, r"'step_weights' is float64 \(5,\); expected float64 \(6,\)"),
        ({"step_weights": np.ones(6, np.float32)}, r"is float32 \(6,\); expected float64"),
        ({"step_weights": np.full(6, np.nan)}, "step_weights must be finite"),
        ({"step_weights": -np.ones(6)}, "not negative"),
        ({"region_flops": np.full(2, np.inf)}, "region_flops must be finite"),
        ({"total_flops": 0.1}, "total_flops is 0.1 and the regions remove"),
        ({"total_flops": math.nan}, "total_flops is nan"),
        ({"total_flops": 0.0, "region_flops": np.zeros(2)}, "total_flops is 0.0"),
    ],
)
def test_refuses_arrays_that_do_not_fit(change, message):
    with pytest.raises(SensitivityError, match=message):
        replace(make_sensitivity(steps=6), **change)


def test_refuses_tables_that_do_not_fit():
    sensitivity = make_sensitivity(steps=6, width=5)
    for key, table, message in [
        ("residual.reuse", np.zeros((6, 2, 4), np.float32), r"mean.residual.reuse' is float32 \(6, 2, 4\)"),
        ("residual.forecast1", np.zeros((6, 2, 5), np.float32), r"expected float32 \(6, 2, 5, 5\)"),
        ("residual.reuse", np.zeros((6, 2, 5)), "is float64"),
        ("residual.linear", np.zeros((6, 2, 5), np.float32), "'residual.linear' is not known"),
    ]:
        tables = {**sensitivity.mean, key: table}
        with pytest.raises(SensitivityError, match=message):
            replace(sensitivity, mean=tables, variance=tables)


def test_refuses_wrong_tables_of_pruning():
    sensitivity = make_sensitivity(steps=6, regions=2, width=5, scores=("drift",))
    for key, shape, message in [
        ("residual.prune.drift", (6, 2, 5), r"float32 \(6, 2, 5\); expected float32 \(6, 2, 5, 7\)"),
        ("residual.prune.drift", (6, 2, 5, 5), r"expected float32 \(6, 2, 5, 7\)"),
        ("residual.prune.entropy", (6, 2, 5, 7), "'residual.prune.entropy' is not known"),
        ("residual.prune", (6, 2, 5, 7), "'residual.prune' is not known"),
    ]:
        tables = {**sensitivity.mean, key: np.zeros(shape, np.float32)}
        with pytest.raises(SensitivityError, match=message):
            replace(sensitivity, mean=tables, variance=tables)


def test_refuses_wrong_flops_of_pruning():
    sensitivity, without = make_sensitivity(scores=("drift",)), make_sensitivity()
    removed = sensitivity.region_prune_flops
    assert removed is not None
    too_much = removed.copy()
    too_much[1, 6] = sensitivity.total_flops * 1.1
    for data, value, message in [
        (sensitivity, None, r"region_prune_flops is missing, but .* are \['drift'\]"),
        (without, removed, r"region_prune_flops is given, but .* are \[\]"),
        (sensitivity, removed[:, :6], r"'region_prune_flops' is float64 \(2, 6\); expected float64 \(2, 7\)"),
        (sensitivity, removed.astype(np.float32), "is float32"),
        (sensitivity, -removed, "for blocks.0.attn at rate 0.125; it must lie between 0 and total_flops"),
        (sensitivity, too_much, "for blocks.1.attn at rate 0.875; it must lie between 0 and"),
        (sensitivity, np.full_like(removed, np.nan), "region_prune_flops is nan"),
    ]:
        with pytest.raises(SensitivityError, match=message):
            replace(data, region_prune_flops=value)


def _measure(rows, seeds, holes):
    """Sensitivity of given per-sample errors, [samples, ...] per table, straight from numpy."""
    base = make_sensitivity(steps=4, regions=2, width=3)
    tables = {key: np.where(holes[key], np.nan, values) for key, values in rows.items()}
    info = replace(base.info, samples=len(rows["cosine.reuse"]), generations=len(seeds), seeds=seeds)
    mean = {key: values.mean(axis=0).astype(np.float32) for key, values in tables.items()}
    variance = {key: values.var(axis=0).astype(np.float32) for key, values in tables.items()}
    return replace(base, info=info, mean=mean, variance=variance)


def test_merging_equals_measuring_at_once():
    rng = np.random.default_rng(0)
    shapes = {f"{metric}.{op.name}": (4, 2, *op.shape(3)) for metric in METRICS for op in OPERATORS}
    holes = {key: rng.random(shape) < 0.2 for key, shape in shapes.items()}
    rows = {key: rng.normal(5, 2, (21, *shape)) for key, shape in shapes.items()}
    parts = [
        _measure({key: values[start:end] for key, values in rows.items()}, seeds, holes)
        for start, end, seeds in [(0, 3, (0,)), (3, 4, (1,)), (4, 21, (2, 3))]
    ]
    whole = _measure(rows, (0, 1, 2, 3), holes)
    merged = merge(merge(parts[0], parts[1]), parts[2])
    assert (merged.info.samples, merged.info.generations, merged.info.seeds) == (21, 4, (0, 1, 2, 3))
    for key in shapes:
        np.testing.assert_allclose(merged.mean[key], whole.mean[key], rtol=1e-6)
        np.testing.assert_allclose(merged.variance[key], whole.variance[key], rtol=1e-5)
        assert merged.mean[key].dtype == merged.variance[key].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", "xyz"),
        ("regions", ("a", "b")),
        ("timesteps", None),
        ("timestep_input", "t"),
        ("scheduler", "Other"),
        ("scheduler_config", {"beta": 1}),
        ("scheduler_digest", "d2"),
        ("guidance", 4.0),
        ("calls_per_step", 2),
        ("tokens", {"stride": 2}),
    ],
)
def test_merging_refuses_another_setting(name, value):
    a, b = make_sensitivity(0), make_sensitivity(0, first_seed=10)
    merge(a, b)
    with pytest.raises(SensitivityError, match=f"cannot merge: {name} is "):
        merge(a, replace(b, info=replace(b.info, **{name: value})))


def test_merging_refuses_other_shapes_weights_flops_and_tables():
    a = make_sensitivity(0)
    b = make_sensitivity(0, first_seed=10)
    for name, other in {
        "steps": make_sensitivity(0, steps=7, first_seed=10),
        "max_interval": make_sensitivity(0, width=4, first_seed=10),
        "step_weights": replace(b, step_weights=b.step_weights * 2),
        "region_flops": replace(b, region_flops=b.region_flops * 0.9),
        "total_flops": replace(b, total_flops=b.total_flops * 2),
        "tables": replace(
            b, mean={"cosine.reuse": b.mean["cosine.reuse"]}, variance={"cosine.reuse": b.mean["cosine.reuse"]}
        ),
    }.items():
        with pytest.raises(SensitivityError, match=f"cannot merge: {name} "):
            merge(a, other)


def test_merging_tables_of_pruning():
    a, b = (make_sensitivity(0, first_seed=seed, scores=("drift",)) for seed in (0, 10))
    merged = merge(a, replace(b, mean={key: 3 * table for key, table in b.mean.items()}))
    assert merged.prune_scores == ("drift",)
    np.testing.assert_allclose(merged.table("cosine", "prune.drift"), 2 * a.table("cosine", "prune.drift"), rtol=1e-6)
    np.testing.assert_array_equal(merged.region_prune_flops, a.region_prune_flops)
    with pytest.raises(SensitivityError, match=r"cannot merge: tables is .*prune\.drift"):
        merge(a, make_sensitivity(0, first_seed=10))
    with pytest.raises(SensitivityError, match="cannot merge: region_prune_flops differs"):
        merge(a, replace(b, region_prune_flops=b.region_prune_flops * 0.9))


def test_merging_refuses_a_seed_used_twice():
    with pytest.raises(SensitivityError, match=r"seeds \[1\] were used in both"):
        merge(make_sensitivity(0), make_sensitivity(0, first_seed=1))


def test_merging_keeps_both_versions_and_notes():
    a = make_sensitivity(0, versions={"torch": "2.11", "numpy": "2"}, notes={"device": "cpu"})
    b = make_sensitivity(0, versions={"torch": "2.13", "numpy": "2"}, first_seed=10)
    info = merge(a, b).info
    assert info.versions == {"torch": "2.11; 2.13", "numpy": "2"}
    assert info.notes == {"device": "cpu"}


def test_info_is_normalised():
    info = SensitivityInfo(
        "f",
        ("a",),
        2,
        1,
        1,
        1,
        (np.int64(3),),
        timesteps=np.array([2.0, 1.0], np.float32),
        scheduler_config={"a": (1, 2)},
    )
    assert info.scheduler_config == {"a": [1, 2]}
    assert (info.seeds, info.timesteps) == ((3,), (2.0, 1.0))
    assert isinstance(make_sensitivity(0), Sensitivity)


def test_prints_the_setting_and_its_tables_not_their_numbers():
    assert str(make_sensitivity(steps=6)) == (
        "<Sensitivity of 2 regions at 6 steps of DDIMScheduler, to age 5, over 4 samples: forecast1, forecast2, "
        "forecast3, reuse>"
    )
