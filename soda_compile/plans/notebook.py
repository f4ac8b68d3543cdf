"""How objects show themselves in notebooks: as a picture where matplotlib is there, and as text where it is not."""

import base64
import html
from collections.abc import Callable


def picture_or_text(draw: Callable[[], bytes], text: str) -> str:
    """Return HTML.

    Args:
        draw: Gives a PNG; imports matplotlib, which is optional.
        text: What to show without it, and to those who cannot see the picture.
    """
    png = drawn(draw)
    return as_text(text) if png is None else f'<img src="{data_uri(png)}" alt="{html.escape(text, quote=True)}">'


def drawn(draw: Callable[[], bytes]) -> bytes | None:
    """Return what ``draw`` gives; None without matplotlib."""
    try:
        return draw()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None


def as_text(text: str) -> str:
    """Return HTML that shows text as it is."""
    return f"<pre>{html.escape(text)}</pre>"


def data_uri(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
