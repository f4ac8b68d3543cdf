"""All code that the compiler makes for a GPU, generated and compiled without one, and its costs by counting.

Run it with ``python -m benchmarks.cuda_codegen``. Nothing here is a measurement.
"""
