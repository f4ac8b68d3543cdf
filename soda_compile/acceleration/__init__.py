"""``accelerate`` and ``restore``: a pipeline compiled by a plan that is given, stored or measured.

May import ``measure``, ``packages`` and the rooms below them.
"""
