"""The demonstration: a small trained model, calibrated, planned, compiled and compared with its rivals.

May import everything but ``cli``.
"""
