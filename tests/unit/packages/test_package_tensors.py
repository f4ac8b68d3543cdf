"""Tensors, arguments and results in their file forms."""

import inspect
import json
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from safetensors.torch import load

import soda_compile
from soda_compile import PackageError
from soda_compile.packages.arguments import (
    Record,
    copy_tensors,
    decode_result,
    decode_signature,
    encode_result,
    encode_signature,
    flatten,
)
from soda_compile.packages.environment import environment, obstacle
from soda_compile.packages.manifest import WeightEntry
from soda_compile.packages.tensors import laid_out, pack, unpack
from soda_compile.packages.weights import bind

TENSORS = {
    "odd": torch.arange(7, dtype=torch.int8),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "bfloat16": torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "float8": torch.ones(64).to(torch.float8_e4m3fn),
    "complex": torch.ones(3, dtype=torch.complex64) * 1j,
    "flags": torch.tensor([True, False]),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
}


def test_tensors_come_back_as_they_were() -> None:
    data = b"".join(map(bytes, pack(TENSORS)))
    for tensors in (unpack(memoryview(bytearray(data))), load(data)):
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype
            assert tensors[name].shape == tensor.shape
            assert bytes(tensors[name].contiguous().reshape(-1).view(torch.uint8)) == bytes(
                tensor.contiguous().reshape(-1).view(torch.uint8)
            )


def test_a_dtype_without_a_file_form_is_refused() -> None:
    with pytest.raises(PackageError, match="tensor x has dtype complex128"):
        list(pack({"x": torch.ones(1, dtype=torch.complex128)}))


def test_weights_get_the_layout_that_the_code_wants() -> None:
    wanted = torch.arange(12.0).reshape(3, 4).t()
    entry = WeightEntry(shape=[4, 3], stride=[1, 4], dtype="float32", kind="parameter", aliases=["tied"])
    bound = bind({"w": entry}, {"tied": wanted.contiguous()}, torch.device("cpu"), "weights")["w"]
    assert bound.stride() == (1, 4)
    assert torch.equal(bound, wanted)
    assert laid_out(bound, (1, 4), bound.device) is bound


def test_weights_keep_their_layout_through_a_package(tmp_path: Path) -> None:
    model = toy.Denoiser()
    model.out.weight = torch.nn.Parameter(model.out.weight.detach().t().contiguous().t())
    model.out.bias = model.blocks[0].ff[2].bias  # one tensor under two names
    with toy.eager_subgraphs():
        loaded = soda_compile.load(toy.export(tmp_path / "x.soda.pt2", model))
        torch.testing.assert_close(
            toy.generate(loaded, toy.trajectory())[:2], toy.generate(model, toy.trajectory())[:2]
        )
    assert loaded.get_parameter("out.weight").stride() == (1, toy.WIDTH)
    assert "blocks.0.ff.2.bias" in loaded.state_dict()


def test_arguments_are_leaves_by_path() -> None:
    nested = {"a": 1, "b": {"c": [2, {"d": None}], "e": {}}, "f": (), "g": ("x",)}
    assert flatten(nested) == {"a": 1, "b.c.0": 2, "b.c.1.d": None, "b.e": {}, "f": (), "g.0": "x"}


def test_copies_are_new_tensors_of_dense_layout() -> None:
    expanded, transposed = torch.ones(1).expand(3), torch.ones(2, 3).t()
    copy = copy_tensors({"a": [expanded, transposed], "b": 1})
    assert copy["a"][0].stride() == (1,)
    assert copy["a"][1].stride() == transposed.stride()
    assert copy["a"][1] is not transposed


def test_results_keep_their_form() -> None:
    tensors = [torch.ones(1), torch.zeros(1)]
    place = {id(tensor): index for index, tensor in enumerate(tensors)}
    for value in (tensors[0], tuple(tensors), [tensors[1], (None, tensors[0])]):
        form = json.loads(json.dumps(encode_result(value, lambda tensor: place[id(tensor)])))
        assert decode_result(form, tensors) == value
    form = encode_result(toy.Output(tensors[1]), lambda tensor: place[id(tensor)])
    made = decode_result(form, tensors)
    assert isinstance(made, Record)
    assert made.sample is tensors[1]
    with pytest.raises(PackageError, match="returns a str"):
        encode_result(("x",), lambda tensor: 0)
    with pytest.raises(PackageError, match="which is unknown"):
        decode_result({"set": []}, [])


def test_signatures_come_back() -> None:
    def forward(a: Any, /, b: Any, *rest: Any, c: int = 3, d: Any = None, **more: Any) -> None: ...

    entries = json.loads(json.dumps(encode_signature(inspect.signature(forward))))
    rebuilt = decode_signature(entries)
    assert [(p.name, p.kind, p.default) for p in rebuilt.parameters.values()] == [
        (p.name, p.kind, p.default) for p in inspect.signature(forward).parameters.values()
    ]


def test_a_richer_cpu_is_no_obstacle() -> None:
    here = environment("cpu")
    assert obstacle(here, here) is None
    assert obstacle(here, here.model_copy(update={"instructions": [*here.instructions, "avx4096"]})) is None
