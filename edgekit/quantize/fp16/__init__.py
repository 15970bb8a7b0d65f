"""A graph in float16: what runs in it, what stays in float32 and why, and the casts between."""

from edgekit.quantize.fp16.convert import Fp16Limits, Fp16Report, strong_typed, to_fp16

__all__ = ["Fp16Limits", "Fp16Report", "strong_typed", "to_fp16"]
