"""The entry of ``torch.compile(backend="soda")`` and its options.

May import ``runtime`` and the rooms below it.
"""

from soda_compile.backend.entry import soda

__all__ = ["soda"]
