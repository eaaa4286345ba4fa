"""The ops of the package, the only place where Python meets compiled code."""

from iact.ops.attention import attention
from iact.ops.decode import decode_heatmaps
from iact.ops.deform import deform_attention, deform_qkv
from iact.ops.heatmap import heatmap_loss
from iact.ops.registry import load_extension
from iact.ops.wing import adaptive_wing_loss, smooth_wing_loss

__all__ = [
    "adaptive_wing_loss",
    "attention",
    "decode_heatmaps",
    "deform_attention",
    "deform_qkv",
    "heatmap_loss",
    "smooth_wing_loss",
]

EXTENSION = load_extension()  # once the schemas exist; says how it went
