"""Backward rules of single operations, and the tables made of them."""

from saliency.rules.activations import DECONVNET, GUIDED
from saliency.rules.differences import DEEP_LIFT
from saliency.rules.excitation import EXCITATION, PositivePart, excitation_rules, shares
from saliency.rules.sharing import shared_forward

__all__ = [
    "DECONVNET",
    "DEEP_LIFT",
    "EXCITATION",
    "GUIDED",
    "PositivePart",
    "excitation_rules",
    "shared_forward",
    "shares",
]
