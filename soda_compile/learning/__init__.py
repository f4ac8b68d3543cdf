"""The backend that measures itself: the first generations of a model are observed, later ones follow a plan.

May import ``acceleration`` and the rooms below it.
"""

from soda_compile.learning.entry import soda

__all__ = ["soda"]
