"""Functional saliency for PyTorch vision models: every attribution method is one call.

>>> from saliency import grad_cam
>>> from saliency.scenes import make_scene, scene_network
>>> saliency_map = grad_cam(scene_network(), make_scene(0).image[None], 0, saliency_layer='layer4')

``import saliency`` imports torch alone. What works on photos, such as :func:`explain`, :func:`read_image` and
:func:`overlay`, comes with NumPy, Pillow or torchvision, and is imported when it is first asked for.
"""

import importlib
import typing

from saliency import targets as targets
from saliency.engine.contexts import NullContext, Patch, ReLUContext, RuleContext
from saliency.engine.driver import saliency
from saliency.engine.layers import get_module
from saliency.engine.maps import (
    Attribution,
    gradient_to_saliency,
    imsmooth,
    max_channels,
    positive_sum,
    resize_saliency,
    sum_channels,
)
from saliency.engine.operations import Instead, Pre, Rule, Through
from saliency.engine.paths import between, line, noise
from saliency.engine.probe import Probe, attach_debug_probes
from saliency.engine.search import find_layer, layer_candidates
from saliency.engine.shared import SharedForward
from saliency.engine.targets import get_backward_gradient, get_pointing_gradient
from saliency.methods import METHODS, Method
from saliency.methods.ablation import feature_ablation, feature_permutation, occlusion
from saliency.methods.attended import AttentionMaps, attention_maps, outlier_tokens
from saliency.methods.attention import (
    attention_rollout,
    gradient_attention,
    raw_attention,
    transformer_attribution,
)
from saliency.methods.attention_gradients import grad_eclip, legrad
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
from saliency.methods.cam_gradients import (
    ShapleyContext,
    finer_cam,
    get_finer_gradient,
    shapley_cam,
    smooth_grad_cam_plus_plus,
)
from saliency.methods.components import eigen_cam, eigen_grad_cam, fem, kpca_cam
from saliency.methods.differences import DeepLiftContext, deep_lift, deep_lift_shap
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
from saliency.methods.factorisation import deep_feature_factorization
from saliency.methods.full_gradient import FullGradientContext, full_grad
from saliency.methods.fused_cam import refine_cam
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
    expected_gradients,
    gradient_shap,
    integrated_gradients,
    internal_influence,
    smooth_gradient,
)
from saliency.methods.pooled_cam import cam
from saliency.methods.relevance import Completeness, RelevanceContext, completeness, lrp
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
from saliency.wrappers import Warp, augmented, fused, low_pass, normalised, smooth_grad

if typing.TYPE_CHECKING:
    from saliency.explaining import Explanation, compare, explain
    from saliency.images import overlay, read_image, resize_image
    from saliency.networks.models import load_network, preprocessing
    from saliency.networks.names import find_class
    from saliency.networks.preprocessing import Preprocessing, preprocess
    from saliency.networks.published import preprocessing_of
    from saliency.plot import show

__version__ = "0.2.0"

__all__ = [
    "BLUR_PERTURBATION",
    "DELETE_VARIANT",
    "DUAL_VARIANT",
    "FADE_PERTURBATION",
    "METHODS",
    "PRESERVE_VARIANT",
    "AttentionMaps",
    "Attribution",
    "Completeness",
    "ContrastiveExcitationBackpropContext",
    "DeConvNetContext",
    "DeepLiftContext",
    "ExcitationBackpropContext",
    "Explanation",
    "FullGradientContext",
    "GuidedBackpropContext",
    "ImageEncoder",
    "Instead",
    "MaskGenerator",
    "Method",
    "NullContext",
    "Patch",
    "Perturbation",
    "Pre",
    "Preprocessing",
    "Probe",
    "ReLUContext",
    "RelevanceContext",
    "Rule",
    "RuleContext",
    "ShapleyContext",
    "SharedForward",
    "Through",
    "Warp",
    "ablation_cam",
    "activation",
    "attach_debug_probes",
    "attention_maps",
    "attention_rollout",
    "augmented",
    "between",
    "bilrp",
    "cam",
    "compare",
    "completeness",
    "conductance",
    "contrastive_excitation_backprop",
    "contrastive_reward",
    "cosine_similarity",
    "deconvnet",
    "deep_feature_factorization",
    "deep_lift",
    "deep_lift_shap",
    "dot_product",
    "eigen_cam",
    "eigen_grad_cam",
    "excitation_backprop",
    "expected_gradients",
    "explain",
    "extremal_perturbation",
    "extremal_perturbation_map",
    "feature_ablation",
    "feature_permutation",
    "fem",
    "find_class",
    "find_layer",
    "finer_cam",
    "full_grad",
    "fused",
    "get_backward_gradient",
    "get_finer_gradient",
    "get_module",
    "get_pointing_gradient",
    "grad_cam",
    "grad_cam_plus_plus",
    "grad_eclip",
    "gradient",
    "gradient_attention",
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
    "kpca_cam",
    "layer_cam",
    "layer_candidates",
    "legrad",
    "line",
    "linear_approx",
    "load_network",
    "low_pass",
    "lrp",
    "max_channels",
    "noise",
    "normalised",
    "occlusion",
    "outlier_tokens",
    "overlay",
    "positive_sum",
    "preprocess",
    "preprocessing",
    "preprocessing_of",
    "random_masks",
    "raw_attention",
    "read_image",
    "recipro_cam",
    "refine_cam",
    "resize_image",
    "resize_saliency",
    "rise",
    "rise_class",
    "saliency",
    "score_cam",
    "shapley_cam",
    "shared_forward",
    "show",
    "simple_reward",
    "smooth_grad",
    "smooth_grad_cam_plus_plus",
    "smooth_gradient",
    "ss_cam",
    "sum_channels",
    "transformer_attribution",
    "xgrad_cam",
]

# Where the names are that need more than torch.
_PHOTOS = {
    name: f"saliency.{module}"
    for module, names in {
        "explaining": ("Explanation", "compare", "explain"),
        "images": ("overlay", "read_image", "resize_image"),
        "networks.models": ("load_network", "preprocessing"),
        "networks.names": ("find_class",),
        "networks.preprocessing": ("Preprocessing", "preprocess"),
        "networks.published": ("preprocessing_of",),
        "plot": ("show",),
    }.items()
    for name in names
}

if not typing.TYPE_CHECKING:  # to a type checker the names are those imported above, and no others

    def __getattr__(name: str) -> object:
        if name not in _PHOTOS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(importlib.import_module(_PHOTOS[name]), name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PHOTOS})
