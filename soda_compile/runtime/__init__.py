"""The run time: the clock, the state of a generation, execution of a step, CUDA graphs.

May import ``compiler`` and the rooms below it.
"""
