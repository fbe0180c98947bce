"""Backward rules of single operations, and the tables made of them."""

from saliency.rules.activations import DECONVNET, GUIDED
from saliency.rules.attention import ATTN_LRP, CP
from saliency.rules.differences import DEEP_LIFT
from saliency.rules.excitation import EXCITATION, PositivePart, excitation_rules, shares
from saliency.rules.linear import alpha_beta, epsilon, flat, gamma, identity, w_square, z_box, z_plus
from saliency.rules.presets import (
    attn_lrp,
    attn_plus,
    cp,
    default_rules,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    relevance_rules,
)
from saliency.rules.sharing import shared_forward

__all__ = [
    "ATTN_LRP",
    "CP",
    "DECONVNET",
    "DEEP_LIFT",
    "EXCITATION",
    "GUIDED",
    "PositivePart",
    "alpha_beta",
    "attn_lrp",
    "attn_plus",
    "cp",
    "default_rules",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_rules",
    "flat",
    "gamma",
    "identity",
    "relevance_rules",
    "shared_forward",
    "shares",
    "w_square",
    "z_box",
    "z_plus",
]
