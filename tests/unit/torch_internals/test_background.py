"""A thread that compiles changes nothing for those that draw, and call modules and compiled code, meanwhile."""

import random
import threading

import pytest
import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from soda_compile.torch_internals.background import compiling_beside

MODEL = nn.Sequential(*[nn.Linear(4, 4) for _ in range(8)])


def traced(rounds):
    """Trace modules that are called as modules; torch replaces methods of ``nn.Module`` meanwhile."""
    for _ in range(rounds):
        make_fx(MODEL, record_module_stack=True)(torch.ones(2, 4))


def compiled(rounds):
    for _ in range(rounds):
        torch._dynamo.reset_code(compiled.__code__)
        torch.compile(lambda x: nn.functional.gelu(x).softmax(-1), backend="aot_eager")(torch.ones(2, 4))


@pytest.mark.parametrize("work", [traced, compiled])
def test_others_draw_and_compute_as_if_alone(work):
    other, x, drawn, failures = nn.Linear(4, 4), torch.ones(2, 4), [], []
    function = torch.compile(other, backend="eager")
    with torch.no_grad():
        wanted = function(x)
    done = threading.Event()

    def run():
        try:
            with torch.no_grad(), compiling_beside():
                work(5)
        except Exception as error:
            failures.append(error)
        finally:
            done.set()

    torch.manual_seed(0)
    random.seed(0)
    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        drawn.append((float(torch.rand(())), random.random()))
        with torch.no_grad():
            assert torch.equal(other(x), wanted)
            assert torch.equal(function(x), wanted)
    thread.join()
    assert not failures
    torch.manual_seed(0)
    random.seed(0)
    assert drawn == [(float(torch.rand(())), random.random()) for _ in drawn]


def test_all_is_as_it_was_afterwards():
    from torch._dynamo import config

    before = (torch.random.set_rng_state, random.setstate, config.force_compile_during_fx_trace)
    with compiling_beside():
        assert config.force_compile_during_fx_trace
    assert (torch.random.set_rng_state, random.setstate, config.force_compile_during_fx_trace) == before


def test_calls_that_dynamo_leaves_alone_are_annotated_only_where_the_export_runs():
    seen = []
    left_alone = torch._dynamo.disable(lambda: seen.append(dict(traceback.current_meta)))
    with compiling_beside(), _compiling_state_context():
        left_alone()
        thread = threading.Thread(target=left_alone)
        thread.start()
        thread.join()
    here, there = seen
    assert here["custom"]["_torchdynamo_disable"]
    assert not there
