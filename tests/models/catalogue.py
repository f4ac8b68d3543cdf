"""All models of these tests, and the classes of diffusers that are none of them."""

from models import audio, image_cross, image_joint, image_single, video, video_joint, video_wan
from models.base import DENOISERS

GROUPS = {
    "Image, one stream with cross-attention or modulation": image_cross,
    "Image, two streams that attend together": image_joint,
    "Image, image and text as one sequence": image_single,
    "Video": video,
    "Video: two streams, refiners, linear attention, sound": video_joint,
    "Video, Wan and its relatives": video_wan,
    "Audio and proteins": audio,
}

EXCLUDED = {
    "DualTransformer2DModel": "a switch between two Transformer2DModel inside a U-Net; its parts are covered",
    "MiniMaxMusic3RVQDepthDecoder": "decodes audio codes one by one, it is not called once per denoising step",
}

__all__ = ["DENOISERS", "EXCLUDED", "GROUPS"]
