"""Pure graph-to-graph rewrites, one a file; ``soda_compile.compiler.variants.pipeline`` puts them in order.

May import ``analysis`` and the rooms below it.
"""
