"""Audio and music denoisers, and one for proteins."""

import torch
from diffusers.models import transformers as library

from models.base import CROSS, HEAD_DIM, HEADS, OUT, TEXT_TOKENS, TEXT_WIDTH, WIDTH, Case, denoiser, noise, text, unit


@denoiser(
    "AceStepTransformer1DModel",
    {"layers.*": {"self_attn": OUT, "cross_attn": OUT, "mlp": "down_proj"}},
    time=("timestep", "timestep_r"),
)
def ace_step() -> Case:
    model = library.AceStepTransformer1DModel(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
    )
    return model, {
        "hidden_states": noise(2, 16, 4),
        "timestep": unit(2),
        "timestep_r": unit(2),
        **text(2, WIDTH),
        "context_latents": noise(2, 16, 8),
    }


@denoiser(
    "StableAudioDiTModel",
    {"preprocess_conv": {"": ""}, "transformer_blocks.*": CROSS, "postprocess_conv": {"": ""}},
)
def stable_audio() -> Case:
    model = library.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_attention_heads=1,
        cross_attention_dim=HEAD_DIM,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=TEXT_WIDTH,
    )
    return model, {
        "hidden_states": noise(2, 4, 16),
        "timestep": unit(2),
        **text(2),
        "global_hidden_states": noise(2, 1, 8),
        "rotary_embedding": (noise(17, HEAD_DIM // 2).cos(), noise(17, HEAD_DIM // 2).sin()),
    }


@denoiser(
    "StableAudio3DiTModel",
    {
        "preprocess_conv": {"": ""},
        "transformer_blocks.*": {"self_attn": "to_out", "cross_attn": "to_out", "ff": "proj_out"},
        "postprocess_conv": {"": ""},
    },
)
def stable_audio3() -> Case:
    model = library.StableAudio3DiTModel(
        io_channels=8,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        cond_token_dim=TEXT_WIDTH,
        global_cond_dim=12,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=3,
    )
    return model, {
        "hidden_states": noise(2, 8, 16),
        "timestep": unit(2),
        **text(2),
        "global_hidden_states": noise(2, 12),
        "local_add_cond": noise(2, 5, 16),
    }


@denoiser(
    "LongCatAudioDiTTransformer",
    {
        "text_conv_layer.*": {"": "pwconv2"},
        "blocks.*": {"self_attn": OUT, "cross_attn": OUT, "ffn.ff": "3"},
    },
)
def longcat_audio() -> Case:
    model = library.LongCatAudioDiTTransformer(
        dit_dim=WIDTH, dit_depth=2, dit_heads=HEADS, dit_text_dim=TEXT_WIDTH, latent_dim=8, ff_mult=2.0
    )
    return model, {
        "hidden_states": noise(2, 16, 8),
        "timestep": unit(2),
        **text(2),
        "encoder_attention_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.bool),
        "attention_mask": torch.ones(2, 16, dtype=torch.bool),
        "latent_cond": noise(2, 16, 8),
    }


@denoiser(
    "MiniMaxMusic3Transformer1DModel",
    {
        "preprocess_conv": {"": ""},
        "transformer_blocks.*": {"attn": OUT, "ff_out": ""},
        "postprocess_conv": {"": ""},
    },
)
def minimax_music3() -> Case:
    model = library.MiniMaxMusic3Transformer1DModel(
        in_channels=8,
        condition_dim=16,
        num_layers=2,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        ff_inner_dim=2 * WIDTH,
        rotary_dim=4,
        fourier_embedding_dim=8,
    )
    return model, {"hidden_states": noise(2, 8, 16), "timestep": unit(2), "encoder_hidden_states": noise(2, 16, 16)}


@denoiser(
    "T5FilmDecoder",
    {
        "decoders.*": {"layer.0.attention": OUT, "layer.1.attention": OUT, "layer.2.DenseReluDense": "wo"},
    },
    sample=("decoder_input_tokens",),
    time=("decoder_noise_time",),
)
def t5_film() -> Case:
    model = library.T5FilmDecoder(
        input_dims=8, targets_length=16, d_model=WIDTH, num_layers=2, num_heads=HEADS, d_kv=HEAD_DIM, d_ff=2 * WIDTH
    )
    return model, {
        "encodings_and_masks": [(noise(2, TEXT_TOKENS, WIDTH), torch.ones(2, TEXT_TOKENS))],
        "decoder_input_tokens": noise(2, 16, 8),
        "decoder_noise_time": unit(2),
    }


@denoiser(
    "RFD4ProteinaTransformer",
    {
        "transformer_layers.*": {"mhba.mha": "to_out", "transition.transition": "linear_out"},
        "pair_update_layers.*": {"tri_mult_out": "", "tri_mult_in": "", "transition_out": "linear_2"},
    },
    sample=("bb_ca", "local_latents"),
    time=("bb_ca_time", "local_latents_time"),
)
def rfd4_proteina() -> Case:
    model = library.RFD4ProteinaTransformer(
        nlayers=3,
        token_dim=WIDTH,
        nheads=HEADS,
        dim_cond=16,
        pair_repr_dim=12,
        latent_dim=8,
        t_emb_dim=16,
        feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        tri_mult_c=8,
        num_sequence_classes=10,
    )
    return model, {
        "bb_ca": noise(2, 10, 3),
        "local_latents": noise(2, 10, 8),
        "bb_ca_time": unit(2),
        "local_latents_time": unit(2),
        "padding_mask": torch.ones(2, 10, dtype=torch.bool),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(2, 10, dtype=torch.bool),
            "supports_local_latent": torch.ones(2, 10, dtype=torch.bool),
        },
    }
