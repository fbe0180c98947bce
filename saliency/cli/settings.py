"""Settings of a benchmark, as data: which methods are run, at which layers, and how much maps are smoothed."""

import torch

from saliency.methods import METHODS
from saliency.networks.models import SCENES, SCENES_VIT

# Dozens or hundreds of passes for an image, or more: only if they are asked for, by name or with 'all'.
LONG = (
    *("integrated_gradients", "internal_influence", "conductance", "gradient_shap", "smooth_gradient"),
    *("expected_gradients", "deep_lift_shap", "smooth_grad_cam_plus_plus"),
    *("feature_ablation", "occlusion", "score_cam", "ss_cam", "is_cam", "rise", "extremal_perturbation"),
)
# Its map of an image depends on the rest of the batch, and so on the batch size: only if it is asked for by name.
BATCHED = ("feature_permutation",)
# For networks that have attention: only if they are asked for, by name or with 'attention'.
ATTENTION = tuple(name for name, method in METHODS.items() if method.needs_attention)

# For maps at the resolution of the input, whose single pixels are noise; and for masks, whose maximum is a plateau.
SMOOTH = dict.fromkeys(
    (
        *("gradient", "gradient_x_activation", "linear_approx", "deconvnet", "guided_backprop", "guided_grad_cam"),
        *("integrated_gradients", "gradient_shap", "expected_gradients", "smooth_gradient"),
        *("deep_lift", "deep_lift_shap"),
    ),
    0.02,
) | {"extremal_perturbation": 0.09}

# TorchRay's settings of its pointing game: its methods, their layers by the network's family, and its smoothing.
TORCHRAY = (
    *("gradient", "deconvnet", "guided_backprop", "grad_cam", "linear_approx"),
    *("excitation_backprop", "contrastive_excitation_backprop"),
)
TORCHRAY_LAYERS: dict[str, dict[str, dict[str, str]]] = {
    "resnet": {
        "grad_cam": {"saliency_layer": "layer4"},
        "excitation_backprop": {"saliency_layer": "layer3"},
        "contrastive_excitation_backprop": {"saliency_layer": "layer3", "contrast_layer": "avgpool"},
    },
    "vgg16": {
        "grad_cam": {"saliency_layer": "features.29"},
        "excitation_backprop": {"saliency_layer": "features.23"},
        "contrastive_excitation_backprop": {"saliency_layer": "features.23", "contrast_layer": "classifier.4"},
    },
}
TORCHRAY_SMOOTH: dict[str, dict[str, float]] = {
    name: {"smooth": 0.02} for name in ("gradient", "guided_backprop", "deconvnet")
}

NUMBER_OF_SCENES = 200

# Of the embedded networks, for a second a map: each of the 16 x 16 positions of a layer is a feature; few samples.
SCENES_LAYERS = {SCENES: "layer4", SCENES_VIT: "patch_embed"}
SCENES_OPTIONS: dict[str, dict[str, object]] = {
    "feature_ablation": {"layer_mask": torch.arange(256).view(1, 1, 16, 16)},
    "ss_cam": {"num_samples": 2},
    "is_cam": {"num_samples": 3},
}
