"""One page, or one picture, on what was measured, what was planned from it, and what that was seen to do.

May import everything up to ``acceleration``.
"""
