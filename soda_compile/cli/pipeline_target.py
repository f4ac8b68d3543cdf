"""Finds the pipeline that a target on the command line names, and what it is called with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from soda_compile.cli.extras import needed
from soda_compile.cli.target import FORMS, kind_of, value_of
from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.denoisers import is_pipeline

Setting = Annotated[
    list[str] | None, typer.Option("--set", help="An argument of the pipeline, as num_inference_steps=28.")
]
PIPELINE_FORMS = f"A folder with a diffusers pipeline, or {FORMS}, which returns a pipeline and its arguments"


def load_pipeline(text: str) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline and what it is called with.

    Args:
        text: A folder that ``save_pretrained`` wrote; or ``module:function`` or ``path/to/file.py:function``, where
            the function takes no arguments and returns the pipeline and its arguments by name.

    Raises:
        OptionError: There is no such thing, it fails, or returns something else.
    """
    if Path(text).is_dir():
        return _from_folder(Path(text)), {}
    match value_of(text):
        case (pipe, Mapping() as arguments) if is_pipeline(pipe):
            return pipe, dict(arguments)
        case other:
            expected = "a diffusers pipeline and its arguments as a dict"
            raise OptionError(f"target {text!r} must return {expected}; it returned {kind_of(other)}")


def with_settings(call: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Add arguments from the command line, ``name=value``, to those of a pipeline.

    Args:
        call: What the pipeline is called with; they are added here.
        given: The arguments, values as JSON or as plain text.

    Returns:
        The same as ``accelerate`` takes them.

    Raises:
        OptionError: One has another form.
    """
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--set is {text!r}; write it as name=value")
        try:
            call[name] = json.loads(value)
        except ValueError:
            call[name] = value  # a prompt need not be quoted
    known: dict[str, Any] = {name: call[name] for name in ("num_inference_steps", "guidance_scale") if name in call}
    return {**known, "pipeline_options": {name: value for name, value in call.items() if name not in known}}


def _from_folder(path: Path) -> Any:
    if not (path / "model_index.json").is_file():
        raise OptionError(f"the folder {path} holds no pipeline: there is no model_index.json; see save_pretrained")
    with needed("a pipeline", "diffusers"):
        from diffusers import DiffusionPipeline
    return DiffusionPipeline.from_pretrained(path)  # type: ignore[no-untyped-call]
