"""The options of backend "soda" that an engine hands on, checked before any work starts."""

import json
from collections.abc import Mapping
from typing import Any

from soda_compile.backend.options import check_options
from soda_compile.errors import OptionError
from soda_compile.learning.wish import take_wish

DEFAULT = {"speedup": 2.0}


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as they are; nothing at all asks for a speedup of 2.

    Raises:
        OptionError: For an unknown option, or a value that cannot be used.
        PlanError: For a plan file that is missing, damaged or of another version.
    """
    given = dict(options) or dict(DEFAULT)
    check_options(take_wish(given)[1])
    return given


def read(text: str, place: str) -> dict[str, Any]:
    """Return the options of a JSON object that stands at ``place``, checked.

    Raises:
        OptionError: If it is no JSON object, and as ``checked`` does.
        PlanError: As ``checked`` does.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{place} is {text!r}, which is no JSON ({error}); give an object: {_EXAMPLE}") from error
    if not isinstance(options, dict):
        raise OptionError(f"{place} is {text!r}; give an object of options: {_EXAMPLE}")
    return checked(options)


_EXAMPLE = json.dumps(DEFAULT)
