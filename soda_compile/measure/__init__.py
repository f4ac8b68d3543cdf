"""Measuring: the structure of a model, its sensitivity (calibration) and the time of its actions (profiling).

May import ``backend``, ``integrations`` and the rooms below them.
"""
