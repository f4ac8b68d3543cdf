"""The representations of the compiler: the captured graph, its structure, and helpers to read and build graphs.

May import the rooms below it: ``errors``, ``storage``, ``torch_internals``, ``plans``.
"""
