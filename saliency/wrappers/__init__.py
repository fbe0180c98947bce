"""Wrappers: functions from a method to a method."""

from saliency.wrappers.averages import smooth_grad
from saliency.wrappers.changes import fused, low_pass, normalised
from saliency.wrappers.warps import FLIPS, Warp, augmented

__all__ = ["FLIPS", "Warp", "augmented", "fused", "low_pass", "normalised", "smooth_grad"]
