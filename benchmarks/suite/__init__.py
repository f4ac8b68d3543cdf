"""The suite: soda_compile against what users would pick instead. Run it with ``python -m benchmarks.suite``."""

import os

# Processes of rows are forked; one that had asked the CUDA runtime for a GPU could not give its children any.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
