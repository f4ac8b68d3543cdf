"""Diffusers' pipelines, schedulers and offloading.

May import ``runtime`` and the rooms below it.
"""
