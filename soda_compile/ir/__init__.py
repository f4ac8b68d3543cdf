"""What the compiler works on: the captured graph, the structure found in it, and helpers to read and build graphs.

May import the rooms below it: ``errors``, ``storage``, ``torch_internals``, ``plans``.
"""
