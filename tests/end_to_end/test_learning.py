"""A backend with a goal instead of a plan: it observes, plans, switches between generations, and remembers."""

import itertools
import os
import threading

import pytest
import torch
from eager_reference import EagerReference
from small_denoiser import REGIONS, TOKENS, WIDTH, Denoiser, same
from tracing import statistics

import soda_compile
from soda_compile.acceleration.measurement_folder import MeasurementFolder
from soda_compile.learning.stored import MODEL

OBSERVED = 2
LONG, SHORT = 12, 8
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def graphs_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("SODA_COMPILE_LOWERING", "eager")
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "store"))


def learning(model, **options):
    asked = {"speedup": 2.0, "generations": OBSERVED, "max_interval": 4, "background": False, **options}
    asked["cache"] = os.environ["SODA_COMPILE_CACHE"]  # else what one test compiled might serve the next
    return torch.compile(model, backend="soda", options=asked, dynamic=False)


def inputs(steps=LONG, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, TOKENS, WIDTH, generator=generator)
    walk = torch.randn(steps, batch, TOKENS, WIDTH, generator=generator).mul(0.2).cumsum(0)
    return [(start + walk[i], torch.full((batch,), 1000.0 * (1 - i / steps))) for i in range(steps)]


def run(denoiser, given):
    with torch.no_grad():
        return torch.stack([denoiser(*call) for call in given])


def planned(model):
    """Calls by a plan, of each generation that had one; and all calls without."""
    counts = soda_compile.stats(model)["model"]
    return [each["calls"] for each in counts["generations"].values() if each["calls"]], sum(counts["misses"].values())


def by_hooks(model, given, tmp_path):
    """What the stored plan gives, by hooks."""
    (folder,) = [path for path in (tmp_path / "store").iterdir() if (path / "setting.json").is_file()]
    (plan,) = [soda_compile.Plan.load(path) for path in folder.glob("*.json") if "plan" in path.read_text()[:200]
               and path.name != "setting.json"]  # fmt: skip
    named = [{"x": x, "timestep": t} for x, t in given]
    return torch.stack([output for (output,) in EagerReference(model, REGIONS, plan).run(named)])


def test_generations_are_watched_observed_and_then_accelerated(tmp_path, capsys):
    model = Denoiser()
    denoiser = learning(model)
    for seed in range(1 + OBSERVED):
        same(run(denoiser, inputs(seed=seed)), run(model, inputs(seed=seed)))
    assert planned(model) == ([], (1 + OBSERVED) * LONG)
    found = run(denoiser, inputs(seed=9))
    assert planned(model) == ([LONG], (1 + OBSERVED) * LONG)
    torch.testing.assert_close(found, by_hooks(model, inputs(seed=9), tmp_path), **ROUNDING)
    assert not torch.equal(found, run(model, inputs(seed=9)))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("soda:")]
    assert [line.split(",")[0] for line in told] == [
        "soda: no plan is stored for this denoiser at 12 steps: 2 generations are observed",
        "soda: new plan for 12 steps",
        "soda: generations of 12 steps follow the plan from here on",
    ]


def test_the_next_process_is_fast_from_the_start(tmp_path):
    first = Denoiser()
    denoiser = learning(first)
    for seed in range(2 + OBSERVED):
        found = run(denoiser, inputs(seed=seed))
    again = Denoiser()
    same(run(learning(again), inputs(seed=1 + OBSERVED)), found)
    assert planned(again) == ([LONG], 0)
    other = Denoiser(seed=1)  # other weights were not measured
    run(learning(other), inputs())
    assert planned(other) == ([], LONG)


