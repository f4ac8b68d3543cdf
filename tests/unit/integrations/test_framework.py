"""A framework that is nothing like diffusers is calibrated and profiled through the protocol alone."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from plain_models import DitBlock, Listed, inputs
from torch import nn
from tracing import eager_graphs

import soda_compile
from soda_compile.capture.forward import Holder
from soda_compile.errors import OptionError, SensitivityError, TrajectoryError
from soda_compile.integrations.base import FRAMEWORKS, Framework, Stage, denoiser_of, framework_of
from soda_compile.measure.calibration import calibrate_denoisers
from soda_compile.runtime.clock import Clock

STEPS, INTERVAL = 5, 2


class Solver:
    """Draws times when it is wound up, and is moved on by one of them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def wind_up(self, steps: int) -> None:
        self.times = [1 - step / steps for step in range(steps)]

    def move(self) -> None:
        """Nothing to do: the models' inputs do not depend on their outputs here."""


class Studio:
    """A pipeline: models in a list of pairs, and their solver."""

    def __init__(self, *models: nn.Module) -> None:
        self.pairs = [(f"net{number}", model) for number, model in enumerate(models)]
        self.solver = Solver()

    def make(self, seed: int) -> None:
        """One generation; the models share its steps evenly, one after another."""
        self.solver.wind_up(STEPS)
        for step in range(STEPS):
            _, model = self.pairs[step * len(self.pairs) // STEPS]
            model.entry(**varied(step, seed))  # type: ignore[operator]
            self.solver.move()


def varied(step: int, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of a step; the sample is scaled by the seed."""
    made = inputs(step, STEPS)
    return {**made, "x": made["x"] * (1 + 0.2 * seed)}


@dataclass(eq=False)
class SolverHook:
    solver: Solver
    clock: Clock = field(default_factory=Clock)
    name: str = "Solver"

    @property
    def config(self) -> dict[str, Any]:
        return {"order": 1}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.config).encode()).hexdigest()[:8]

    @property
    def timesteps(self) -> list[float]:
        return list(self.solver.times)

    def step_weights(self) -> np.ndarray:
        return np.arange(1.0, 1 + len(self.solver.times))

    def noise_levels(self) -> list[float]:
        raise SensitivityError("a solver knows no noise")

    def attach(self) -> "SolverHook":
        def wind_up(steps: int) -> None:
            Solver.wind_up(self.solver, steps)
            self.clock.begin(steps)

        self.solver.wind_up, self.solver.move = wind_up, self.clock.advance  # type: ignore[method-assign]
        return self

    def detach(self) -> None:
        del self.solver.wind_up, self.solver.move


@dataclass
class Toy:
    """Keeps a forward under another name too, and notes the calls that it held something around."""

    name: str = "toy"
    held: list[nn.Module] = field(default_factory=list)

    def hosts(self, value: Any) -> bool:
        return isinstance(value, Studio | Solver)

    def is_pipeline(self, value: Any) -> bool:
        return isinstance(value, Studio)

    def denoisers_of(self, pipe: Studio) -> dict[str, nn.Module]:
        return dict(pipe.pairs)

    def sampler_of(self, pipe: Studio) -> Solver:
        return pipe.solver

    def attach(self, sampler: Solver) -> SolverHook:
        return SolverHook(sampler).attach()

    def around_calls(self, module: nn.Module) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def around() -> Iterator[None]:
            self.held.append(module)
            yield

        return around

    def name_branches(self, module: nn.Module, clock: Clock) -> Callable[[], None]:
        return lambda: None

    def holders(self, module: nn.Module) -> tuple[Holder, ...]:
        return (Holder(module, "entry"),)


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """Runs graphs node by node: what is asked of a framework does not depend on how they are compiled."""
    with eager_graphs():
        yield


@pytest.fixture
def models() -> list[nn.Module]:
    """Two equal models that are called by another name than forward."""
    torch.manual_seed(0)
    made = [Listed(DitBlock).eval()]
    made.append(copy.deepcopy(made[0]))
    for model in made:
        model.entry = model.forward
    return made


def test_a_pipeline_is_calibrated_as_the_same_steps_by_hand(models: list[nn.Module]):
    pipe, toy = Studio(models[0]), Toy()
    options = {"generations": 2, "max_interval": INTERVAL}
    found = soda_compile.calibrate(pipe, pipe.make, framework=toy, **options)

    def by_hand(seed: int) -> None:
        for step in range(STEPS):
            models[1](**varied(step, seed))

    plain = soda_compile.calibrate(models[1], by_hand, **options)
    for name, table in plain.arrays().items():
        if name != "step_weights":
            np.testing.assert_array_equal(found.arrays()[name], table, err_msg=name)
    np.testing.assert_array_equal(found.step_weights, [1, 2, 3, 4, 5])
    assert (found.info.scheduler, found.info.scheduler_config) == ("Solver", {"order": 1})
    assert found.info.scheduler_digest == SolverHook(pipe.solver).digest
    assert found.info.timesteps == pytest.approx(pipe.solver.times)
    assert (plain.info.scheduler, plain.info.scheduler_digest) == (None, None)
    assert soda_compile.plan(found, speedup=1.5).scheduler == "Solver"
    assert toy.held == [models[0]] * (2 * STEPS)
    assert models[0].entry.__func__ is Listed.forward, "a replaced forward was left behind"
    assert vars(pipe.solver).keys() == {"times"}, "a hook was left behind"


def test_a_loop_of_ones_own_follows_the_sampler(models: list[nn.Module]):
    """Two calls in a step, which only the sampler's steps can tell apart."""
    pipe, model = Studio(models[0]), models[0]

    def loop(seed: int) -> None:
        pipe.solver.wind_up(STEPS)
        for step in range(STEPS):
            model.entry(**varied(step, seed))
            model.entry(**varied(step, seed + 1))
            pipe.solver.move()

    found = soda_compile.calibrate(model, loop, scheduler=pipe.solver, framework=Toy(), generations=1)
    assert (found.info.steps, found.info.calls_per_step, found.info.scheduler) == (STEPS, 2, "Solver")


def test_each_denoiser_is_measured_over_its_part_of_the_schedule(models: list[nn.Module]):
    pipe = Studio(*models)
    found = calibrate_denoisers(pipe, pipe.make, framework=Toy(), generations=1, max_interval=INTERVAL)
    assert {name: each.info.steps for name, each in found.items()} == {"net0": 3, "net1": 2}
    assert found["net1"].info.notes["first_step"] == "3"
    assert found["net1"].info.timesteps == pytest.approx(pipe.solver.times[3:])
    np.testing.assert_array_equal(found["net1"].step_weights, [4, 5])
    with pytest.raises(OptionError, match=r"Studio has 2 denoisers \(net0, net1\).*speedup"):
        soda_compile.calibrate(pipe, pipe.make, framework=Toy())


def test_a_pipeline_is_profiled(models: list[nn.Module], tmp_path: Path):
    toy, call = Toy(), inputs()
    models[0].forward = lambda **arguments: models[0].entry(**arguments)
    made = soda_compile.profile(Studio(models[0]), call, framework=toy, rounds=1, folder=tmp_path)
    assert set(map(id, toy.held)) == {id(models[0])}, "calls were made without what the framework holds around them"
    plain = soda_compile.profile(models[1], call, rounds=1, folder=tmp_path)
    assert (made.regions, made.key) == (plain.regions, plain.key)
    assert models[0].entry.__func__ is Listed.forward


def test_a_stage_needs_a_trajectory_and_its_own_part():
    hook = SolverHook(Solver())
    stage = Stage(hook, Clock(), first=2)
    with pytest.raises(TrajectoryError, match="Solver of the pipeline has not set its timesteps"):
        stage.place()
    hook.clock.begin(STEPS)
    with pytest.raises(TrajectoryError, match="at step 0 of the schedule, but its plan starts at step 2"):
        stage.place()
    hook.clock.step = 3
    stage.place()
    assert stage.clock.step == 1


def hooked() -> nn.Module:
    """A plain module that diffusers offloads a part of."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    diffusers.hooks.HookRegistry.check_if_exists_or_initialize(model[1])
    return model


def accelerated() -> nn.Module:
    """A plain module that accelerate wraps."""
    model = nn.Linear(2, 2)
    model._old_forward = model.forward
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (diffusers.DDIMScheduler, "diffusers"),
        (lambda: diffusers.DiTPipeline(None, None, None), None),
        (lambda: diffusers.DiTPipeline(nn.Linear(2, 2), None, diffusers.DDIMScheduler()), "diffusers"),
        (lambda: diffusers.AutoencoderKL(block_out_channels=(32,)), "diffusers"),
        (hooked, "diffusers"),
        (accelerated, "diffusers"),
        (lambda: nn.Linear(2, 2), None),
        (lambda: None, None),
    ],
)
def test_the_framework_that_hosts_a_value_is_found(make: Callable[[], Any], name: str | None):
    found = framework_of(make())
    assert (found and found.name) == name
    assert found is None or found in FRAMEWORKS


def test_what_no_framework_hosts_is_refused_with_the_way_out():
    toy: Framework = Toy()
    assert denoiser_of(Studio(linear := nn.Linear(2, 2)), toy) is linear
    with pytest.raises(OptionError, match=r"model is a Studio; pass a torch.nn.Module or a diffusers pipeline"):
        soda_compile.calibrate(Studio(), print)
    with pytest.raises(OptionError, match=r"scheduler is a Solver, which no framework.*framework=.*scheduler=None"):
        soda_compile.calibrate(nn.Linear(2, 2), print, scheduler=Solver())
