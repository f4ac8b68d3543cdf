"""The digits pipeline with one block, for what serves it."""

from pathlib import Path

from soda_compile.digits.pipeline import load


def save_short_pipeline(folder: Path) -> None:
    """Save the trained pipeline with the first of its blocks alone, which draws grey and is soon compiled."""
    pipe = load()
    blocks = pipe.transformer.transformer_blocks
    pipe.transformer.transformer_blocks = blocks[:1]
    pipe.transformer.register_to_config(num_layers=1)
    pipe.save_pretrained(folder / "pipeline")