def test_another_goal_is_planned_from_what_was_measured():
    denoiser = learning(Denoiser())
    for seed in range(1 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    again = Denoiser()
    run(learning(again, speedup=1.5), inputs())
    assert planned(again) == ([LONG], 0)


@pytest.mark.parametrize("background", [True, False])
def test_the_switch_is_never_inside_a_generation(background):
    model = Denoiser()
    denoiser = learning(model, background=background)
    late = inputs(seed=5)
    with torch.no_grad():
        plain = [denoiser(*late[0])]  # begins before anything is known
        thread = threading.Thread(target=lambda: [run(denoiser, inputs(seed=seed)) for seed in range(1 + OBSERVED)])
        thread.start()
        thread.join()
        wait()
        plain += [denoiser(*call) for call in late[1:]]
    same(torch.stack(plain), run(model, late))
    assert planned(model)[0] == []
    run(denoiser, late)
    assert planned(model)[0] == [LONG]


def wait():
    for thread in threading.enumerate():
        if thread.name == "soda-compile":
            thread.join()


def test_generations_go_on_while_it_compiles(monkeypatch):
    from soda_compile.learning import denoiser as module

    model, go_on = Denoiser(), threading.Event()
    plan_for = module.plan_for
    monkeypatch.setattr(module, "plan_for", lambda *arguments: go_on.wait(60) and plan_for(*arguments))
    denoiser = learning(model, background=True)
    for seed in range(3 + OBSERVED):
        same(run(denoiser, inputs(seed=seed)), run(model, inputs(seed=seed)))
    go_on.set()
    wait()
    run(denoiser, inputs())
    assert planned(model)[0] == [LONG]


def test_another_number_of_steps_is_learned_too(caplog):
    model = Denoiser()
    denoiser = learning(model)
    for seed in range(2 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    run(denoiser, inputs(SHORT))  # is found out at its second step
    for seed in range(1 + OBSERVED):
        same(run(denoiser, inputs(SHORT, seed)), run(model, inputs(SHORT, seed)))
    run(denoiser, inputs(SHORT))
    run(denoiser, inputs(LONG))  # expected to be short
    run(denoiser, inputs(LONG))  # watched
    run(denoiser, inputs(LONG))
    assert planned(model)[0] == [LONG, 1, SHORT, 1, LONG]
    assert not [record for record in caplog.records if "Use the same noise scheduler" in record.getMessage()]
    assert set(soda_compile.stats(model)["model"]["misses"]) == {"learning"}


def test_timesteps_that_are_told_need_not_be_found_out():
    model = Denoiser()
    denoiser = learning(model)
    for steps, seed in itertools.product((LONG, SHORT), range(3 + OBSERVED)):
        run(denoiser, inputs(steps, seed))
    before = len(planned(model)[0])
    for steps in (LONG, SHORT, LONG):
        with soda_compile.trajectory(model, timesteps=[float(t[0]) for _, t in inputs(steps)]):
            run(denoiser, inputs(steps))
    assert planned(model)[0][before:] == [LONG, SHORT, LONG]


def test_generations_of_many_threads_are_observed_one_at_a_time():
    model = Denoiser()
    denoiser = learning(model, background=True)
    run(denoiser, inputs())
    wrong = []

    def serve(number):
        for seed in range(6):
            with soda_compile.trajectory(model):
                given = inputs(seed=number * 10 + seed)
                found = run(denoiser, given)
            if not planned(model)[0] and not torch.equal(found, run(model, given)):
                wrong.append((number, seed))

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait()
    assert not wrong
    with soda_compile.trajectory(model):
        run(denoiser, inputs())
    assert planned(model)[0][-1] == LONG


def test_a_generation_that_is_interrupted_is_not_counted():
    model = Denoiser()
    denoiser = learning(model)
    for length in (LONG, 5, LONG, 7, LONG, 3, LONG):
        given = inputs()[:length]
        same(run(denoiser, given), run(model, given))
    for seed in range(3):
        run(denoiser, inputs(seed=seed))
    assert planned(model)[0][-1] == LONG
    (folder,) = stored()
    assert folder.measurement().sensitivities[MODEL].info.steps == LONG


def stored():
    from soda_compile.acceleration.plan_store import PlanStore
    from soda_compile.storage.cache import cache_folder

    return list(PlanStore(cache_folder()).folders())


def test_guidance_in_a_second_call_is_told_by_the_timestep():
    model = Denoiser()
    denoiser = learning(model)

    def guided(run_one, seed):
        with torch.no_grad():
            return torch.stack([torch.stack([run_one(x, t), run_one(0.5 * x, t)]) for x, t in inputs(seed=seed)])

    for seed in range(1 + OBSERVED):
        same(guided(denoiser, seed), guided(model, seed))
    guided(denoiser, 7)
    assert planned(model)[0] == [2 * LONG]
    (folder,) = stored()
    assert folder.measurement().sensitivities[MODEL].info.calls_per_step == 2


def test_other_sizes_follow_the_plan_too():
    model = Denoiser()
    denoiser = learning(model)
    for seed in range(1 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    run(denoiser, inputs(batch=3))
    assert planned(model)[0] == [LONG]


def test_a_goal_out_of_reach_is_told_once_and_generations_go_on(caplog):
    model = Denoiser()
    denoiser = learning(model, speedup=500.0)
    for seed in range(3 + OBSERVED):
        same(run(denoiser, inputs(seed=seed)), run(model, inputs(seed=seed)))
    told = [record.message for record in caplog.records if "out of reach" in record.message]
    assert len(told) == 1
    assert told[0].startswith("generations of 12 steps stay unaccelerated: a speedup of 500 by FLOPs is out of reach")


def test_a_latency_is_planned_from_times_measured_on_the_side():
    model = Denoiser()
    denoiser = learning(model, speedup=None, latency_ms=1e6)
    for seed in range(2 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    assert planned(model)[0] == [LONG]


def test_what_cannot_be_kept_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "file"))
    model = Denoiser()
    denoiser = learning(model)
    for seed in range(2 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    assert planned(model)[0] == [LONG]


def test_statistics_say_what_it_does():
    model = Denoiser()
    denoiser = learning(model)
    run(denoiser, inputs())
    run(denoiser, inputs())
    assert statistics(model).reasons["learning"] == "generations are measured, to plan for them"
    assert "learning" in str(soda_compile.stats(model))


def test_without_parameters_nothing_is_learned(caplog):
    denoiser = learning(torch.nn.GELU())
    x = torch.randn(2, 3)
    torch.testing.assert_close(denoiser(x), torch.nn.functional.gelu(x))
    assert any("no parameters" in record.message for record in caplog.records)


def test_a_contradiction_is_told_before_anything_is_compiled():
    with pytest.raises(soda_compile.OptionError, match="exactly one of speedup"):
        learning(Denoiser(), quality="fast")(*inputs()[0])


def test_the_folder_of_a_measurement_is_one_of_the_store():
    denoiser = learning(Denoiser())
    for seed in range(1 + OBSERVED):
        run(denoiser, inputs(seed=seed))
    (folder,) = stored()
    assert isinstance(folder, MeasurementFolder)
    assert folder.about().setting.timesteps[0] == 1000.0
