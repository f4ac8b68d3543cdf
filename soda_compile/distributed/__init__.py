"""Processes that work together: what they tell each other, and what all of them do where one fails.

May import ``errors`` and ``torch_internals``. Where torch has no ``torch.distributed`` everything here can be imported,
and groups are refused.
"""
