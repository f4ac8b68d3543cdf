"""Video denoisers: two streams, refiners, linear attention, sound."""

from typing import Any

import torch
from diffusers.models import transformers as library

from models.base import (
    ATTENTION,
    CROSS,
    DUAL,
    FF,
    HALF,
    HEAD_DIM,
    HEADS,
    JOINT,
    LTX2,
    OUT,
    POOLED_WIDTH,
    SINGLE,
    TEXT_TOKENS,
    TEXT_WIDTH,
    WIDTH,
    Case,
    denoiser,
    noise,
    steps,
    text,
)

HUNYUAN_TREE = {
    "context_embedder.token_refiner.refiner_blocks.*": HALF,
    "transformer_blocks.*": DUAL,
    "single_transformer_blocks.*": SINGLE,
}


HUNYUAN: dict[str, Any] = {
    **ATTENTION,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_WIDTH,
    "rope_axes_dim": (4, 6, 6),
}


def masked_text() -> dict[str, Any]:
    mask = torch.ones(2, TEXT_TOKENS)
    mask[1, -2:] = 0
    return {**text(2), "encoder_attention_mask": mask}


@denoiser("HunyuanVideoTransformer3DModel", HUNYUAN_TREE)
def hunyuan_video() -> Case:
    model = library.HunyuanVideoTransformer3DModel(**HUNYUAN, num_single_layers=2, pooled_projection_dim=POOLED_WIDTH)
    return model, {
        "hidden_states": noise(2, 4, 2, 8, 8),
        "timestep": steps(2).float(),
        **masked_text(),
        "pooled_projections": noise(2, POOLED_WIDTH),
        "guidance": torch.full((2,), 6000.0),
    }


@denoiser(
    "HunyuanVideoFramepackTransformer3DModel",
    HUNYUAN_TREE,
    captured="no",
    note="The number of tokens in every block depends on the values of the text mask, and slots need fixed sizes.",
)
def hunyuan_framepack() -> Case:
    model = library.HunyuanVideoFramepackTransformer3DModel(
        **HUNYUAN,
        num_single_layers=2,
        pooled_projection_dim=POOLED_WIDTH,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    return model, {
        "hidden_states": noise(1, 4, 2, 8, 8),
        "timestep": steps(1),
        **text(1),
        "encoder_attention_mask": torch.ones(1, TEXT_TOKENS),
        "pooled_projections": noise(1, POOLED_WIDTH),
        "guidance": torch.full((1,), 6000.0),
        "image_embeds": noise(1, 4, 16),
        "indices_latents": torch.arange(2),
        "latents_clean": noise(1, 4, 2, 8, 8),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": noise(1, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": noise(1, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4),
    }


@denoiser(
    "HunyuanVideo15Transformer3DModel",
    {
        "context_embedder.token_refiner.refiner_blocks.*": HALF,
        "transformer_blocks.*": DUAL,
        "transformer_blocks.last": HALF,
    },
    captured="no",
    note="The order of the text tokens is made by boolean indexing; behind that Dynamo breaks at every block.",
)
def hunyuan_video15() -> Case:
    model = library.HunyuanVideo15Transformer3DModel(
        **HUNYUAN, patch_size=2, text_embed_2_dim=8, image_embed_dim=12, target_size=16, task_type="t2v"
    )
    return model, {
        "hidden_states": noise(2, 4, 2, 8, 8),
        "timestep": steps(2).float(),
        **masked_text(),
        "encoder_hidden_states_2": noise(2, 4, 8),
        "encoder_attention_mask_2": torch.ones(2, 4),
        "image_embeds": torch.zeros(2, 3, 12),
    }


@denoiser(
    "Kandinsky5Transformer3DModel",
    {
        "text_transformer_blocks.*": {"self_attention": "out_layer", "feed_forward": "out_layer"},
        "visual_transformer_blocks.*": {
            "self_attention": "out_layer",
            "cross_attention": "out_layer",
            "feed_forward": "out_layer",
        },
    },
)
def kandinsky5() -> Case:
    model = library.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=POOLED_WIDTH,
        time_dim=16,
        out_visual_dim=4,
        model_dim=WIDTH,
        ff_dim=2 * WIDTH,
        num_text_blocks=2,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    return model, {
        "hidden_states": noise(1, 2, 8, 8, 4),
        **text(1),
        "timestep": torch.full((1,), 900.0),
        "pooled_projections": noise(1, POOLED_WIDTH),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


@denoiser(
    "Kandinsky6Transformer3DModel",
    {
        "video_text_transformer_blocks.*": {"attn": "out_layer", "feed_forward": FF},
        "audio_text_transformer_blocks.*": {"attn": "out_layer", "feed_forward": FF},
        "visual_transformer_blocks.*": {
            "video_dec_block.self_attention": "out_layer",
            "video_dec_block.cross_attention": "out_layer",
            "video_dec_block.feed_forward": FF,
            "audio_dec_block.self_attention": "out_layer",
            "audio_dec_block.cross_attention": "out_layer",
            "audio_dec_block.feed_forward": FF,
            "va_cross_attention": "out_layer",
            "av_cross_attention": "out_layer",
        },
    },
    sample=("hidden_states", "audio_hidden_states"),
)
def kandinsky6() -> Case:
    model = library.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=POOLED_WIDTH,
        time_dim=16,
        model_dim=WIDTH,
        ff_dim=2 * WIDTH,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=False,
        in_audio_dim=4,
        out_audio_dim=4,
    )
    return model, {
        "hidden_states": noise(1, 2, 8, 8, 4),
        "audio_hidden_states": noise(1, 5, 4),
        **text(1),
        "timestep": torch.full((1,), 900.0),
        "pooled_projections": noise(1, POOLED_WIDTH),
    }


@denoiser(
    "Kandinsky6SRTransformer3DModel",
    {"visual_transformer_blocks.*": {"self_attention": "out_layer", "feed_forward": FF}},
)
def kandinsky6_sr() -> Case:
    model = library.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=WIDTH,
        ff_dim=2 * WIDTH,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        nabla_window=(3, 3, 3),
    )
    return model, {"hidden_states": noise(1, 2, 8, 8, 9), "timestep": torch.full((1,), 900.0)}


