"""The text encoder of the flow matching model: a trained table of word vectors."""
# mypy: allow-subclassing-any, allow-untyped-calls, allow-untyped-decorators

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # by this name diffusers finds out how to load the class
from torch import Tensor, nn

PAD, NULL = 0, 1
"""Rows of the table before those of the words: filling, and the one word of an empty text."""


class WordEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as all models of diffusers
    """A vector per word, regardless of the order.

    Args:
        vocabulary: the words, in lower case.
        width: length of a vector.
        length: tokens of every text; shorter ones are filled up with a trained pad word.
    """

    @register_to_config
    def __init__(self, vocabulary: Sequence[str], width: int = 64, length: int = 4) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(vocabulary) + 2, width)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Return the rows of each text's words, int64 of shape (n, length), on the CPU.

        Raises:
            ValueError: for a word outside the vocabulary, or too many words.
        """
        vocabulary, length = list(self.config["vocabulary"]), int(self.config["length"])
        tokens = torch.full((len(texts), length), PAD)
        for row, text in enumerate(texts):
            words = text.lower().split()
            unknown = [word for word in words if word not in vocabulary]
            if unknown or len(words) > length:
                raise ValueError(f"{text!r}: up to {length} words expected, of these: {', '.join(vocabulary)}")
            rows = [vocabulary.index(word) + 2 for word in words] or [NULL]
            tokens[row, : len(rows)] = torch.tensor(rows)
        return tokens

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts.

        Args:
            tokens: as `tokenise` returns them.

        Returns:
            The word vectors, of shape (n, length, width), and their mean without the filling, of shape (n, width).
        """
        vectors: Tensor = self.vectors(tokens)
        kept = (tokens != PAD).to(vectors.dtype)[..., None]
        return vectors, (vectors * kept).sum(1) / kept.sum(1)
