"""Image denoisers with one stream that reads its conditioning by modulation or cross-attention."""

import torch
from diffusers.models import transformers as library

from models.base import (
    CROSS,
    HEAD_DIM,
    HEADS,
    OUT,
    SELF,
    TEXT_TOKENS,
    TEXT_WIDTH,
    WIDTH,
    Case,
    denoiser,
    labels,
    noise,
    steps,
    text,
)


@denoiser("DiTTransformer2DModel", {"transformer_blocks.*": SELF})
def dit() -> Case:
    model = library.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return model, {"hidden_states": noise(2, 4, 8, 8), "timestep": steps(2), "class_labels": labels(2)}


@denoiser("PixArtTransformer2DModel", {"transformer_blocks.*": CROSS})
def pixart() -> Case:
    model = library.PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        patch_size=2,
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": steps(2),
        **text(2),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


@denoiser("Transformer2DModel", {"transformer_blocks.*": CROSS})
def transformer_2d() -> Case:
    model = library.Transformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        norm_num_groups=2,
        cross_attention_dim=TEXT_WIDTH,
        sample_size=8,
    )
    return model, {"hidden_states": noise(2, 4, 8, 8), **text(2)}


@denoiser("DreamLiteTransformer2DModel", {"transformer_blocks.*": CROSS})
def dreamlite() -> Case:
    model = library.DreamLiteTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_layers=2,
        norm_num_groups=2,
        cross_attention_dim=TEXT_WIDTH,
    )
    return model, {"hidden_states": noise(2, 4, 8, 8), **text(2)}


@denoiser("TransformerTemporalModel", {"transformer_blocks.*": CROSS})
def temporal() -> Case:
    model = library.TransformerTemporalModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, in_channels=4, num_layers=2, norm_num_groups=2
    )
    return model, {"hidden_states": noise(6, 4, 4, 4), "num_frames": 3}


@denoiser("PriorTransformer", {"transformer_blocks.*": SELF})
def prior() -> Case:
    model = library.PriorTransformer(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, num_layers=2, embedding_dim=8, num_embeddings=7
    )
    return model, {
        "hidden_states": noise(2, 8),
        "timestep": steps(2),
        "proj_embedding": noise(2, 8),
        "encoder_hidden_states": noise(2, 7, 8),
    }


@denoiser("HunyuanDiT2DModel", {"blocks.*": CROSS})
def hunyuan_dit() -> Case:
    model = library.HunyuanDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        hidden_size=WIDTH,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        text_len=TEXT_TOKENS,
        text_len_t5=4,
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": steps(2).float(),
        **text(2),
        "text_embedding_mask": torch.ones(2, TEXT_TOKENS),
        "encoder_hidden_states_t5": noise(2, 4, 8),
        "text_embedding_mask_t5": torch.ones(2, 4),
        "image_meta_size": torch.tensor([[64.0, 64, 8, 8, 0, 0]] * 2),
        "style": torch.zeros(2, dtype=torch.int64),
        "image_rotary_emb": (noise(16, HEAD_DIM).cos(), noise(16, HEAD_DIM).sin()),
    }


@denoiser(
    "LuminaNextDiT2DModel",
    {
        # Both attentions are summed and share the projection that belongs to the second.
        "layers.*": {"attn2": OUT, "feed_forward": "linear_2"},
    },
    uninitialised=("pad_token",),
)
def lumina_next() -> Case:
    model = library.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_attention_heads=HEADS,
        num_kv_heads=1,
        multiple_of=8,
        learn_sigma=False,
        cross_attention_dim=TEXT_WIDTH,
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": torch.full((2,), 0.9),
        **text(2),
        "encoder_mask": torch.ones(2, TEXT_TOKENS),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, HEAD_DIM // 2), noise(8, 8, HEAD_DIM // 2)),
        "cross_attention_kwargs": {},
    }


@denoiser(
    "SanaTransformer2DModel",
    {"transformer_blocks.*": {"attn1": OUT, "attn2": OUT, "ff": "conv_point"}},
)
def sana() -> Case:
    model = library.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=6,
    )
    return model, {"hidden_states": noise(2, 4, 6, 6), "timestep": steps(2), **text(2)}


@denoiser("PRXTransformer2DModel", {"blocks.*": {"attention": OUT, "down_proj": ""}})
def prx() -> Case:
    model = library.PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=TEXT_WIDTH,
        hidden_size=WIDTH,
        num_heads=HEADS,
        depth=2,
        axes_dim=(8, 8),
    )
    return model, {"hidden_states": noise(2, 4, 8, 8), "timestep": torch.full((2,), 0.9), **text(2)}
