"""Measurements of soda_compile; ``benchmarks.suite`` is a package of its own."""
