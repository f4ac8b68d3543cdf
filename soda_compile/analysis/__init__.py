"""Analysis of a captured graph: blocks, residual branches, regions, minimum cuts, token axes.

May import ``ir`` and the rooms below it.
"""
