"""Captures in files: found again where nothing changed, not found where anything did."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from thorough import gated
from torch import Tensor, fx, nn
from tracing import trace, traces

from soda_compile.ir.captured import Captured

X = torch.randn(2, 4)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A 1 for each time that a graph was traced."""
    found: list[int] = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("soda/*/*.capture"))


def described(captured: Captured) -> list[Any]:
    """All that the compiler reads of a capture."""

    def layout(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [layout(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        return tuple(value.shape), value.stride(), value.dtype, value.device

    def text(node: fx.Node) -> tuple[Any, ...]:
        known = node.meta["paths"], node.meta["classes"], layout(node.meta.get("val"))
        return node.name, node.op, node.target, repr(node.args), repr(node.kwargs), type(node.args), *known

    constants = {name: (value.dtype, value.tolist()) for name, value in captured.constants.items()}
    ends = captured.inputs, captured.paths, captured.parameters, captured.outputs
    return [[text(node) for node in captured.graph.nodes], constants, ends]


class Model(nn.Module):
    """Views, several results, numbers, a dtype, and a tensor made on the way."""

    def __init__(self, scale: float = 2.0, name: str = "net") -> None:
        super().__init__()
        self.name, self.scale = name, scale
        setattr(self, name, nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        first, second = getattr(self, self.name)(x).chunk(2, dim=-1)
        table = torch.tensor([float("inf"), self.scale])
        return first.to(torch.float64) * self.scale, None, torch.minimum(second, table)[..., None, :1]


@pytest.mark.parametrize("name", gated("dit", others=FAMILIES))
def test_a_family_is_traced_once(name: str, folder: Path, traced: list[int]):
    family = FAMILIES[name]
    first, second = traces(family.build(), 2, **family.inputs(0, 4))
    assert sum(traced) == len(files(folder)) == 1
    assert described(second) == described(first)


def test_what_is_read_is_what_was_written(folder: Path, traced: list[int]):
    first, second = (trace(Model(), X) for _ in range(2))
    assert sum(traced) == 1
    assert first.constants
    assert described(second) == described(first)


CHANGES: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[], AbstractContextManager[Any]]]] = {
    "a number": (lambda: Model(scale=3.0), X, nullcontext),
    "the type of a number": (lambda: Model(scale=2), X, nullcontext),
    "where a module lies": (lambda: Model(name="other"), X, nullcontext),
    "a size": (Model, torch.randn(3, 4), nullcontext),
    "strides": (Model, torch.randn(4, 2).t(), nullcontext),
    "a dtype": (lambda: Model().double(), X.double(), nullcontext),
    "autocast": (Model, X, lambda: torch.autocast("cpu", torch.bfloat16)),
    "gradients": (Model, X.clone().requires_grad_(), nullcontext),
    "deterministic algorithms": (Model, X, lambda: deterministic()),
}


class deterministic:
    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: Any) -> None:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("change", gated(*list(CHANGES)[::2], others=CHANGES))
def test_a_change_is_traced_anew(change: str, traced: list[int]):
    trace(Model(), X)
    build, x, context = CHANGES[change]
    with context():
        trace(build(), x)
    assert sum(traced) == 2


def test_another_version_traces_anew(monkeypatch: pytest.MonkeyPatch, traced: list[int]):
    trace(Model(), X)
    monkeypatch.setattr("soda_compile.capture.capture_cache._own_sources", lambda: "another")
    trace(Model(), X)
    assert sum(traced) == 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:300] + b"?" + data[301:]]
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes], folder: Path, traced: list[int], caplog: pytest.LogCaptureFixture
):
    trace(Model(), X)
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        trace(Model(), X)
    assert str(file) in caplog.text
    assert "checksum" in caplog.text
    assert sum(traced) == 2
    assert file.read_bytes() == whole


@torch.library.custom_op("soda_capture_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


double.register_fake(torch.empty_like)


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (double(x),)


class Rare(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * torch.tensor([1j], dtype=torch.complex128),)


@pytest.mark.parametrize(
    ("settings", "build", "reason"),
    [
        ({}, Foreign, "soda_capture_tests"),
        ({}, Rare, "complex128"),
        ({"force_disable_caches": True}, Model, "caches are disabled"),
        ({"fx_graph_cache": False}, Model, "FX graph cache is not enabled"),
    ],
    ids=["a foreign operator", "a rare dtype", "no caches", "no cache of graphs"],
)
def test_what_is_not_kept_says_why(
    settings: dict[str, Any],
    build: Callable[[], nn.Module],
    reason: str,
    folder: Path,
    traced: list[int],
    caplog: pytest.LogCaptureFixture,
):
    with torch._inductor.config.patch(settings), caplog.at_level(logging.INFO, "soda_compile"):
        for _ in range(2):
            trace(build(), X)
    assert sum(traced) == 2
    assert not files(folder)
    assert "not kept" in caplog.text
    assert reason in caplog.text


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(folder: Path, caplog: pytest.LogCaptureFixture):
    (folder / "soda").write_text("in the way")
    for _ in range(2):
        assert trace(Model(), X).inputs
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(folder) in record.getMessage()
    assert "TORCHINDUCTOR_CACHE_DIR" in record.getMessage()
