"""Functional saliency for PyTorch vision models: every attribution method is one call.

>>> from saliency import grad_cam
>>> from saliency.scenes import make_scene, scene_network
>>> map = grad_cam(scene_network(), make_scene(0).image[None], 0, saliency_layer='layer4')
"""

from saliency.engine.contexts import NullContext, Patch, ReLUContext, RuleContext
from saliency.engine.driver import saliency
from saliency.engine.layers import get_module
from saliency.engine.maps import (
    Attribution,
    gradient_to_saliency,
    imsmooth,
    max_channels,
    resize_saliency,
    sum_channels,
)
from saliency.engine.operations import Instead, Pre, Rule, Through
from saliency.engine.paths import between, line, noise
from saliency.engine.probe import Probe, attach_debug_probes
from saliency.engine.record import SharedForward
from saliency.engine.search import find_layer
from saliency.engine.targets import get_backward_gradient, get_pointing_gradient
from saliency.methods import METHODS, Method
from saliency.methods.ablation import feature_ablation, feature_permutation, occlusion
from saliency.methods.cam import (
    grad_cam,
    grad_cam_plus_plus,
    gradient_to_grad_cam_plus_plus_saliency,
    gradient_to_grad_cam_saliency,
    gradient_to_hires_cam_saliency,
    gradient_to_layer_cam_saliency,
    gradient_to_xgrad_cam_saliency,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from saliency.methods.excitation import (
    ContrastiveExcitationBackpropContext,
    ExcitationBackpropContext,
    contrastive_excitation_backprop,
    excitation_backprop,
    gradient_to_contrastive_excitation_backprop_saliency,
    gradient_to_excitation_backprop_saliency,
)
from saliency.methods.extremal import (
    contrastive_reward,
    extremal_perturbation,
    extremal_perturbation_map,
    simple_reward,
)
from saliency.methods.extremal.perturbation import BLUR_PERTURBATION, FADE_PERTURBATION, MaskGenerator, Perturbation
from saliency.methods.extremal.search import DELETE_VARIANT, DUAL_VARIANT, PRESERVE_VARIANT
from saliency.methods.gradients import (
    activation,
    gradient,
    gradient_to_gradient_x_activation,
    gradient_to_linear_approx_saliency,
    gradient_x_activation,
    linear_approx,
)
from saliency.methods.masking import rise, rise_class
from saliency.methods.masks import random_masks
from saliency.methods.paths import (
    conductance,
    gradient_shap,
    integrated_gradients,
    internal_influence,
    smooth_gradient,
)
from saliency.methods.relu_backprop import (
    DeConvNetContext,
    GuidedBackpropContext,
    deconvnet,
    guided_backprop,
    guided_grad_cam,
)
from saliency.methods.scored_cam import ablation_cam, is_cam, recipro_cam, score_cam, ss_cam
from saliency.rules import shared_forward
from saliency.similarity import ImageEncoder, bilrp, cosine_similarity, dot_product
from saliency.wrappers import smooth_grad

__version__ = "0.1.0"

__all__ = [
    "BLUR_PERTURBATION",
    "DELETE_VARIANT",
    "DUAL_VARIANT",
    "FADE_PERTURBATION",
    "METHODS",
    "PRESERVE_VARIANT",
    "Attribution",
    "ContrastiveExcitationBackpropContext",
    "DeConvNetContext",
    "ExcitationBackpropContext",
    "GuidedBackpropContext",
    "ImageEncoder",
    "Instead",
    "MaskGenerator",
    "Method",
    "NullContext",
    "Patch",
    "Perturbation",
    "Pre",
    "Probe",
    "ReLUContext",
    "Rule",
    "RuleContext",
    "SharedForward",
    "Through",
    "ablation_cam",
    "activation",
    "attach_debug_probes",
    "between",
    "bilrp",
    "conductance",
    "contrastive_excitation_backprop",
    "contrastive_reward",
    "cosine_similarity",
    "deconvnet",
    "dot_product",
    "excitation_backprop",
    "extremal_perturbation",
    "extremal_perturbation_map",
    "feature_ablation",
    "feature_permutation",
    "find_layer",
    "get_backward_gradient",
    "get_module",
    "get_pointing_gradient",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "gradient_shap",
    "gradient_to_contrastive_excitation_backprop_saliency",
    "gradient_to_excitation_backprop_saliency",
    "gradient_to_grad_cam_plus_plus_saliency",
    "gradient_to_grad_cam_saliency",
    "gradient_to_gradient_x_activation",
    "gradient_to_hires_cam_saliency",
    "gradient_to_layer_cam_saliency",
    "gradient_to_linear_approx_saliency",
    "gradient_to_saliency",
    "gradient_to_xgrad_cam_saliency",
    "gradient_x_activation",
    "guided_backprop",
    "guided_grad_cam",
    "hires_cam",
    "imsmooth",
    "integrated_gradients",
    "internal_influence",
    "is_cam",
    "layer_cam",
    "line",
    "linear_approx",
    "max_channels",
    "noise",
    "occlusion",
    "random_masks",
    "recipro_cam",
    "resize_saliency",
    "rise",
    "rise_class",
    "saliency",
    "score_cam",
    "shared_forward",
    "simple_reward",
    "smooth_grad",
    "smooth_gradient",
    "ss_cam",
    "sum_channels",
    "xgrad_cam",
]
