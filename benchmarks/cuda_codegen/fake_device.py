"""Stands in for a GPU while Inductor generates code and Triton compiles it; nothing is loaded and nothing runs.

What is replaced, each for as long as the context lasts:

- what ``torch.cuda`` and Dynamo's device interface tell: one device, with the properties of the board;
- its guards, streams and random state, which change nothing;
- Triton's driver, which names the target;
- attention by ``scaled_dot_product_attention``, whose kernel torch picks by asking the driver: flash attention where
  there is no mask, memory-efficient attention where there is one;
- choices by timing: no product is padded;
- loading of kernels: they are compiled, handed to whoever listens, and left alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cuda_codegen.attention import fused_attention
from benchmarks.cuda_codegen.datasheets import Gpu

SETTINGS = {
    "shape_padding": False,
    "compile_threads": 1,
    "use_static_triton_launcher": False,
    "fx_graph_cache": False,
    "fx_graph_remote_cache": False,
}
Listener = Callable[[str, list[Any]], None]
"""Takes the name of a kernel and its compiled variants, one for each of Inductor's configurations."""


@contextmanager
def gpu_stood_in(gpu: Gpu, compiled: Listener | None) -> Iterator[None]:
    """Have Inductor and Triton compile for a GPU that is not there; without a listener kernels stay sources."""
    with ExitStack() as stack:
        for target, replacement in _replacements(gpu).items():
            stack.enter_context(mock.patch(target, replacement))
        stack.enter_context(_answers_forgotten())
        stack.enter_context(_interface(gpu))
        stack.enter_context(_driver(gpu))
        stack.enter_context(_kernels_kept(compiled))
        stack.enter_context(_constants_on_cpu())
        stack.enter_context(fused_attention())
        stack.enter_context(torch._inductor.config.patch(SETTINGS))
        stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        yield


def properties(gpu: Gpu) -> SimpleNamespace:
    """What ``torch.cuda.get_device_properties`` would give."""
    return SimpleNamespace(
        name=gpu.name,
        major=gpu.capability // 10,
        minor=gpu.capability % 10,
        multi_processor_count=gpu.multiprocessors,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=gpu.threads_per_multiprocessor,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=gpu.shared_bytes_per_block,
        shared_memory_per_multiprocessor=gpu.shared_bytes_per_block + 1024,
        total_memory=int(gpu.memory_bytes),
        L2_cache_size=50 * 2**20,
        gcnArchName="",
    )


def _replacements(gpu: Gpu) -> dict[str, Any]:
    found = properties(gpu)
    return {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_initialized": lambda: True,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_properties": lambda device=None: found,
        "torch.cuda.get_device_capability": lambda device=None: (found.major, found.minor),
        "torch.cuda.get_device_name": lambda device=None: gpu.name,
        "torch.cuda.get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "torch.cuda.set_rng_state": lambda state, device="cuda": None,
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
        "torch.cuda.is_tf32_supported": lambda: True,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda._exchange_device": lambda index: 0,
        "torch.cuda._maybe_exchange_device": lambda index: 0,
        "torch.cuda.synchronize": lambda device=None: None,
        "torch.cuda.is_current_stream_capturing": lambda: False,
        # The registries of attention and padding patterns trace with tensors of the device, and match what no
        # denoiser here contains.
        "torch._inductor.fx_passes.joint_graph.lazy_init": lambda input_device=None: None,
    }


@contextmanager
def _answers_forgotten() -> Iterator[None]:
    """Have torch ask about the device anew, before and after: it keeps the answers."""
    from torch._inductor import utils
    from torch._inductor.runtime.hints import DeviceProperties
    from torch.utils import _triton

    cached = [DeviceProperties.create, *(each for module in (_triton, utils) for each in vars(module).values())]
    forget = [each.cache_clear for each in cached if hasattr(each, "cache_clear")]
    for each in forget:
        each()
    try:
        yield
    finally:
        for each in forget:
            each()


@contextmanager
def _interface(gpu: Gpu) -> Iterator[None]:
    from torch._dynamo import device_interface

    found = properties(gpu)

    class Interface(device_interface.CudaInterface):
        """A CUDA device that is always there, and never changes."""

        class Worker:
            set_device = staticmethod(lambda device: None)
            current_device = staticmethod(lambda: 0)
            get_device_properties = staticmethod(lambda device=None: found)

        current_device = staticmethod(lambda: 0)
        set_device = staticmethod(lambda device: None)
        device_count = staticmethod(lambda: 1)
        synchronize = staticmethod(lambda device=None: None)
        get_device_properties = staticmethod(lambda device=None: found)
        get_raw_stream = staticmethod(lambda index: 0)
        exchange_device = staticmethod(lambda device: 0)
        maybe_exchange_device = staticmethod(lambda device: 0)
        memory_allocated = staticmethod(lambda device=None: 0)
        is_available = staticmethod(lambda: True)
        get_compute_capability = staticmethod(lambda device=None: gpu.capability)
        is_bf16_supported = staticmethod(lambda including_emulation=False: True)
        is_triton_capable = staticmethod(lambda device=None: True)

    device_interface.init_device_reg()
    stand_ins = {"cuda": Interface, "cuda:0": Interface}
    with mock.patch.dict(device_interface.device_interfaces, stand_ins):
        yield


@contextmanager
def _driver(gpu: Gpu) -> Iterator[None]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", gpu.capability, 32)
    stand_in = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
        get_device_capability=lambda device=0: (gpu.capability // 10, gpu.capability % 10),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
    )
    before = driver._active
    driver._active = stand_in
    try:
        with mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu"):
            yield
    finally:
        driver._active = before


@contextmanager
def _kernels_kept(compiled: Listener | None) -> Iterator[None]:
    """Compile every configuration of every kernel where Inductor would also load them."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    def precompile(tuner: Any, *args: Any, **kwargs: Any) -> None:
        if compiled is None:
            return
        tuner._precompile_worker()
        compiled(tuner.inductor_meta.get("kernel_name", tuner.fn.__name__), tuner.compile_results)

    with mock.patch.object(CachingAutotuner, "precompile", precompile):
        yield


class _OnCpu(TorchDispatchMode):
    """Makes tensors on the CPU, whatever device is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = kwargs or {}
        return func(*args, **({**asked, "device": torch.device("cpu")} if asked.get("device") is not None else asked))


@contextmanager
def _constants_on_cpu() -> Iterator[None]:
    """Have Inductor compute there what it folds: it fills tensors of one element on the device to see their value."""
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder

    deduce = UniformValueConstantFolder._deduce_value

    def on_cpu(folder: Any, node: Any) -> Any:
        with _OnCpu():
            return deduce(folder, node)

    with mock.patch.object(UniformValueConstantFolder, "_deduce_value", on_cpu):
        yield
