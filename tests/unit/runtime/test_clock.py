"""Which calls a trajectory counts."""

import torch
from torch import Tensor, nn

from soda_compile.runtime.current import current_generation
from soda_compile.runtime.generation import trajectory


class Rotary(nn.Module):
    """A compiled call may know its model by a buffer, which the graph takes first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.table)


def test_parameters_and_buffers_tell_which_model_is_called():
    model, other = Rotary(), Rotary()
    with trajectory(model) as generation:
        assert current_generation(model.linear.weight) is generation
        assert current_generation(model.table) is generation
        assert current_generation(other.table) is None
        assert current_generation(other.linear.weight) is None
    assert current_generation(model.table) is None
