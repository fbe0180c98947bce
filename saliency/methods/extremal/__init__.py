"""Extremal perturbations: perturbations, the search for masks, rewards, and the method."""

from saliency.methods.extremal.masks import extremal_perturbation, extremal_perturbation_map
from saliency.methods.extremal.rewards import contrastive_reward, simple_reward

__all__ = ["contrastive_reward", "extremal_perturbation", "extremal_perturbation_map", "simple_reward"]
