"""Warnings of torch about itself stay out of what users read; all others come through."""

import copy
import warnings

from torch.utils import _pytree as pytree

from soda_compile.torch_internals.inductor import quiet_copies

OWN = "`isinstance(treespec, LeafSpec)` is deprecated, use `treespec.is_leaf()` instead."


def test_only_the_one_about_torchs_own_class_is_left_out() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_copies():
            copy.deepcopy(pytree.tree_structure(0))
            warnings.warn_explicit(OWN, FutureWarning, "copyreg.py", 105)
            warnings.warn("another", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in caught] == ["another"]
