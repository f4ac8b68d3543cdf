"""Plug-ins that engines load: each tells the backend what its engine knows of generations, steps and conditions.

An engine runs the sampling loop itself. May import ``learning`` and the rooms below it.
"""
