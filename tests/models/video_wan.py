"""Wan and the video denoisers that grew out of it."""

from typing import Any

import torch
from diffusers.models import transformers as library

from models.base import FF, HEAD_DIM, HEADS, OUT, TEXT_WIDTH, WIDTH, Case, denoiser, noise, steps, text

WAN_BLOCK = {"attn1": OUT, "attn2": OUT, "ffn": FF}

WAN: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 2 * WIDTH,
    "num_layers": 2,
}


def wan_inputs() -> dict[str, Any]:
    return {"hidden_states": noise(2, 4, 2, 8, 8), "timestep": steps(2), **text(2)}


@denoiser("WanTransformer3DModel", {"blocks.*": WAN_BLOCK})
def wan() -> Case:
    return library.WanTransformer3DModel(**WAN, rope_max_seq_len=32), wan_inputs()


@denoiser(
    "WanVACETransformer3DModel",
    {"vace_blocks.*": WAN_BLOCK, "blocks.*": WAN_BLOCK},
    left=("proj_out",),
    note="The projections that hand hints to the main stream lie on the control stream itself.",
)
def wan_vace() -> Case:
    model = library.WanVACETransformer3DModel(
        **{**WAN, "num_layers": 3}, rope_max_seq_len=32, vace_layers=[0, 2], vace_in_channels=6
    )
    return model, {**wan_inputs(), "control_hidden_states": noise(2, 6, 2, 8, 8)}


@denoiser("WanAnimateTransformer3DModel", {"blocks.*": WAN_BLOCK, "face_adapter.*": {"": "to_out"}})
def wan_animate() -> Case:
    model = library.WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        image_dim=16,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return model, {
        **text(1),
        "hidden_states": noise(1, 12, 3, 8, 8),
        "timestep": steps(1),
        "encoder_hidden_states_image": noise(1, 4, 16),
        "pose_hidden_states": noise(1, 4, 2, 8, 8),
        "face_pixel_values": noise(1, 3, 5, 16, 16),
    }


@denoiser(
    "WanAnimate2Transformer3DModel",
    {"blocks.*": {"self_attn": OUT, "cross_attn": OUT, "ffn": "2"}},
    captured="no",
    note="Its attention writes keys and values to a cache object, and it breaks in each attention.",
)
def wan_animate2() -> Case:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    model = library.WanAnimate2Transformer3DModel(
        text_len=6,
        in_dim=8,
        dim=WIDTH,
        ffn_dim=2 * WIDTH,
        freq_dim=32,
        text_dim=TEXT_WIDTH,
        out_dim=4,
        num_heads=HEADS,
        num_layers=2,
        use_img_emb=False,
    )
    return model, {
        "hidden_states": [noise(4, 2, 4, 4)],
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": [noise(6, TEXT_WIDTH)],
        "condition_latents": [noise(4, 2, 4, 4)],
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


@denoiser("SkyReelsV2Transformer3DModel", {"blocks.*": WAN_BLOCK})
def skyreels() -> Case:
    return library.SkyReelsV2Transformer3DModel(**WAN, rope_max_seq_len=32), wan_inputs()


@denoiser("ChronoEditTransformer3DModel", {"blocks.*": WAN_BLOCK})
def chrono_edit() -> Case:
    return library.ChronoEditTransformer3DModel(**WAN, rope_max_seq_len=32), wan_inputs()


@denoiser("AnyFlowTransformer3DModel", {"blocks.*": WAN_BLOCK}, time=("timestep", "r_timestep"))
def any_flow() -> Case:
    model = library.AnyFlowTransformer3DModel(**{**WAN, "freq_dim": 256}, rope_max_seq_len=32)
    return model, {
        "hidden_states": noise(2, 2, 4, 8, 8),
        "timestep": torch.full((2, 2), 900.0),
        "r_timestep": torch.full((2, 2), 800.0),
        **text(2),
    }


@denoiser("AnyFlowFARTransformer3DModel", {"blocks.*": WAN_BLOCK}, time=("timestep", "r_timestep"))
def any_flow_far() -> Case:
    model = library.AnyFlowFARTransformer3DModel(
        **{**WAN, "freq_dim": 256}, rope_max_seq_len=32, compressed_patch_size=(1, 4, 4), full_chunk_limit=3
    )
    return model, {
        "hidden_states": noise(1, 4, 4, 8, 8),
        "timestep": torch.full((1, 4), 900.0),
        "r_timestep": torch.full((1, 4), 800.0),
        **text(1),
        "chunk_partition": [2, 2],
    }


@denoiser("HeliosTransformer3DModel", {"blocks.*": WAN_BLOCK})
def helios() -> Case:
    model = library.HeliosTransformer3DModel(**WAN, rope_dim=(4, 6, 6))
    return model, {
        "hidden_states": noise(1, 4, 2, 8, 8),
        "timestep": steps(1),
        **text(1),
        "indices_hidden_states": torch.arange(2.0).expand(1, -1),
        "indices_latents_history_short": torch.zeros(1, 1),
        "indices_latents_history_mid": torch.zeros(1, 2),
        "indices_latents_history_long": torch.zeros(1, 4),
        "latents_history_short": noise(1, 4, 1, 8, 8),
        "latents_history_mid": noise(1, 4, 2, 8, 8),
        "latents_history_long": noise(1, 4, 4, 8, 8),
    }
