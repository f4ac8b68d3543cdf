"""Image denoisers with two streams, image and text, that attend together."""

from typing import Any

import torch
from diffusers.models import transformers as library

from models.base import (
    DUAL,
    FF,
    HALF,
    HEAD_DIM,
    HEADS,
    JOINT,
    OUT,
    POOLED_WIDTH,
    SELF,
    SINGLE,
    TEXT_TOKENS,
    TEXT_WIDTH,
    WIDTH,
    Case,
    denoiser,
    grid,
    noise,
    steps,
    text,
    unit,
)

SIDE_BY_SIDE = {"": ("attn.to_out.0", "ff.linear_out")}
JOY = {
    "double_blocks.*": {"attn": ("img_attn_proj", "txt_attn_proj"), "img_mlp": FF, "txt_mlp": FF},
    "double_blocks.last": {"attn": "img_attn_proj", "img_mlp": FF},
}
# One feed-forward takes the image, then the text; in the last block nothing reads the text.
COGVIEW4 = {
    "transformer_blocks.*": {"attn1": OUT, "ff": "net.2@1", "ff#2": "net.2@2"},
    "transformer_blocks.last": {"attn1": OUT, "ff": "net.2@1"},
}


def flux_inputs(channels: int = 8) -> dict[str, Any]:
    """A 4 x 4 image of packed tokens and text, with their positions."""
    return {
        "hidden_states": noise(2, 16, channels),
        **text(2),
        "timestep": unit(2),
        "img_ids": grid(1, 4, 4).float(),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


FLUX_SIZES: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 6, 6),
}


@denoiser("FluxTransformer2DModel", {"transformer_blocks.*": DUAL, "single_transformer_blocks.*": SINGLE})
def flux() -> Case:
    model = library.FluxTransformer2DModel(**FLUX_SIZES, pooled_projection_dim=POOLED_WIDTH, guidance_embeds=True)
    return model, {
        **flux_inputs(),
        "pooled_projections": noise(2, POOLED_WIDTH),
        "guidance": torch.full((2,), 3.5),
    }


@denoiser(
    "Flux2Transformer2DModel",
    {
        "transformer_blocks.*": {"attn": JOINT, "ff": "linear_out", "ff_context": "linear_out"},
        "single_transformer_blocks.*": {"attn": "to_out"},
    },
)
def flux2() -> Case:
    model = library.Flux2Transformer2DModel(**{**FLUX_SIZES, "axes_dims_rope": (4, 4, 4, 4)})
    ids = torch.cat([grid(1, 4, 4), torch.zeros(16, 1, dtype=torch.int64)], dim=-1)
    return model, {
        **flux_inputs(),
        "img_ids": ids.expand(2, -1, -1),
        "txt_ids": torch.zeros(2, TEXT_TOKENS, 4, dtype=torch.int64),
        "guidance": torch.full((2,), 3.5),
    }


@denoiser(
    "Flux3Transformer2DModel",
    {
        "txt_mode_blocks.*": SIDE_BY_SIDE,
        "mode_blocks.image.*": SIDE_BY_SIDE,
        "mode_blocks.image_cond.*": SIDE_BY_SIDE,
        "single_transformer_blocks.*": SIDE_BY_SIDE,
    },
)
def flux3() -> Case:
    model = library.Flux3Transformer2DModel(
        **{**FLUX_SIZES, "axes_dims_rope": (4, 4, 4, 4)}, cond_in_channels=8, timestep_channels=32
    )
    ids = torch.cat([grid(1, 4, 4), torch.zeros(16, 1, dtype=torch.int64)], dim=-1).float()
    return model, {
        **flux_inputs(),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT_TOKENS, 4),
        "image_cond_hidden_states": noise(2, 16, 8),
        "image_cond_ids": ids,
    }


@denoiser("BriaTransformer2DModel", {"transformer_blocks.*": DUAL, "single_transformer_blocks.*": SINGLE})
def bria() -> Case:
    return library.BriaTransformer2DModel(**FLUX_SIZES), flux_inputs()


@denoiser("BriaFiboTransformer2DModel", {"transformer_blocks.*": DUAL, "single_transformer_blocks.*": SINGLE})
def bria_fibo() -> Case:
    model = library.BriaFiboTransformer2DModel(**{**FLUX_SIZES, "joint_attention_dim": WIDTH}, text_encoder_dim=16)
    return model, {
        **flux_inputs(),
        **text(2, WIDTH),
        "text_encoder_layers": [noise(2, TEXT_TOKENS, 16) for _ in range(4)],
    }


@denoiser(
    "ChromaTransformer2DModel",
    {
        "distilled_guidance_layer.layers.*": {"": "linear_2"},
        "transformer_blocks.*": DUAL,
        "single_transformer_blocks.*": SINGLE,
    },
)
def chroma() -> Case:
    model = library.ChromaTransformer2DModel(
        **FLUX_SIZES, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1
    )
    return model, flux_inputs()


@denoiser("LongCatImageTransformer2DModel", {"transformer_blocks.*": DUAL, "single_transformer_blocks.*": SINGLE})
def longcat_image() -> Case:
    model = library.LongCatImageTransformer2DModel(**FLUX_SIZES, pooled_projection_dim=POOLED_WIDTH)
    return model, {**flux_inputs(), "guidance": torch.full((2,), 3.5)}


@denoiser("OvisImageTransformer2DModel", {"transformer_blocks.*": DUAL, "single_transformer_blocks.*": SINGLE})
def ovis_image() -> Case:
    return library.OvisImageTransformer2DModel(**FLUX_SIZES, out_channels=8), flux_inputs()


