"""What a command needs that a plain installation lacks: named with the command that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from soda_compile.errors import OptionError

EXTRAS = {
    "demo": ("diffusers", "matplotlib", "sklearn", "transformers", "accelerate", "PIL"),
    "diffusers": ("diffusers",),
    "plot": ("matplotlib",),
}


@contextmanager
def needed(what: str, extra: str) -> Iterator[None]:
    """Import within this what an extra of the project brings.

    Args:
        what: What needs it, as the message says it.
        extra: The extra of pyproject.toml.

    Raises:
        OptionError: A module of the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS[extra]:
            raise
        raise OptionError(f"{what} needs {missing}: pip install 'soda-compile[{extra}]'") from error
