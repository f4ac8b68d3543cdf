"""From a model to one functional graph of ATen operators.

May import ``ir`` and the rooms below it.
"""