@denoiser(
    "SD3Transformer2DModel",
    {
        "transformer_blocks.*": DUAL,
        "transformer_blocks.0": {**DUAL, "attn2": OUT},
        "transformer_blocks.last": HALF,
    },
)
def sd3() -> Case:
    model = library.SD3Transformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        pos_embed_max_size=8,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        **text(2),
        "pooled_projections": noise(2, POOLED_WIDTH),
        "timestep": steps(2),
    }


@denoiser(
    "AuraFlowTransformer2DModel",
    {
        "joint_transformer_blocks.*": {"attn": JOINT, "ff": "out_projection", "ff_context": "out_projection"},
        "single_transformer_blocks.*": {"attn": OUT, "ff": "out_projection"},
    },
)
def aura_flow() -> Case:
    model = library.AuraFlowTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        sample_size=8,
        patch_size=2,
        pos_embed_max_size=16,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=WIDTH,
    )
    return model, {"hidden_states": noise(2, 4, 8, 8), **text(2), "timestep": unit(2)}


def cogview_inputs() -> dict[str, Any]:
    """An 8 x 8 image with the sizes that CogView conditions on."""
    sizes = torch.tensor([[64.0, 64.0]] * 2)
    return {
        "hidden_states": noise(2, 4, 8, 8),
        **text(2),
        "timestep": steps(2),
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros(2, 2),
    }


COGVIEW_SIZES: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "patch_size": 2,
    "text_embed_dim": TEXT_WIDTH,
    "time_embed_dim": 16,
    "condition_dim": 4,
}


@denoiser("CogView3PlusTransformer2DModel", {"transformer_blocks.*": SELF})
def cogview3_plus() -> Case:
    model = library.CogView3PlusTransformer2DModel(**COGVIEW_SIZES, pos_embed_max_size=8, sample_size=8)
    return model, cogview_inputs()


@denoiser("CogView4Transformer2DModel", COGVIEW4)
def cogview4() -> Case:
    return library.CogView4Transformer2DModel(**COGVIEW_SIZES), cogview_inputs()


@denoiser("GlmImageTransformer2DModel", COGVIEW4)
def glm_image() -> Case:
    model = library.GlmImageTransformer2DModel(**COGVIEW_SIZES, prior_vq_quantizer_codebook_size=64)
    inputs = cogview_inputs()
    del inputs["original_size"]
    return model, {
        **inputs,
        "prior_token_id": torch.randint(0, 64, (2, 16)),
        "prior_token_drop": torch.zeros(2, 16, dtype=torch.bool),
    }


@denoiser(
    "QwenImageTransformer2DModel",
    {
        "transformer_blocks.*": {"attn": JOINT, "img_mlp": FF, "txt_mlp": FF},
        "transformer_blocks.last": {"attn": OUT, "img_mlp": FF},
    },
)
def qwen_image() -> Case:
    model = library.QwenImageTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=8,
        out_channels=2,
        num_layers=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return model, {
        "hidden_states": noise(2, 16, 8),
        **text(2),
        "encoder_hidden_states_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.int64),
        "timestep": unit(2),
        "img_shapes": [(1, 4, 4)] * 2,
    }


JOY_SIZES: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "text_dim": TEXT_WIDTH,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}


@denoiser("JoyImageEditTransformer3DModel", JOY)
def joy_image_edit() -> Case:
    model = library.JoyImageEditTransformer3DModel(**JOY_SIZES)
    return model, {"hidden_states": noise(2, 4, 1, 8, 8), **text(2), "timestep": steps(2)}


@denoiser("JoyImageEditPlusTransformer3DModel", JOY)
def joy_image_edit_plus() -> Case:
    model = library.JoyImageEditPlusTransformer3DModel(**JOY_SIZES)
    return model, {
        "hidden_states": noise(2, 8, 4, 1, 2, 2),
        **text(2),
        "timestep": steps(2),
        "shape_list": [[(1, 2, 2), (1, 2, 2)]] * 2,
    }


@denoiser(
    "HunyuanImageTransformer2DModel",
    {
        "context_embedder.token_refiner.refiner_blocks.*": HALF,
        "transformer_blocks.*": DUAL,
        "single_transformer_blocks.*": SINGLE,
    },
)
def hunyuan_image() -> Case:
    model = library.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        patch_size=(1, 1),
        text_embed_dim=TEXT_WIDTH,
        rope_axes_dim=(8, 8),
    )
    return model, {
        "hidden_states": noise(2, 4, 4, 4),
        **text(2),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS),
        "timestep": steps(2).float(),
    }


@denoiser(
    "HiDreamImageTransformer2DModel",
    {
        "double_stream_blocks.*": {
            "block.attn1": ("to_out", "to_out_t"),
            "block.ff_i": "",
            "block.ff_t": "w2",
        },
        "single_stream_blocks.*": {"block.attn1": "to_out", "block.ff_i": ""},
    },
    time=("timesteps",),
    captured="no",
    note="Each block reads on the host how many tokens its experts get, so no graph holds a whole block.",
)
def hidream() -> Case:
    model = library.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        caption_channels=[TEXT_WIDTH, 8],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(8, 8),
        llama_layers=(0, 1, 1, 1),
        force_inference_output=True,
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timesteps": steps(2),
        "encoder_hidden_states_t5": noise(2, TEXT_TOKENS, TEXT_WIDTH),
        "encoder_hidden_states_llama3": noise(2, 2, TEXT_TOKENS, 8),
        "pooled_embeds": noise(2, 8),
    }
