"""Errors of a backend are caught by their own class where ``torch.compile`` is called."""

import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from plain_models import Listed, TimmBlock, inputs
from torch import Tensor, fx

import soda_compile
from soda_compile import errors
from soda_compile.errors import PlanError, SodaError
from soda_compile.plans.plan import compute_all_plan
from soda_compile.torch_internals.backend_errors import errors_unwrapped

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SodaError)]
TEXT = "the plan is for another model"


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def caught(kind: type[Exception], call: Callable[[], object]) -> Exception:
    with pytest.raises(kind) as found:
        call()
    return found.value


def double(x: Tensor) -> Tensor:
    return x * 2


def broken(x: Tensor) -> Tensor:
    x = x.sin()
    torch._dynamo.graph_break()
    return x.cos()


@pytest.mark.parametrize("function", [double, broken])
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_caught_by_its_class(kind: type[SodaError], function: Callable[[Tensor], Tensor]) -> None:
    @errors_unwrapped
    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        raise kind(TEXT) from ZeroDivisionError("the cause")

    error = caught(kind, lambda: torch.compile(function, backend=backend)(torch.ones(3)))
    assert str(error) == TEXT
    assert traceback.format_exception_only(error) == [f"soda_compile.errors.{kind.__name__}: {TEXT}\n"]
    assert any(frame.name == "backend" for frame in traceback.extract_tb(error.__traceback__))
    read = pickle.loads(pickle.dumps(error))
    assert type(read) is kind
    assert str(read) == TEXT


def test_an_error_without_a_text() -> None:
    @errors_unwrapped
    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        raise PlanError

    assert str(caught(PlanError, lambda: torch.compile(double, backend=backend)(torch.ones(3)))) == ""


def test_what_is_not_of_this_project_is_wrapped_as_ever() -> None:
    @errors_unwrapped
    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        raise ValueError(TEXT)

    caught(torch._dynamo.exc.BackendCompilerFailed, lambda: torch.compile(double, backend=backend)(torch.ones(3)))


@pytest.mark.parametrize("whole", [True, False])
def test_the_backend_by_name(whole: bool) -> None:
    model, plan = Listed(TimmBlock).eval(), compute_all_plan(["blocks.0.other"], 2)
    for options, kind in (({"plan": plan}, PlanError), ({"plam": plan}, errors.OptionError)):
        compiled = torch.compile(model, backend="soda", options=options, fullgraph=whole)
        with torch.no_grad():
            error = caught(kind, lambda compiled=compiled: compiled(**inputs()))
        assert "VERBOSE" not in str(error)
    assert isinstance(error, soda_compile.OptionError)
