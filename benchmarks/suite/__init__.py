"""The suite: soda_compile against what users would pick instead. Run it with ``python -m benchmarks.suite``."""
