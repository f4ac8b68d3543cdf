"""Denoisers that keep the samples of a batch elsewhere than first, fold them with others, or mix them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WIDTH = 16


@contextmanager
def encoder_layers_unfused() -> Iterator[None]:
    """Encoder layers are the operators they are made of inside, as on a device, not the one that inference takes."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fused)


class Denoiser(nn.Module):
    """Two blocks of torch's own encoder layer, in any order of axes."""

    def __init__(self, batch_first: bool, fold: int = 1) -> None:
        super().__init__()
        self.batch_first, self.fold = batch_first, fold
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=batch_first) for _ in range(2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(x) + self.time(t[:, None])[:, None]
        samples, tokens, width = h.shape
        h = h.reshape(samples * self.fold, tokens // self.fold, width)
        h = h if self.batch_first else h.transpose(0, 1)
        for block in self.blocks:
            h = block(h)
        h = h if self.batch_first else h.transpose(0, 1)
        return self.head(h.reshape(samples, tokens, width))


class Mixed(Denoiser):
    """Samples attend to each other through their mean, so that only the whole batch can be measured."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = (self.embed(x) + self.time(t[:, None])[:, None]).mean(0)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.head(h[:, 0]).expand(x.shape)
