import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from planner_tables import make_sensitivity
from safetensors.numpy import load_file, save, save_file

from soda_compile.errors import SensitivityError
from soda_compile.plans import sensitivity_file
from soda_compile.plans.sensitivity import Sensitivity, merge
from soda_compile.storage import files


def small(**info):
    sensitivity = make_sensitivity(0, steps=2, regions=1, width=1, **info)
    mean = {"cosine.reuse": sensitivity.mean["cosine.reuse"]}
    return replace(sensitivity, mean=mean, variance=mean)


def parts(sensitivity):
    header = {"info": asdict(sensitivity.info), "total_flops": sensitivity.total_flops}
    single = {"step_weights": sensitivity.step_weights, "region_flops": sensitivity.region_flops}
    if sensitivity.region_prune_flops is not None:
        single["region_prune_flops"] = sensitivity.region_prune_flops
    return json.loads(json.dumps(header)), {**sensitivity.arrays(), **single}


def assert_same(a, b):
    assert a.info == b.info
    assert a.total_flops == b.total_flops
    (_, arrays_a), (_, arrays_b) = parts(a), parts(b)
    assert arrays_a.keys() == arrays_b.keys()
    for name, array in arrays_a.items():
        np.testing.assert_array_equal(array, arrays_b[name])
        assert array.dtype == arrays_b[name].dtype


def test_round_trip(tmp_path):
    path = tmp_path / "model.safetensors"
    full = make_sensitivity(
        0, steps=7, regions=3, width=4, tokens={"stride": 2}, versions={"torch": "x"}, notes={"a": "b"}
    )
    pruned = make_sensitivity(0, scores=("drift", "random"))
    for sensitivity in (full, pruned, small(), small(timesteps=None, scheduler_config=None, guidance=None)):
        sensitivity.save(path)
        assert_same(Sensitivity.load(path), sensitivity)
    assert load_file(path).keys() == parts(small())[1].keys()


def test_measuring_can_go_on_from_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    make_sensitivity(0).save(path)
    both = merge(Sensitivity.load(path), make_sensitivity(0, first_seed=10))
    assert both.info.generations == 4


def test_refuses_every_truncation(tmp_path):
    path = tmp_path / "model.safetensors"
    small().save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(SensitivityError) as caught:
            Sensitivity.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_refuses_every_flipped_byte(tmp_path, mask):
    path = tmp_path / "model.safetensors"
    small().save(path)
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        with pytest.raises(SensitivityError) as caught:
            Sensitivity.load(path)
        assert str(path) in str(caught.value)


def test_refuses_other_files(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (b"", b"hello", b"\x80\x04pickle", np.random.default_rng(0).bytes(1000), save({"a": np.ones(3)})):
        path.write_bytes(content)
        with pytest.raises(SensitivityError, match=r"model\.safetensors"):
            Sensitivity.load(path)
    save_file({"a": np.ones(3)}, path, metadata={"soda": "[]", "sha256": ""})
    with pytest.raises(SensitivityError, match="not sensitivity data"):
        Sensitivity.load(path)
    with pytest.raises(SensitivityError, match="nowhere: cannot read the sensitivity data: No such file"):
        Sensitivity.load(tmp_path / "nowhere")


def test_refuses_another_format_version(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity_file, "FORMAT", "soda-sensitivity/9")
        small().save(path)
    with pytest.raises(SensitivityError, match=r"format 'soda-sensitivity/9' is not known; .* 'soda-sensitivity/1'"):
        Sensitivity.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": ["a", "b"]}, r"'mean.cosine.reuse' is float32 \(2, 1, 1\); expected float32 \(2, 2, 1\)"),
        ({"steps": "2"}, "steps: Input should be a valid integer"),
        ({"steps": 0}, "steps is 0"),
        ({"surprise": 1}, "surprise: Unexpected keyword"),
        ({"seeds": None}, "seeds: Input should be a valid array"),
    ],
)
def test_a_sound_file_with_wrong_info_is_refused(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    header, arrays = parts(small())
    path.write_bytes(sensitivity_file.encode({**header, "info": {**header["info"], **change}}, arrays))
    with pytest.raises(SensitivityError, match=message) as caught:
        Sensitivity.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_sound_file_with_wrong_arrays_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    header, arrays = parts(small())
    without = {name: array for name, array in arrays.items() if name != "step_weights"}
    for wrong, message in [
        (without, "an entry is missing or unknown"),
        ({**arrays, "more": np.ones(1)}, "an entry is missing or unknown"),
        ({**arrays, "region_prune_flops": np.zeros((1, 7))}, "region_prune_flops is given, but"),
        ({**arrays, **dict.fromkeys(("mean.cosine.prune.x", "variance.cosine.prune.x"), np.ones(1))}, "is not known"),
        ({name: array for name, array in arrays.items() if name != "variance.cosine.reuse"}, "differ"),
        ({**arrays, "step_weights": np.ones(3)}, "'step_weights' is float64"),
    ]:
        path.write_bytes(sensitivity_file.encode(header, wrong))
        with pytest.raises(SensitivityError, match=message):
            Sensitivity.load(path)
    for total in ("1", None, [1.0]):
        path.write_bytes(sensitivity_file.encode({**header, "total_flops": total}, arrays))
        with pytest.raises(SensitivityError):
            Sensitivity.load(path)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    small().save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_sensitivity(5).save(path)
    assert_same(Sensitivity.load(path), small())
    assert os.listdir(tmp_path) == ["model.safetensors"]
