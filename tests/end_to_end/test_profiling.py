"""Timing a small denoiser: what is compiled and run, and where the result is kept."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quantised import quantise
from torch import Tensor, nn
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.errors import CaptureError, OptionError, ProfileError
from soda_compile.measure import probing, profiling
from soda_compile.measure.probing import Probe, Probing
from soda_compile.plans.actions import ACTIONS, COMPUTE, PRUNE_RATES, REUSE, prune
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.pruning import Pruning

TOKENS, WIDTH = 8, 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return Denoiser()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"x": torch.randn(2, TOKENS, WIDTH)}


@pytest.fixture
def few_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rate is enough to compile."""

    def only_half(structure):
        saves = np.zeros((len(structure.regions), len(PRUNE_RATES)))
        saves[:, PRUNE_RATES.index(0.5)] = 1.0
        return saves

    monkeypatch.setattr(probing, "prune_flops", only_half)


def probing_of(model, inputs, pruning=None) -> Probing:
    return Probing.build(soda_compile.inspect(model, **inputs), pruning)


def test_probes_cover_every_action_of_every_kind_of_region(model, inputs):
    found = probing_of(model, inputs, Pruning("drift"))
    assert sorted(map(sorted, found.kinds)) == [[0, 2], [1, 3]]
    paired = {(probe.action, tuple(sorted(probe.regions))) for probe in found.steps if probe.paired}
    rates = [prune(rate) for rate in PRUNE_RATES]
    assert paired == {(action, kind) for action in (REUSE, *rates) for kind in ((0, 2), (1, 3))}
    everything = {probe.action for probe in found.steps if len(probe.regions) == 4}
    assert everything == set(ACTIONS)
    for step, probe in enumerate(found.steps):
        if probe.paired:
            assert found.steps[step - 1] == Probe(COMPUTE, frozenset(range(4)))
    assert found.plan.steps == len(found.steps)
    without = probing_of(model, inputs)
    assert not any(probe.action.kind == "prune" for probe in without.steps)
    assert without.plan.pruning is None


def test_times_are_split_over_the_regions(model, inputs):
    """Step times that are exact sums give back their parts."""
    found = probing_of(model, inputs, Pruning("drift"))
    compute, forecast = {0: 30.0, 1: 50.0, 2: 30.0, 3: 50.0}, {1: 2.0, 2: 3.0, 3: 4.0}

    def cost(action, number):
        parts = {"compute": compute[number], "reuse": 0.0, "prune": 5.0 + (1 - action.rate) * compute[number]}
        return forecast[action.order] if action.kind == "forecast" else parts[action.kind]

    actions = found.plan.actions
    times = [100.0 + sum(cost(row[step], n) for n, row in enumerate(actions)) for step in range(found.plan.steps)]
    drifting = np.array(times) * np.array([[1.0], [1.0], [1.1]])
    times = found.profile(drifting, "cpu", "key")
    assert times.full_us == pytest.approx(260.0)
    assert times.base_us == pytest.approx(100.0)
    for number in range(4):
        for action in PROFILED:
            assert times.cost_us[number, PROFILED.index(action)] == pytest.approx(cost(action, number), abs=1e-9)
    assert times.memory_bytes.tolist() == [2 * TOKENS * WIDTH * 4] * 4


def test_parts_are_scaled_to_whole_steps(model, inputs):
    """Where two kinds reused together save more than one by one, each gets its share of that."""
    found = probing_of(model, inputs)
    times = np.full((1, len(found.steps)), 260.0)
    for step, probe in enumerate(found.steps):
        if probe.action != COMPUTE:
            times[0, step] = {4: 60.0, 2: 210.0 if 0 in probe.regions else 230.0}[len(probe.regions)]
    read = found.profile(times, "cpu", "key")
    assert read.base_us + read.cost_us[:, PROFILED.index(COMPUTE)].sum() == pytest.approx(260.0)
    assert read.cost_us[:, PROFILED.index(COMPUTE)] == pytest.approx([62.5, 37.5, 62.5, 37.5])


def test_it_measures_keeps_and_reads_again(model, inputs, few_rates, tmp_path, monkeypatch):
    # The code that Inductor makes is not the point here, and making it takes a minute.
    graphs_as_they_are(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # this machine may be busy
        made = soda_compile.profile(model, inputs, pruning=Pruning("drift"), rounds=2, folder=tmp_path)
    assert "forward" not in vars(model)
    assert made.regions == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
    known = {str(action) for action in PROFILED if not np.isnan(made.column(action)).any()}
    assert known == {"compute", "reuse", "forecast1", "forecast2", "forecast3", "prune 0.5"}
    assert made.full_us > 0
    assert (made.score, made.versions["torch"]) == ("drift", torch.__version__)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{made.key}.json"

    monkeypatch.setattr(profiling, "_time", lambda *_: pytest.fail("measured again"))
    again = soda_compile.profile(model, (inputs["x"],), pruning=Pruning("drift"), folder=tmp_path)
    assert np.array_equal(again.cost_us, made.cost_us, equal_nan=True)

    def generate(seed: int) -> Tensor:
        return model(model(inputs["x"] + seed))

    assert soda_compile.profile(model, generate, pruning=Pruning("drift"), folder=tmp_path).key == made.key
    for pruning, batch, mode in ((None, 2, None), (Pruning("drift"), 1, None), (Pruning("drift"), 2, "max-autotune")):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            soda_compile.profile(model, {"x": inputs["x"][:batch]}, pruning=pruning, mode=mode, folder=tmp_path)

    replace(Profile.load(path), key="another").save(path)
    with pytest.raises(ProfileError, match="belongs to another"):
        soda_compile.profile(model, inputs, pruning=Pruning("drift"), folder=tmp_path)


class Breaks(Denoiser):
    """Reads data on the host, which ends a graph before the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Breaks, lambda: quantise(Denoiser())])
def test_broken_and_quantised_models_are_timed_whole(kind, inputs, tmp_path, monkeypatch):
    """The regions are those of the graph with the blocks, over plain tensors."""
    graphs_as_they_are(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # this machine may be busy
        made = soda_compile.profile(kind(), inputs, rounds=1, folder=tmp_path)
    assert made.regions == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
    assert (made.column(COMPUTE) >= 0).all()


def test_what_cannot_be_profiled_is_named(model, inputs, tmp_path):
    with pytest.raises(OptionError, match=r"before torch\.compile"):
        soda_compile.profile(torch.compile(model), inputs)
    with pytest.raises(OptionError, match="model is a str"):
        soda_compile.profile("model", inputs)
    with pytest.raises(OptionError, match="rounds is 0"):
        soda_compile.profile(model, inputs, rounds=0)
    with pytest.raises(OptionError, match="did not call the model"):
        soda_compile.profile(model, lambda seed: None, folder=tmp_path)
    with pytest.raises(CaptureError, match="Nothing has no region"):
        soda_compile.profile(Nothing(), inputs, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_told(
    model: Denoiser, inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    graphs_as_they_are(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path / "file"))
    torch._dynamo.reset()
    assert soda_compile.profile(model, inputs, rounds=1).regions
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "file" / "profiles") in record.getMessage()
    assert "SODA_COMPILE_CACHE" in record.getMessage()
