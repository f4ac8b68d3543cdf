"""The compiler finds the regions of seven diffusers families that were written down by hand."""

import re

import diffusers
import pytest
from families import FAMILIES, HEAD_DIM, HEADS, Family, structure_of
from thorough import gated
from torch import fx

import soda_compile
from soda_compile.ir.aten_operators import is_heavy
from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import BlockCall, Region

names = pytest.mark.parametrize("name", FAMILIES)


def expected_kind(region: str) -> str:
    last = region.rpartition(".")[2]
    if last.startswith("attn"):
        return "attention"
    return "mlp" if last.startswith("ff") else "attention+mlp"


def module_of(node: fx.Node) -> str:
    """Path inside its block of the module that made the tensor, looking through casts, views and slices."""
    while not is_heavy(node):
        node = node.all_input_nodes[0]
    return re.sub(r"^\w+\.\d+\.", "", node.meta["paths"][-1])


def cut_modules(call: BlockCall, region: Region) -> set[str]:
    graph = call.block.module.graph
    return {f"{call.name}.{module_of(find_node(graph, cut.node))}" for cut in region.cuts}


@names
def test_the_regions_are_those_written_by_hand_in_the_order_in_which_they_run(name: str):
    assert structure_of(name).region_names == tuple(FAMILIES[name].regions)


@names
def test_the_kinds_are_right(name: str):
    found = structure_of(name)
    kinds = {region: regions.kind for region, regions in zip(found.region_names, found.regions, strict=True)}
    assert kinds == {region: expected_kind(region) for region in FAMILIES[name].regions}


@names
def test_the_cuts_are_the_outputs_of_the_modules_written_by_hand(name: str):
    found = {
        full: cut_modules(call, region)
        for call in structure_of(name).calls
        for full, region in zip(call.region_names, call.block.regions, strict=True)
    }
    assert found == {full: set(region.cuts) for full, region in FAMILIES[name].regions.items()}


@names
def test_reusing_everything_saves_most_of_the_work_of_the_blocks(name: str):
    found = structure_of(name)
    blocks = [call for call in found.calls if not call.name.startswith("(")]
    saved = sum(region.flops for region in found.regions)
    assert 0.85 * sum(call.block.flops for call in blocks) < saved < found.flops


@names
def test_no_work_on_the_stream_inside_a_block_is_left_over(name: str):
    for call in structure_of(name).calls:
        if not call.name.startswith("("):
            assert [note.reason for note in call.block.notes if "conditioning" not in note.reason] == []


@pytest.mark.parametrize("name", gated("dit", others=["sd3", "latte"]))
def test_the_fingerprint_does_not_depend_on_the_batch_size(name: str):
    assert structure_of(name, batch=1).fingerprint == structure_of(name).fingerprint


def test_fingerprints_tell_models_apart():
    wider = Family(
        "wider",
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=2 * HEAD_DIM,
            in_channels=4,
            num_layers=3,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        *(getattr(FAMILIES["dit"], name) for name in ("sample_shape", "timestep", "conditioning", "regions")),
    )
    wide = soda_compile.inspect(wider.build(), **wider.inputs(0, 4))
    assert wide.region_names == structure_of("dit").region_names
    known = [structure_of(name).fingerprint for name in FAMILIES]
    assert len({wide.fingerprint, *known}) == len(FAMILIES) + 1