@denoiser(
    "MotifVideoTransformer3DModel",
    {
        # The cross-attention reads what the attention gives, so the two are one decision.
        "transformer_blocks.*": {**DUAL, "attn": (*JOINT, "/cross_attn.to_out.0")},
        "single_transformer_blocks.*": {"proj_out": "", "cross_attn": OUT},
    },
)
def motif_video() -> Case:
    model = library.MotifVideoTransformer3DModel(
        **ATTENTION,
        in_channels=9,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        text_embed_dim=TEXT_WIDTH,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return model, {"hidden_states": noise(2, 9, 2, 8, 8), "timestep": steps(2), **text(2)}


@denoiser("SanaVideoTransformer3DModel", {"transformer_blocks.*": {"attn1": OUT, "attn2": OUT, "ff": ""}})
def sana_video() -> Case:
    model = library.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **ATTENTION,
        num_layers=2,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return model, {"hidden_states": noise(2, 4, 2, 8, 8), "timestep": steps(2), **text(2)}


@denoiser("SanaWMTransformer3DModel", {"blocks.*": {"attn": "", "cross_attn": "", "mlp": ""}})
def sana_wm() -> Case:
    model = library.SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        softmax_every_n=2,
        linear_head_dim=HEAD_DIM,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=2,
        image_size=64,
        caption_channels=TEXT_WIDTH,
        mixed_precision="no",
    )
    return model, {
        "hidden_states": noise(1, 4, 2, 4, 4),
        "timestep": torch.full((1, 1, 2), 900.0),
        "encoder_hidden_states": noise(1, 1, TEXT_TOKENS, TEXT_WIDTH),
        "mask": torch.ones(1, TEXT_TOKENS),
    }


@denoiser("SanaWMLTX2RefinerTransformer3DModel", {"transformer_blocks.*": CROSS})
def sana_wm_refiner() -> Case:
    model = library.SanaWMLTX2RefinerTransformer3DModel(**LTX2)
    return model, {
        "hidden_states": noise(2, 32, 4),
        **text(2),
        "timestep": torch.full((2,), 900.0),
        "video_rotary_emb": (noise(2, 32, WIDTH).cos(), noise(2, 32, WIDTH).sin()),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS),
    }


@denoiser(
    "MiniMaxH3Transformer3DModel",
    {"token_refiner.refiner_blocks.*": HALF, "transformer_blocks.*": HALF},
    sample=("hidden_states", "audio_hidden_states"),
)
def minimax_h3() -> Case:
    model = library.MiniMaxH3Transformer3DModel(
        **ATTENTION,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=48,
        in_channels=4,
        audio_in_channels=6,
        text_dim=TEXT_WIDTH,
        freq_dim=8,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    audio, video = 5, 16
    kinds = torch.tensor([1] * TEXT_TOKENS + [2] * audio + [0] * video)
    return model, {
        "hidden_states": noise(2, video, 16),
        "audio_hidden_states": noise(2, audio, 6),
        **text(2),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (kinds == 2).long(),
        "token_tags": kinds,
        "position_ids": torch.arange(len(kinds))[:, None].expand(-1, 3).float(),
        "video_indices": torch.arange(TEXT_TOKENS + audio, len(kinds)),
        "audio_indices": torch.arange(TEXT_TOKENS, TEXT_TOKENS + audio),
        "text_indices": torch.arange(TEXT_TOKENS),
    }
