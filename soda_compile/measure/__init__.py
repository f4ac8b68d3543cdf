"""Measuring: the sensitivity of a model (calibration) and the time of its actions (profiling).

May import ``backend``, ``integrations`` and the rooms below them.
"""
