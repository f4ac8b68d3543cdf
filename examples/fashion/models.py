"""The two untrained transformers: one conditioned on a label, one on words by joint attention."""
# mypy: allow-subclassing-any, allow-untyped-calls

from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

from examples.fashion.data import NAMES, SIZE
from examples.fashion.words import WordEncoder
from soda_compile.digits.train import initialise, initialise_linears

PATCH = 4
DIT_LAYERS, DIT_HEADS, DIT_HEAD_WIDTH = 7, 6, 32
FLOW_LAYERS, FLOW_HEADS, FLOW_HEAD_WIDTH = 6, 5, 32
WORD_WIDTH = 64


class TextConditioned(nn.Module):
    """A transformer with the word encoder that is trained along with it."""

    def __init__(self, transformer: SD3Transformer2DModel, words: WordEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.words = words

    def forward(self, images: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Return the velocity (n, 1, 28, 28) of noisy images at timesteps (n,) with the words of tokens (n, length)."""
        vectors, pooled = self.words(tokens)
        velocity: Tensor = self.transformer(
            images, encoder_hidden_states=vectors, pooled_projections=pooled, timestep=timestep, return_dict=False
        )[0]
        return velocity


def new_dit(layers: int = DIT_LAYERS) -> DiTTransformer2DModel:
    """Return the class-conditional model: 49 tokens of 4x4 pixels, 7 layers, 6 heads of 32."""
    model: DiTTransformer2DModel = DiTTransformer2DModel(
        num_attention_heads=DIT_HEADS,
        attention_head_dim=DIT_HEAD_WIDTH,
        in_channels=1,
        num_layers=layers,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=len(NAMES),
    )
    initialise(model)
    model.eval()  # in train mode diffusers drops labels in each block on its own; there is no other dropout
    return model


def new_flow(layers: int = FLOW_LAYERS) -> TextConditioned:
    """Return the text-conditional model: 49 tokens of 4x4 pixels and 4 of words, 6 layers, 5 heads of 32."""
    width = FLOW_HEADS * FLOW_HEAD_WIDTH
    transformer: SD3Transformer2DModel = SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=PATCH,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        attention_head_dim=FLOW_HEAD_WIDTH,
        num_attention_heads=FLOW_HEADS,
        joint_attention_dim=WORD_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=WORD_WIDTH,
        pos_embed_max_size=SIZE // PATCH,
        qk_norm="rms_norm",  # keeps attention in bfloat16 stable
    )
    close_branches(transformer)
    vocabulary = sorted({word for name in NAMES for word in name.split()})
    return TextConditioned(transformer, WordEncoder(vocabulary, WORD_WIDTH)).eval()


def close_branches(transformer: SD3Transformer2DModel) -> None:
    """Initialise as in DiT (arXiv 2212.09748): branches start closed (adaLN-Zero), so the first output is zero."""
    blocks: Any = transformer.transformer_blocks
    modulations = [norm.linear for block in blocks for norm in (block.norm1, block.norm1_context)]
    initialise_linears(transformer, zero=(*modulations, transformer.norm_out.linear, transformer.proj_out))


def parameter_count(model: torch.nn.Module) -> int:
    """Return the number of parameters, those that layers share counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
