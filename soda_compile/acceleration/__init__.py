"""``accelerate`` and ``restore``: a pipeline compiled by a plan that is given, stored or measured.

``plan``: a plan for the measured schedule, or for another one that is derived from it.

May import ``measure``, ``packages`` and the rooms below them.
"""
