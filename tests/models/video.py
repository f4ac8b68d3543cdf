"""Video denoisers."""

import torch
from diffusers.models import transformers as library

from models.base import (
    ATTENTION,
    CROSS,
    FF,
    HEAD_DIM,
    HEADS,
    JOINT,
    LTX2,
    OUT,
    SELF,
    TEXT_TOKENS,
    TEXT_WIDTH,
    WIDTH,
    Case,
    denoiser,
    grid,
    noise,
    steps,
    text,
)


@denoiser("LatteTransformer3DModel", {"transformer_blocks.*": CROSS, "temporal_transformer_blocks.*": SELF})
def latte() -> Case:
    model = library.LatteTransformer3DModel(
        **ATTENTION,
        in_channels=4,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )
    return model, {"hidden_states": noise(2, 4, 3, 8, 8), "timestep": steps(2), **text(2)}


@denoiser("AllegroTransformer3DModel", {"transformer_blocks.*": CROSS})
def allegro() -> Case:
    model = library.AllegroTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=24,
        in_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        sample_width=8,
        sample_height=8,
        sample_frames=2,
        caption_channels=TEXT_WIDTH,
    )
    rotary = tuple((noise(4, 8).cos(), noise(4, 8).sin()) for _ in range(3))
    positions = tuple(grid(2, 4, 4)[:, axis].expand(2, -1) for axis in range(3))
    return model, {
        "hidden_states": noise(2, 4, 2, 8, 8),
        "timestep": steps(2),
        **text(2),
        "attention_mask": torch.ones(2, 2, 8, 8),
        "image_rotary_emb": (rotary, positions),
    }


@denoiser("CogVideoXTransformer3DModel", {"transformer_blocks.*": SELF})
def cogvideox() -> Case:
    model = library.CogVideoXTransformer3DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=TEXT_TOKENS,
    )
    return model, {"hidden_states": noise(2, 3, 4, 8, 8), "timestep": steps(2), **text(2)}


@denoiser(
    "ConsisIDTransformer3DModel",
    {
        **{f"local_facial_extractor.layers.{layer}.0": {"": "to_out"} for layer in range(2)},
        **{f"local_facial_extractor.layers.{layer}.1": {"": "3"} for layer in range(2)},
        "transformer_blocks.*": SELF,
        "perceiver_cross_attention.*": {"": "to_out"},
    },
)
def consis_id() -> Case:
    model = library.ConsisIDTransformer3DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=1,
        patch_size=2,
        max_text_seq_length=TEXT_TOKENS,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=4,
        LFE_vit_dim=4,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=2,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    return model, {
        "hidden_states": noise(2, 1, 4, 8, 8),
        "timestep": steps(2),
        **text(2),
        "id_vit_hidden": [noise(2, 2, 4)],
        "id_cond": noise(2, 4),
    }


@denoiser(
    "EasyAnimateTransformer3DModel",
    {
        "transformer_blocks.*": {"attn1": JOINT, "ff": FF, "txt_ff": FF},
        "transformer_blocks.last": {"attn1": OUT, "ff": "net.2@1"},
    },
)
def easy_animate() -> Case:
    model = library.EasyAnimateTransformer3DModel(
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        after_norm=True,
    )
    return model, {"hidden_states": noise(2, 4, 2, 8, 8), "timestep": steps(2), **text(2)}


@denoiser("CosmosTransformer3DModel", {"transformer_blocks.*": CROSS})
def cosmos() -> Case:
    model = library.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **ATTENTION,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT_WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        concat_padding_mask=False,
        extra_pos_embed_type="learnable",
    )
    return model, {"hidden_states": noise(2, 4, 2, 8, 8), "timestep": steps(2), **text(2), "fps": 30}


@denoiser(
    "Cosmos3OmniTransformer",
    {
        # The text stream attends to itself, the image stream to both.
        "layers.*": {
            "self_attn": "to_out",
            "self_attn#2": "to_add_out",
            "mlp": "down_proj",
            "mlp_moe_gen": "down_proj",
        },
    },
    sample=("vision_tokens",),
    time=("vision_timesteps",),
    left=("to_k", "to_v"),
    note="The image stream reads the keys and values of the text stream, so they stay computed.",
)
def cosmos3() -> Case:
    model = library.Cosmos3OmniTransformer(
        head_dim=HEAD_DIM,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        latent_channel=4,
        latent_patch_size=2,
        patch_latent_dim=16,
        num_attention_heads=HEADS,
        num_hidden_layers=2,
        num_key_value_heads=1,
        rope_axes_dim=[4, 2, 2],
        vocab_size=32,
    )
    tokens = torch.arange(4, 20)
    return model, {
        "input_ids": torch.tensor([1, 2, 3, 4]),
        "text_indexes": torch.arange(4),
        "position_ids": torch.arange(20).expand(3, -1),
        "und_len": 4,
        "sequence_length": 20,
        "vision_tokens": [noise(1, 4, 1, 8, 8)],
        "vision_token_shapes": [(1, 4, 4)],
        "vision_sequence_indexes": tokens,
        "vision_mse_loss_indexes": tokens,
        "vision_timesteps": torch.full((16,), 900.0),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


@denoiser(
    "MochiTransformer3DModel",
    {
        "transformer_blocks.*": {"attn1": JOINT, "ff": FF, "ff_context": FF},
        "transformer_blocks.last": SELF,
    },
)
def mochi() -> Case:
    model = library.MochiTransformer3DModel(
        **ATTENTION,
        patch_size=2,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=8,
        max_sequence_length=TEXT_TOKENS,
    )
    return model, {
        "hidden_states": noise(2, 4, 2, 8, 8),
        "timestep": steps(2),
        **text(2),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.bool),
    }


@denoiser("LTXVideoTransformer3DModel", {"transformer_blocks.*": CROSS})
def ltx() -> Case:
    model = library.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **ATTENTION,
        cross_attention_dim=WIDTH,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    return model, {
        "hidden_states": noise(2, 32, 4),
        "timestep": steps(2),
        **text(2),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


@denoiser(
    "LTX2VideoTransformer3DModel",
    {
        "transformer_blocks.*": {
            **CROSS,
            "audio_attn1": OUT,
            "audio_attn2": OUT,
            "audio_to_video_attn": OUT,
            "video_to_audio_attn": OUT,
            "audio_ff": FF,
        },
    },
    sample=("hidden_states", "audio_hidden_states"),
)
def ltx2() -> Case:
    model = library.LTX2VideoTransformer3DModel(**LTX2)
    return model, {
        "hidden_states": noise(2, 32, 4),
        "audio_hidden_states": noise(2, 5, 4),
        **text(2),
        "audio_encoder_hidden_states": noise(2, TEXT_TOKENS, TEXT_WIDTH),
        "timestep": torch.full((2,), 900.0),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "audio_num_frames": 5,
        "fps": 25.0,
    }
