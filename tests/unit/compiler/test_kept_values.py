"""Rounded slots and kept outputs: what they take, what they refuse, and where else they are followed."""

import math
from typing import Any

import package_tools
import pytest
import small_denoiser as small
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

import soda_compile
from soda_compile.compiler.bind import require_slot_dtype
from soda_compile.compiler.kept_values import with_slots
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.whole_stack import stack_region
from soda_compile.errors import OptionError, PlanError
from soda_compile.ir.slot_formats import FORMATS, stored_bytes
from soda_compile.ir.structure import Region
from soda_compile.plans.fitted_weights import OUTPUT, FittedWeights
from soda_compile.plans.plan import Plan
from soda_compile.plans.watched_region import WatchedRegion

ROW = "CCr1C"
OUTPUTS = (FittedWeights(2, OUTPUT, (0.9, 0.3, -0.1)), FittedWeights(3, OUTPUT, (1.2, -0.2)))
BYTES = small.TOKENS * small.WIDTH * 4 * 2  # two samples

pytestmark = pytest.mark.usefixtures("eager")


def plan(row: str = ROW, **changes: Any) -> Plan:
    return small.make_plan([row] * len(small.REGIONS), **changes)


@pytest.mark.parametrize(("slot_dtype", "share"), [("bfloat16", 2), ("int8", 4), ("float8", 4)])
def test_rounded_slots_are_smaller(slot_dtype: Any, share: int) -> None:
    structure = soda_compile.inspect(small.Denoiser(), *small.calls()[0])
    stack = stack_region(structure)
    assert stack is not None
    kept: tuple[tuple[Any, tuple[Region, ...]], ...] = (("region", structure.regions), ("stack", (stack,)))
    for slots, regions in kept:
        cuts = [cut for region in regions for cut in region.cuts]
        rows = 0 if slot_dtype == "bfloat16" else sum(math.prod(cut.shape[:-1]) for cut in cuts)
        wanted = sum(cut.memory_bytes for cut in cuts) // share + 4 * rows
        assert sum(stored_bytes(region, FORMATS[slot_dtype]) for region in regions) == wanted
        program = build_program(structure, plan(slot_dtype=slot_dtype, slots=slots), Lowering(target="eager"))
        assert program.slot_memory_bytes == 2 * wanted


def test_float8_is_refused_where_a_gpu_cannot_convert_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1"))
    cuda = torch.device("cuda")
    with pytest.raises(PlanError, match=r"NVIDIA A100 has compute capability 8\.0.* take slot_dtype='int8'"):
        require_slot_dtype(plan(slot_dtype="float8"), cuda)
    require_slot_dtype(plan(slot_dtype="int8"), cuda)
    require_slot_dtype(plan(slot_dtype="float8"), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    require_slot_dtype(plan(slot_dtype="float8"), cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.0"))
    require_slot_dtype(plan(slot_dtype="float8"), cuda)


def test_kept_outputs_cost_no_call_of_their_own() -> None:
    structure = soda_compile.inspect(small.Denoiser(), *small.calls()[0])
    made = build_program(structure, plan(weights=OUTPUTS), Lowering(target="eager"))
    without = build_program(structure, plan(), Lowering(target="eager"))
    assert made.slot_memory_bytes - without.slot_memory_bytes == 2 * BYTES
    assert list(map(len, made.steps)) == list(map(len, without.steps))
    assert made.flops == without.flops


def test_a_plan_without_weights_for_the_output_stays_as_it_is() -> None:
    structure = soda_compile.inspect(small.Denoiser(), *small.calls()[0])
    assert with_slots(structure, plan()) == (structure, plan())


class Two(small.Denoiser):
    def forward(self, x: Tensor, timestep: Tensor) -> Any:
        output = super().forward(x, timestep)
        return output, output * 2


def test_several_outputs_are_refused() -> None:
    structure = soda_compile.inspect(Two(), *small.calls()[0])
    with pytest.raises(PlanError, match="weights for the output, but this denoiser returns 2 tensors"):
        with_slots(structure, plan(weights=OUTPUTS))


def test_what_is_rounded_is_not_watched() -> None:
    made = plan(slot_dtype="int8")
    assert Plan.from_json(made.to_json()) == made
    watched = WatchedRegion(next(iter(small.REGIONS)), ((4, 0.1),))
    assert plan("CCr1C1", watched=watched).watched == watched
    with pytest.raises(PlanError, match="slot_dtype is 'int8', and what is rounded is not compared at anchors"):
        plan("CCr1C1", slot_dtype="int8", watched=watched)


@pytest.mark.parametrize("changes", [{"weights": OUTPUTS}, {"slot_dtype": "int8"}, {"slot_dtype": "float8"}])
def test_generations_share_a_batch(changes: dict[str, Any]) -> None:
    model = small.Denoiser()
    compiled = small.compiled(small.Denoiser(), plan=plan(**changes))
    small.check_shared_batch(model, plan(**changes), lambda calls: small.trajectory(compiled, model, calls))


def test_float8_is_refused_where_a_package_cannot_hold_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1"))
    model, calls = package_tools.Denoiser(), package_tools.trajectory(return_dict=False)
    made = package_tools.make_plan(slot_dtype="float8")
    with pytest.raises(OptionError, match=r"from torch 2\.13 on, and this is 2\.12\.1; take slot_dtype='int8'"):
        soda_compile.export(model, calls[0], plan=made, path=tmp_path / "kept.soda.pt2")


@pytest.mark.thorough  # tests/end_to_end/test_packages.py has values of regions, rounded, and kept outputs
def test_a_package_follows_all_of_it(tmp_path: Any) -> None:
    with package_tools.eager_subgraphs():
        model, calls = package_tools.Denoiser(), package_tools.trajectory(return_dict=False)
        made = package_tools.make_plan(slots="stack", slot_dtype="int8", weights=OUTPUTS[:1])
        path = soda_compile.export(model, calls[0], plan=made, path=tmp_path / "kept.soda.pt2")
        ours = package_tools.outputs(soda_compile.load(path), calls)
        theirs = package_tools.outputs(package_tools.jit(model, made), calls)
        plain = package_tools.outputs(package_tools.jit(model, package_tools.make_plan()), calls)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)
        assert not torch.equal(theirs[2], plain[2])
