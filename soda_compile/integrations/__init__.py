"""Frameworks that host denoisers: what the rest of the project needs to know of them.

May import ``runtime`` and the rooms below it.
"""
