"""Damaged, incomplete, foreign and mismatched packages end in one clear error, before any code is loaded."""

import hashlib
import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from safetensors.torch import load_file, save_file

import soda_compile
from soda_compile import PackageError
from soda_compile.packages.archive import read_archive, write_archive
from soda_compile.packages.loading import open_package
from soda_compile.packages.tensors import unpack

pytestmark = pytest.mark.usefixtures("eager_subgraphs")

MANIFEST = "extra/manifest.json"
WEIGHTS = "extra/weights.safetensors"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.export(tmp_path_factory.mktemp("packages") / "toy.soda.pt2")


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.export(tmp_path_factory.mktemp("packages") / "toy.soda.pt2", weights="external")


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that gets as far as loading code."""
    monkeypatch.setattr("soda_compile.packages.loading.open_subgraph", lambda *_: pytest.fail("loads code"))


def refused(path: Path, reason: str, **options: Any) -> None:
    with pytest.raises(PackageError, match=reason) as caught:
        soda_compile.load(path, **options)
    assert str(path) in str(caught.value) or options


# Bytes


def test_every_truncation_is_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    data = package.read_bytes()
    lengths = {*range(0, len(data), max(1, len(data) // 60)), 1, 30, len(data) - 1, len(data) - 22, len(data) - 85}
    for length in lengths:
        (tmp_path / "cut.soda.pt2").write_bytes(data[:length])
        refused(tmp_path / "cut.soda.pt2", "truncated|cannot read|damaged")


def test_every_flipped_byte_is_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    data = package.read_bytes()
    places = {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 110, len(data)), 0, 10, 26, 28}
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 0x40
        (tmp_path / "flipped.soda.pt2").write_bytes(changed)
        refused(tmp_path / "flipped.soda.pt2", "damaged|changed")


def test_the_damaged_part_is_named(package: Path, tmp_path: Path, no_code: None) -> None:
    data = package.read_bytes()
    weights = bytes(read_archive(package)[WEIGHTS])
    middle = data.index(weights) + len(weights) // 2
    (tmp_path / "w.soda.pt2").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    refused(tmp_path / "w.soda.pt2", re.escape(f"damaged or changed: {WEIGHTS} does not have its checksum"))


def test_extra_bytes_at_the_end_are_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    (tmp_path / "long.soda.pt2").write_bytes(package.read_bytes() + b"\0" * 512)
    refused(tmp_path / "long.soda.pt2", "truncated or changed")


def test_what_is_no_package_is_refused(tmp_path: Path, no_code: None) -> None:
    refused(tmp_path / "none.soda.pt2", "No such file")
    (tmp_path / "empty.soda.pt2").touch()
    refused(tmp_path / "empty.soda.pt2", "cannot read the package")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("package/data.pkl", b"x")
    refused(tmp_path / "other.pt2", "no package of soda_compile.export")
    refused(tmp_path, "cannot read the package: Is a directory")


# Members: archives put together by hand, with a right checksum at their end


def rebuilt(package: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    members = {name: bytes(data) for name, data in read_archive(package).items()}
    change(members)
    with write_archive(target) as archive:
        for name, data in members.items():
            if name not in archive.members:
                archive.add(name, [data])
    return target


def edited(members: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


def test_a_rebuilt_package_is_a_package(package: Path, tmp_path: Path) -> None:
    same = rebuilt(package, tmp_path / "same.soda.pt2", lambda members: None)
    calls = toy.trajectory()
    assert torch.equal(toy.generate(soda_compile.load(same), calls), toy.generate(soda_compile.load(package), calls))


def test_every_missing_member_is_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    names = [name for name in read_archive(package) if name not in ("archive_format", "archive_version", "byteorder")]
    assert len(names) > 8
    for name in names:
        if name != ".data/version":
            target = rebuilt(package, tmp_path / "less.soda.pt2", lambda members, name=name: members.pop(name))
            refused(target, f"{re.escape(name)} is missing|it has no {MANIFEST}")


def test_an_added_member_is_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    more = rebuilt(package, tmp_path / "more.soda.pt2", lambda members: members.update({"extra/x": b"1"}))
    refused(more, "extra/x was added after the export")


def test_swapped_weights_are_noticed(package: Path, tmp_path: Path, no_code: None) -> None:
    """Those of another model, in a file that is whole in itself."""
    model = toy.Denoiser()
    with torch.no_grad():
        model.out.weight.mul_(2)
    other = toy.export(tmp_path / "other.soda.pt2", model)

    def swap(members: dict[str, bytes]) -> None:
        members[WEIGHTS] = bytes(read_archive(other)[WEIGHTS])

    refused(rebuilt(package, tmp_path / "swapped.soda.pt2", swap), f"{WEIGHTS} does not have its checksum")


def test_newer_and_unknown_formats_are_refused(package: Path, tmp_path: Path, no_code: None) -> None:
    def newer(members: dict[str, bytes]) -> None:
        edited(members, MANIFEST, lambda manifest: manifest.update(format="soda-package/4", novelty=1))

    refused(rebuilt(package, tmp_path / "newer.soda.pt2", newer), "format 'soda-package/4' is not known; .* reads")

    def unknown(members: dict[str, bytes]) -> None:
        edited(members, MANIFEST, lambda manifest: manifest.update(novelty=1))

    refused(rebuilt(package, tmp_path / "unknown.soda.pt2", unknown), "novelty: Extra inputs")


def test_another_plan_inside_is_refused(package: Path, tmp_path: Path, no_code: None) -> None:
    def change(members: dict[str, bytes]) -> None:
        plan = toy.make_plan("CrrC").to_json().encode()
        members["extra/plan.json"] = plan
        digest = hashlib.sha256(plan).hexdigest()
        entry = {"size_bytes": len(plan), "sha256": digest}
        edited(members, MANIFEST, lambda manifest: manifest["members"].update({"extra/plan.json": entry}))

    refused(rebuilt(package, tmp_path / "plan.soda.pt2", change), f"code was made for plan {toy.PLAN.digest}")


# Where and how it is used


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch": "2.99.0"}, r"made with torch 2\.99\.0, this is torch"),
        ({"soda": "9.9"}, r"made with soda_compile 9\.9, this is"),
        ({"system": "plan9 vax"}, "made on plan9 vax, this is"),
        ({"instructions": ["avx4096"]}, "instructions that this one lacks: avx4096"),
        ({"device": "cuda", "capability": "7.5"}, r"compute capability 7\.5"),
    ],
)
def test_another_environment_is_refused(
    package: Path, tmp_path: Path, no_code: None, changes: dict[str, Any], reason: str
) -> None:
    def change(members: dict[str, bytes]) -> None:
        edited(members, MANIFEST, lambda manifest: manifest["environment"].update(changes))

    foreign = rebuilt(package, tmp_path / "foreign.soda.pt2", change)
    refused(foreign, reason)
    assert open_package(foreign).manifest.steps == toy.STEPS  # but it can be looked at


def test_another_plan_than_expected_is_refused(package: Path, tmp_path: Path) -> None:
    soda_compile.load(package, plan=toy.PLAN)
    other = toy.make_plan("CrrC")
    refused(package, f"made of plan {toy.PLAN.digest}, not of the given plan {other.digest}", plan=other)


# External weights


def test_external_weights_are_bound_by_name(external: Path, package: Path, tmp_path: Path) -> None:
    assert WEIGHTS not in read_archive(external)
    state = toy.Denoiser().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "shards").mkdir()
    names = sorted(state)
    save_file({name: state[name] for name in names[:3]}, tmp_path / "shards" / "a.safetensors")
    save_file({name: state[name] for name in names[3:]}, tmp_path / "shards" / "b.safetensors")
    wanted = toy.generate(soda_compile.load(package), toy.trajectory())
    for weights in (state, tmp_path / "model.safetensors", str(tmp_path / "shards")):
        assert torch.equal(toy.generate(soda_compile.load(external, weights=weights), toy.trajectory()), wanted)


def test_external_weights_that_do_not_fit_are_refused(external: Path, package: Path, tmp_path: Path) -> None:
    state = toy.Denoiser().state_dict()
    refused(external, "its weights are external; pass weights=")
    refused(package, "its weights are inside; leave out weights", weights=state)
    refused(external, "there is no such checkpoint", weights=tmp_path / "none.safetensors")
    (tmp_path / "model.bin").write_bytes(b"pickle")
    refused(external, "only .safetensors checkpoints are read", weights=tmp_path / "model.bin")
    refused(external, "no .safetensors file in this folder", weights=tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"0" * 40)
    refused(external, "cannot read the checkpoint", weights=tmp_path / "bad.safetensors")
    short = {name: tensor for name, tensor in state.items() if name != "out.bias"}
    refused(external, "weights has no tensor 'out.bias'", weights=short)
    halves = {name: tensor.half() for name, tensor in state.items()}
    refused(external, "is float16 .*, the package needs float32 .*; convert the checkpoint", weights=halves)
    refused(
        external,
        r"out.bias is float32 \[9\], the package needs float32 \[8\]",
        weights={**state, "out.bias": torch.ones(9)},
    )


# The file


def test_weights_are_stored_once_and_nothing_is_pickled(package: Path) -> None:
    members = read_archive(package)
    assert not [name for name in members if re.search(r"pkl|pickle|\.pt$", name)]
    assert not [name for name, data in members.items() if bytes(data[:2]) == b"\x80\x02"]
    state = toy.Denoiser().state_dict()
    data = package.read_bytes()
    assert data.count(state["blocks.0.ff.0.weight"].numpy().tobytes()) == 1
    (length,) = struct.unpack("<Q", members[WEIGHTS][:8])
    assert len(members[WEIGHTS]) == 8 + length + sum(tensor.nbytes for tensor in state.values())


def test_weights_are_used_where_the_file_is_mapped(package: Path) -> None:
    members = read_archive(package)
    start = torch.frombuffer(members[WEIGHTS], dtype=torch.uint8).data_ptr()
    assert start % 64 == 0
    for tensor in unpack(members[WEIGHTS]).values():
        assert tensor.data_ptr() % 64 == 0
        inside = start < tensor.data_ptr() < start + len(members[WEIGHTS])
        assert inside or tensor.nbytes % 64  # only those that come after an odd one are copied


def test_tensors_in_it_are_plain_safetensors(package: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(read_archive(package)[WEIGHTS])
    stored, state = load_file(tmp_path / "weights.safetensors"), toy.Denoiser().state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_an_export_that_fails_leaves_the_old_file(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "toy.soda.pt2"
    shutil.copy(package, target)
    monkeypatch.setattr("soda_compile.packages.exporting.pack", lambda tensors: [None])
    with pytest.raises(TypeError):
        toy.export(target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == package.read_bytes()
