"""The entry of ``torch.compile(backend="soda")``, its options, and inspection of a model.

May import ``runtime`` and the rooms below it.
"""

from soda_compile.backend.entry import soda

__all__ = ["soda"]
