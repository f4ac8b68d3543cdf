"""Pure graph-to-graph rewrites, one a file; ``soda_compile.variants.pipeline`` puts them in order."""
