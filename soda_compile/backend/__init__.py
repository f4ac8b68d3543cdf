"""The entry of ``torch.compile(backend="soda")``, its options, and inspection of a model.

May import ``runtime`` and the rooms below it.
"""

from soda_compile.backend import entry
from soda_compile.torch_internals.backend_errors import errors_unwrapped

__all__ = ["soda"]

soda = errors_unwrapped(entry.soda)
