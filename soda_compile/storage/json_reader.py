"""One reader of JSON files: parse, validate against a model, and say in one sentence what is wrong."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from soda_compile.errors import SodaError

Model = TypeVar("Model")

_VERSIONS = (("schema",), ("format",))  # under another version all other complaints mean nothing


def read_json(
    model: type[Model], text: str | bytes | memoryview, error: type[SodaError], advice: str, source: str = ""
) -> Model:
    """Read JSON text as an instance of a pydantic model or of a dataclass that pydantic can validate.

    Args:
        model: The class to make.
        text: The JSON text.
        error: The class of the errors.
        advice: The way out, the end of every message, such as "make the plan again".
        source: The beginning of every message, such as the path of the file.

    Raises:
        SodaError: As ``error``: the text is no JSON, has a repeated key, or does not fit the model. The message
            has the path of the key and the reason.
    """
    data = text if isinstance(text, str) else bytes(text)
    try:
        json.loads(data, object_pairs_hook=_refuse_repeated_keys)
        return TypeAdapter(model).validate_json(data)
    except ValidationError as problems:
        reason = _first_problem(problems)
    except (ValueError, RecursionError) as problem:
        reason = f"damaged JSON: {problem}"
    raise error(f"{source}{': ' if source else ''}{reason}; {advice}")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"repeated key {next(key for key in keys if keys.count(key) > 1)!r}")
    return result


def _first_problem(error: ValidationError) -> str:
    first, *_ = sorted(error.errors(include_url=False), key=lambda problem: problem["loc"] not in _VERSIONS)
    where = ".".join(map(str, first["loc"])) or "the file"
    if first["loc"] in _VERSIONS and first["type"] == "literal_error":
        return f"{where} {first['input']!r} is not known; this version reads {first['ctx']['expected']}"
    return f"{where}: {first['msg']}"
