"""One compiled package of all that a plan can ask for: against the JIT, from the command line, and from C++."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from package_tools import Calls
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export.pt2_archive import is_pt2_package
from typer.testing import CliRunner

import soda_compile
from soda_compile.cli import app
from soda_compile.ir.structure import Structure
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.plans.pruning import Pruning

ROOT = Path(__file__).parents[2]


class Mixed(toy.Denoiser):
    """The small denoiser with plain arguments."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Any:  # type: ignore[override]
        return super().forward(hidden_states, timestep, return_dict=False)


def mixed_calls(batch: int = 2) -> Calls:
    names = ("hidden_states", "timestep")
    return [{name: toy.inputs(step, batch)[name] for name in names} for step in range(3)]


@pytest.fixture(scope="module")
def mixed() -> tuple[torch.nn.Module, Plan]:
    torch.compiler.reset()
    model = Mixed()
    structure = soda_compile.inspect(model, **mixed_calls()[0])
    return model, plan_with("float8" if torch.__version__ >= "2.13" else "int8", structure)


def plan_with(slot_dtype: SlotDtype, structure: Structure) -> Plan:
    """All actions, fitted weights, kept outputs and rounded slots."""
    weights = FittedWeights(2, 0, (0.9,)), FittedWeights(2, 1, (1.7, -0.6)), FittedWeights(2, OUTPUT, (1.1, -0.2))
    settings = {"timesteps": toy.TIMESTEPS[:3], "timestep_input": "timestep", "pruning": Pruning("drift")}
    return toy.structure_plan(["CC1", "Cpr"], structure, **settings, weights=weights, slot_dtype=slot_dtype)


@pytest.fixture(scope="module")
def package(mixed: tuple[torch.nn.Module, Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, plan = mixed
    path = tmp_path_factory.mktemp("mixed") / "mixed.soda.pt2"
    return soda_compile.export(model, mixed_calls()[0], plan=plan, path=path)


@pytest.fixture(scope="module")
def wanted(mixed: tuple[torch.nn.Module, Plan]) -> list[Tensor]:
    model, plan = mixed
    return toy.outputs(toy.jit(model, plan), mixed_calls())


def test_every_action_gives_what_the_jit_gives(package: Path, wanted: list[Tensor]) -> None:
    denoiser = soda_compile.load(package)
    for _ in range(2):
        for ours, theirs in zip(toy.outputs(denoiser, mixed_calls()), wanted, strict=True):
            assert torch.equal(ours, theirs)
    with soda_compile.trajectory(denoiser, manual=True) as clock:
        for call, theirs in zip(mixed_calls(), wanted, strict=True):
            for _ in range(2):  # two branches of guidance, each with slots of its own
                assert torch.equal(toy.outputs(denoiser, [call])[0], theirs)
            clock.advance()


def grid_calls(batch: int, rows: int, columns: int) -> Calls:
    return [toy.grid_inputs(step, batch, rows, columns) for step in range(3)]


@pytest.fixture(scope="module")
def grid() -> tuple[torch.nn.Module, Plan]:
    torch.compiler.reset()
    model = toy.Grid()
    structure = soda_compile.inspect(model, **grid_calls(2, 4, 3)[0])
    return model, plan_with("int8", structure)


@pytest.fixture(scope="module")
def sized(grid: tuple[torch.nn.Module, Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For any batch and resolution, with tokens that are pruned."""
    model, plan = grid
    path = tmp_path_factory.mktemp("sized") / "sized.soda.pt2"
    batch, half = torch.export.Dim("batch", min=2, max=6), torch.export.Dim("half", min=2, max=9)
    columns = torch.export.Dim("columns", min=3, max=7)
    shapes = {"hidden_states": {0: batch, 2: 2 * half, 3: columns}, "timestep": {0: batch}}
    return soda_compile.export(model, grid_calls(2, 4, 3)[0], plan=plan, path=path, dynamic_shapes=shapes)


@pytest.mark.thorough  # tests/unit/packages has sizes too, without Inductor
@pytest.mark.parametrize("sizes", [(2, 4, 3), (6, 18, 7)])
def test_one_program_for_many_sizes(sized: Path, grid: tuple[torch.nn.Module, Plan], sizes: tuple[int, ...]) -> None:
    denoiser = soda_compile.load(sized)
    torch.compiler.reset()
    calls = grid_calls(*sizes)
    for ours, theirs in zip(toy.outputs(denoiser, calls), toy.outputs(toy.jit(*grid), calls), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_torch_reads_the_package_as_its_own(package: Path) -> None:
    assert is_pt2_package(str(package))


def test_the_command_line_shows_and_runs_it(package: Path) -> None:
    shown = CliRunner().invoke(app, ["info", str(package)])
    assert shown.exit_code == 0, shown.output
    for text in ("Mixed:", "hidden_states float32[2, 4, 8]", "inside, once", "checksums verified", "CC1"):
        assert text in shown.stdout
    ran = CliRunner().invoke(app, ["run", str(package), "--rounds", "1"])
    assert ran.exit_code == 0, ran.output
    assert "ms for 3 steps" in ran.stdout


QUIET: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "timeout": 600}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in C++."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("build")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    subprocess.run(["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", str(build), prefix], **QUIET)
    subprocess.run(["cmake", "--build", str(build)], **QUIET)
    return build / "soda_run"


def test_cpp_gives_what_python_gives(program: Path, package: Path, wanted: list[Tensor], tmp_path: Path) -> None:
    save_file(toy.tensors(mixed_calls()), tmp_path / "in.safetensors")
    command = [str(program), str(package), str(tmp_path / "in.safetensors")]
    done = subprocess.run([*command, str(tmp_path / "out.safetensors")], **QUIET)
    assert "3 steps in" in done.stdout
    results = load_file(tmp_path / "out.safetensors")
    for step, theirs in enumerate(wanted):
        assert torch.equal(results[f"{step}/0"], theirs)
    failed = subprocess.run([*command[:2], "nowhere", "out"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (1, "soda_run: cannot read nowhere\n")


@pytest.mark.thorough
def test_cpp_takes_many_sizes(program: Path, sized: Path, tmp_path: Path) -> None:
    denoiser, given = soda_compile.load(sized), tmp_path / "sized.safetensors"
    command = [str(program), str(sized), str(given)]
    for sizes in ((2, 4, 3), (5, 10, 7)):
        calls = grid_calls(*sizes)
        save_file(toy.tensors(calls), given)
        subprocess.run([*command, str(tmp_path / "out.safetensors")], **QUIET)
        results = load_file(tmp_path / "out.safetensors")
        for step, theirs in enumerate(toy.outputs(denoiser, calls)):
            assert torch.equal(results[f"{step}/0"], theirs)
    for step in (0, 1):
        lacking = toy.tensors(grid_calls(2, 4, 3))
        del lacking[f"{step}/timestep"]
        save_file(lacking, given)
        failed = subprocess.run([*command, "out"], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stderr) == (1, f"soda_run: the inputs lack timestep for step {step}\n")
    save_file(toy.tensors(grid_calls(7, 4, 3)), given)
    failed = subprocess.run([*command, "out"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "no program for inputs of these sizes: hidden_states [7, 8, 4, 3]" in failed.stderr
