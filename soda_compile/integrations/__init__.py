"""Frameworks that host denoisers: ``base`` says what the project asks of one, ``diffusers`` answers.

May import ``runtime`` and the rooms below it.
"""
