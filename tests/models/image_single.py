"""Image denoisers that run image and text as one sequence, most with refiners in front."""

import torch
from diffusers.models import transformers as library

from models.base import HEAD_DIM, HEADS, OUT, TEXT_TOKENS, TEXT_WIDTH, WIDTH, Case, denoiser, grid, noise, text, unit

LUMINA = {"attn": OUT, "feed_forward": "linear_2"}
Z_IMAGE = {"attention": OUT, "feed_forward": "w2"}
KREA = {"attn": OUT, "ff": "down"}


@denoiser(
    "Lumina2Transformer2DModel",
    {
        "context_refiner.*": LUMINA,
        "noise_refiner.*": LUMINA,
        "layers.*": LUMINA,
    },
    captured="piecewise",
    note="The model reads the lengths of its texts on the host; the graph behind that holds all blocks.",
)
def lumina2() -> Case:
    model = library.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=HEADS,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 16, 16),
        cap_feat_dim=TEXT_WIDTH,
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": unit(2),
        **text(2),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.bool),
    }


@denoiser(
    "ZImageTransformer2DModel",
    {"noise_refiner.*": Z_IMAGE, "context_refiner.*": Z_IMAGE, "layers.*": Z_IMAGE},
    sample=("x",),
    time=("t",),
)
def z_image() -> Case:
    model = library.ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    return model, {"x": [noise(4, 1, 8, 8)], "t": unit(1), "cap_feats": [noise(TEXT_TOKENS, TEXT_WIDTH)]}


@denoiser(
    "OmniGenTransformer2DModel",
    {"layers.*": {"self_attn": OUT, "mlp": "down_proj"}},
    captured="piecewise",
    note="The model reads its largest position on the host; the graph behind that holds all blocks.",
)
def omnigen() -> Case:
    model = library.OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=2 * WIDTH,
        num_layers=2,
        pad_token_id=0,
        vocab_size=100,
        time_step_dim=8,
        pos_embed_max_size=8,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
    )
    tokens = 20 + 1 + 16
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": unit(2),
        "input_ids": torch.randint(0, 10, (2, 20)),
        "input_img_latents": [noise(1, 4, 8, 8)],
        "input_image_sizes": {0: [[0, 16]]},
        "attention_mask": torch.ones(2, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(2, -1),
    }


@denoiser("ErnieImageTransformer2DModel", {"layers.*": {"self_attention": OUT, "mlp": "linear_fc2"}})
def ernie_image() -> Case:
    model = library.ErnieImageTransformer2DModel(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_layers=2,
        ffn_hidden_size=2 * WIDTH,
        in_channels=8,
        out_channels=8,
        text_in_dim=TEXT_WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    return model, {
        "hidden_states": noise(2, 8, 4, 4),
        "timestep": unit(2),
        "text_bth": noise(2, TEXT_TOKENS, TEXT_WIDTH),
        "text_lens": torch.tensor([TEXT_TOKENS] * 2),
    }


@denoiser("Ideogram4Transformer2DModel", {"layers.*": Z_IMAGE})
def ideogram4() -> Case:
    model = library.Ideogram4Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        adaln_dim=16,
        llm_features_dim=TEXT_WIDTH,
        rope_theta=10000,
        mrope_section=(4, 2, 2),
    )
    tokens = TEXT_TOKENS + 16
    positions = torch.cat([torch.arange(TEXT_TOKENS)[:, None].expand(-1, 3), grid(1, 4, 4) + 1024])
    return model, {
        "hidden_states": noise(2, tokens, 8),
        "timestep": unit(2),
        "encoder_hidden_states": noise(2, tokens, TEXT_WIDTH),
        "position_ids": positions.expand(2, -1, -1),
        "segment_ids": torch.ones(2, tokens, dtype=torch.int64),
        "indicator": torch.tensor([LLM_TOKEN] * TEXT_TOKENS + [IMAGE_TOKEN] * 16).expand(2, -1),
    }


LLM_TOKEN, IMAGE_TOKEN = 3, 2  # how Ideogram marks its text and image tokens


@denoiser(
    "Krea2Transformer2DModel",
    {
        "text_fusion.layerwise_blocks.*": KREA,
        "text_fusion.refiner_blocks.*": KREA,
        "transformer_blocks.*": KREA,
    },
)
def krea2() -> Case:
    model = library.Krea2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
    mask[:, -1] = False
    return model, {
        "hidden_states": noise(2, 16, 8),
        "timestep": unit(2),
        "encoder_hidden_states": noise(2, TEXT_TOKENS, 3, 16),
        "position_ids": torch.cat([torch.zeros(TEXT_TOKENS, 3), grid(1, 4, 4).float()]),
        "encoder_attention_mask": mask,
    }


@denoiser(
    "QwenImage21Transformer2DModel",
    {"transformer_blocks.*": {"attn": OUT, "img_mlp": "out"}},
    captured="piecewise",
    note="The model reads where its image tokens are on the host; the graph behind that holds all blocks.",
)
def qwen_image21() -> Case:
    model = library.QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        context_in_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    mask = torch.tensor([[False] * TEXT_TOKENS + [True] * 4])
    return model, {
        "hidden_states": noise(1, 16, 8),
        "timestep": unit(1),
        **text(1),
        "img_shapes": [[(1, 4, 4)]],
        "img_mask": mask,
    }


@denoiser(
    "BriaFibo2Transformer2DModel",
    {
        "noise_refiner.*": Z_IMAGE,
        "perceiver.layers.*": {"cross_attention": OUT, "self_attention": OUT, "ffn": "w2"},
        "layers.*": Z_IMAGE,
        "layers.1": {**Z_IMAGE, "cross_attention": OUT},
    },
)
def bria_fibo2() -> Case:
    model = library.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 16, 16),
    )
    return model, {
        "hidden_states": noise(2, 4, 8, 8),
        "timestep": unit(2),
        "encoder_hidden_states": noise(2, 2, TEXT_TOKENS, TEXT_WIDTH),
    }


@denoiser(
    "NucleusMoEImageTransformer2DModel",
    {"transformer_blocks.*": {"attn": OUT, "img_mlp": ""}},
    uninitialised=("experts.gate_up_proj", "experts.down_proj"),
)
def nucleus_moe() -> Case:
    model = library.NucleusMoEImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=3,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=WIDTH,
        capacity_factors=[1.0] * 3,
    )
    return model, {
        "hidden_states": noise(2, 16, 8),
        "timestep": unit(2),
        **text(2),
        "encoder_hidden_states_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.int64),
        "img_shapes": [(1, 4, 4)] * 2,
    }
