"""GPUs as their data sheets describe them: what code is generated for, and what bounds its time.

Figures are for dense products without sparsity, of the boards named; no sheet promises that they are reached.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One board.

    Attributes:
        name: What it is called.
        capability: Compute capability; code for it is compiled for ``sm_<capability>``.
        multiprocessors: Streaming multiprocessors.
        threads_per_multiprocessor: That can be resident.
        shared_bytes_per_block: Shared memory that a block can ask for.
        memory_bytes: Device memory.
        tensor_flops: Of tensor cores with bfloat16 inputs and float32 sums, per second.
        float_flops: Of the other units in float32, per second.
        bandwidth: Of the device memory, bytes per second.
        source: Where the figures stand.
    """

    name: str
    capability: int
    multiprocessors: int
    threads_per_multiprocessor: int
    shared_bytes_per_block: int
    memory_bytes: float
    tensor_flops: float
    float_flops: float
    bandwidth: float
    source: str


GPUS = (
    Gpu(
        "A100 SXM 80GB", 80, 108, 2048, 163 * 1024, 80e9, 312e12, 19.5e12, 2.039e12,
        "NVIDIA A100 Tensor Core GPU data sheet (June 2021)",
    ),
    Gpu(
        "H100 SXM", 90, 132, 2048, 227 * 1024, 80e9, 989.4e12, 66.9e12, 3.35e12,
        "NVIDIA H100 Tensor Core GPU data sheet; architecture white paper, table 'H100 SXM5'",
    ),
    Gpu(
        "H200 SXM", 90, 132, 2048, 227 * 1024, 141e9, 989.4e12, 66.9e12, 4.8e12,
        "NVIDIA H200 Tensor Core GPU data sheet",
    ),
    Gpu(
        "B200", 100, 148, 2048, 227 * 1024, 180e9, 2250e12, 75e12, 7.7e12,
        "NVIDIA HGX B200 page, an eighth of the system's (dense bfloat16, float32)",
    ),
    Gpu(
        "RTX 4090", 89, 128, 1536, 99 * 1024, 24e9, 165.2e12, 82.6e12, 1.008e12,
        "NVIDIA Ada GPU architecture white paper, appendix A (bfloat16 with float32 sums)",
    ),
    Gpu(
        "RTX 5090", 120, 170, 1536, 99 * 1024, 32e9, 209.5e12, 104.8e12, 1.792e12,
        "NVIDIA RTX Blackwell GPU architecture white paper, appendix A (bfloat16 with float32 sums)",
    ),
)  # fmt: skip
BY_NAME = {gpu.name: gpu for gpu in GPUS}
COMPILED_FOR = {90: BY_NAME["H100 SXM"], 80: BY_NAME["A100 SXM 80GB"], 120: BY_NAME["RTX 5090"]}
"""The board whose properties Inductor sees, by compute capability."""
PRICED = tuple(BY_NAME[name] for name in ("H100 SXM", "H200 SXM", "B200", "RTX 4090"))
