"""The run time: generations with their clock and slots, execution of a step, CUDA graphs, statistics.

May import ``compiler`` and the rooms below it.
"""
