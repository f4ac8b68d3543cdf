"""Which calls a trajectory counts."""

import torch
from torch import Tensor, nn

from soda_compile.runtime.clock import clock_for, trajectory


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
    with trajectory(model):
        clock = clock_for(model.linear.weight)
        assert clock is not None
        assert clock_for(model.table) is clock
        assert clock_for(other.table) is None
        assert clock_for(other.linear.weight) is None
    assert clock_for(model.table) is None
