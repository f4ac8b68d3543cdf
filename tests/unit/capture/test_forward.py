"""A compiled forward comes and goes without a trace."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch

from soda_compile.capture.forward import CompiledForward, compile_forward, replace_forward, restore_forward
from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.framework import holders


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        return self.linear(hidden) * scale


def backend(module, inputs):
    return module.forward


def test_any_number_of_compiled_instances_live_side_by_side():
    """More than Dynamo's limit of recompilations for one code object."""
    hidden = torch.ones(1, 4)
    models = [Model() for _ in range(2 * torch._dynamo.config.recompile_limit)]
    with torch.no_grad():
        for model in models:
            expected = model(hidden)
            replace_forward(model, CompiledForward(model, lambda module, inputs: module.forward))
            torch.testing.assert_close(model(hidden), expected)


def test_the_original_comes_back():
    model = Model()
    with compile_forward(model, backend):
        assert "forward" in model.__dict__
    assert "forward" not in model.__dict__


def test_a_replaced_forward_is_not_replaced_again():
    model = Model()
    with (
        compile_forward(model, backend),
        pytest.raises(OptionError, match=r"forward of this Model is replaced already.*restore"),
        compile_forward(model, backend),
    ):
        pass


def test_somebody_elses_forward_is_left_alone():
    model = Model()
    with compile_forward(model, backend):
        model.forward = other = lambda hidden: hidden
    assert model.forward is other


def test_a_forward_of_the_instance_is_the_one_that_is_compiled():
    model, hidden = Model(), torch.ones(1, 4)
    model.forward = (lambda self, hidden: self.linear(hidden) + 1).__get__(model)
    torch.testing.assert_close(CompiledForward(model, backend)(hidden), model.linear(hidden) + 1)


class Broken(Model):
    """Does something in the middle that no graph can hold."""

    def forward(self, hidden: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        hidden = hidden.sin()
        torch._dynamo.graph_break()
        return super().forward(hidden, scale=scale)


class Table(Model):
    """Makes a table at its first call, in a way that cannot be captured."""

    def forward(self, hidden: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        if not hasattr(self, "table"):
            torch._dynamo.graph_break()
            self.table = torch.ones(4)
        return super().forward(hidden * self.table, scale=scale)


@pytest.mark.parametrize(("kind", "told"), [(Model, False), (Table, False), (Broken, True)])
def test_one_graph_where_possible(kind, told: bool, caplog: pytest.LogCaptureFixture):
    model, hidden, seen = kind(), torch.ones(1, 4), []

    def look(module, inputs):
        seen.append(module)
        return module.forward

    with compile_forward(model, look), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(hidden), kind.forward(model, hidden))
    assert any("linear" in str(module.graph) for module in seen)
    assert ("captured in several graphs" in caplog.text) is told


def test_a_call_that_another_thread_begins_at_its_end_fails_none(monkeypatch: pytest.MonkeyPatch):
    """Torch counts for all threads together whether compiled code ran, and each call begins to count anew."""
    from torch._dynamo import eval_frame

    name = "set_fullgraph_compiled_frame_count"
    count = getattr(eval_frame, name, None)
    if count is None:
        pytest.skip("this torch counts nothing")
    monkeypatch.setattr(eval_frame, name, lambda value: min(count(value), 0))  # another one has just set it to 0
    model, hidden = Model(), torch.ones(1, 4)
    with compile_forward(model, backend), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(hidden), Model.forward(model, hidden))


def test_hooks_around_a_forward_stay_and_copies_are_not_replaced():
    model, around = Model(), []
    model._old_forward = model.forward  # as the library accelerate wraps it
    model.forward = lambda *arguments, **options: (around.append(1), model._old_forward(*arguments, **options))[1]
    hidden = torch.ones(1, 4)
    expected, replaced = model(hidden), replace_forward(model, CompiledForward(model, backend), holders)
    assert model._old_forward is replaced
    assert model._old_forward.__wrapped__.__func__ is Model.forward
    torch.testing.assert_close(model(hidden), expected)
    assert len(around) == 2
    copied = copy.deepcopy(model)
    assert copied._old_forward.__self__ is copied
    restore_forward(model, replaced)
    assert model._old_forward.__func__ is Model.forward


def deep(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model)


def pickled(model: torch.nn.Module) -> torch.nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Stateful(Model):
    """Has a state of its own."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stated": True}


@pytest.mark.parametrize("kind", [Model, Stateful])
@pytest.mark.parametrize("duplicate", [copy.copy, deep, pickled, saved])
def test_copies_run_their_own_forward(kind: type[Model], duplicate: Callable[..., Any]) -> None:
    model, calls, hidden = kind(), [], torch.ones(1, 4)
    expected = model(hidden)
    before = set(vars(model))
    with compile_forward(model, backend) as compiled:
        replaced = vars(model)["forward"]
        replaced.function = lambda *arguments, **options: (calls.append(1), compiled(*arguments, **options))[1]
        copied = duplicate(model)
        copied.linear = torch.nn.Linear(4, 4)
        assert copied.forward.__self__ is copied
        assert type(copied.forward) is MethodType
        torch.testing.assert_close(copied(hidden), copied.linear(hidden) * 2)
        assert not calls
        assert set(vars(copied)) - {"stated"} <= before | {"forward"}
        if duplicate is copy.copy:
            assert copied._modules is model._modules
            model.linear = torch.nn.Linear(4, 4)
        else:
            torch.testing.assert_close(model(hidden), expected)
            assert calls
    assert set(vars(model)) == before


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_the_function_itself_is_copied_as_the_method(duplicate: Callable[..., Any]) -> None:
    model = Model()
    with compile_forward(model, backend):
        copied = duplicate(vars(model)["forward"])
    assert copied == MethodType(Model.forward, model)


@pytest.mark.skipif(torch.__version__ < "2.12", reason="Dynamo of torch 2.11 keeps it all the same")
def test_what_was_compiled_goes_with_it() -> None:
    """Dynamo alone would keep it, and all that the backend returned, for as long as the process runs."""
    kept: list[weakref.ref[Any]] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        kept.append(weakref.ref(module))
        return module.forward

    model = torch.nn.Linear(2, 2)
    for _ in range(3):
        CompiledForward(model, backend)(torch.ones(1, 2))
    gc.collect()
    assert [found for found in kept if found() is not None] == []
