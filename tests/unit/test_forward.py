"""A compiled forward comes and goes without a trace."""

import pytest
import torch

from soda_compile.errors import OptionError
from soda_compile.forward import compile_forward, restore_forward


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
            compile_forward(model, lambda module, inputs: module.forward)
            torch.testing.assert_close(model(hidden), expected)


def test_the_original_comes_back():
    model = Model()
    compiled = compile_forward(model, backend)
    assert "forward" in model.__dict__
    restore_forward(model, compiled)
    assert "forward" not in model.__dict__


def test_a_replaced_forward_is_not_replaced_again():
    model = Model()
    compile_forward(model, backend)
    with pytest.raises(OptionError, match=r"forward of this Model is replaced already.*restore"):
        compile_forward(model, backend)


def test_somebody_elses_forward_is_left_alone():
    model = Model()
    compiled = compile_forward(model, backend)
    model.forward = other = lambda hidden: hidden
    restore_forward(model, compiled)
    assert model.forward is other
