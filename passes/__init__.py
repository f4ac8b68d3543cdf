"""Pure graph-to-graph rewrites, one a file, and the manager that runs them.

``soda_compile.compiler.variants.pipeline`` puts those of a block variant in order.

May import ``analysis`` and the rooms below it.
"""
