"""The only place that imports private parts of torch; each file names what it relies on.

May import nothing but ``errors`` and ``storage``.
"""
