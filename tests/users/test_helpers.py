"""Helpers, metrics and images given what does not belong there: an answer, or one line that names the argument."""

import numpy as np
import pytest
import torch
from torch import nn

import saliency
from saliency import gradient, images
from saliency.evaluation.cases import outputs_of, read_class_map
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.metrics import agreement, faithfulness, imputation, localisation, perturbed, randomisation
from saliency.evaluation.metrics.sensitivity import sensitivity_n
from saliency.networks import models
from saliency.networks.own import import_network
from saliency.scenes import make_scene, scene_network
from saliency.scenes.precision import average_precision

NETWORK = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
)
PHOTOS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1])
MASKS = MAPS[:, 0] > 0.5
BOXES = [torch.tensor([[1.0, 1, 4, 4]])] * 2
ASKED = {"model": NETWORK.eval(), "input": PHOTOS, "target": TARGET, "saliency": MAPS}
EXPLAINED = {**ASKED, "explain": lambda model, input, target: gradient(model, input, target)}


def with_gradient():
    x = torch.rand(2, 4, 8, 8)
    x.grad = torch.rand(2, 4, 8, 8)
    return {"x": x}


def find_layer(model, input):
    return saliency.find_layer(model, input)


CALLS = [
    *((getattr(saliency, name), with_gradient()) for name in dir(saliency) if name.startswith("gradient_to_")),
    (saliency.max_channels, {"attribution": PHOTOS}),
    (saliency.sum_channels, {"attribution": PHOTOS}),
    (
        saliency.imsmooth,
        {"tensor": MAPS, "sigma": 1.0, "stride": 1, "padding": 0, "padding_mode": "constant", "padding_value": 0.0},
    ),
    (saliency.resize_saliency, {"tensor": PHOTOS, "saliency": MAPS, "size": (4, 4), "mode": "bilinear"}),
    (saliency.get_module, {"model": NETWORK, "module": "0"}),
    (find_layer, {"model": NETWORK, "input": PHOTOS}),
    (saliency.get_backward_gradient, {"pred_y": torch.rand(2, 3), "y": TARGET}),
    (saliency.get_pointing_gradient, {"pred_y": torch.rand(2, 3, 4, 4), "y": TARGET, "normalize": True}),
    (
        saliency.random_masks,
        {"num_masks": 3, "size": (8, 8), "num_cells": 3, "p": 0.5, "seed": 0, "device": "cpu", "dtype": torch.float32},
    ),
    (saliency.Probe, {"module": nn.ReLU(), "target": "input"}),
    (saliency.attach_debug_probes, {"model": nn.ReLU(), "debug": False}),
    (saliency.shared_forward, {"model": NETWORK, "input": PHOTOS, "saliency_layers": ["", "0"]}),
    (saliency.Attribution, {"reduction": None}),
    (saliency.smooth_grad, {"method": gradient, "n_samples": 2, "sigma": 0.1, "seed": 0}),
    (agreement.rank_correlation, {"a": MAPS, "b": MAPS.flip(3), "absolute": False}),
    (localisation.saliency_points, {"saliency": MAPS}),
    (localisation.points_hit, {"points": torch.tensor([[1, 1], [2, 2]]), "masks": MASKS, "tolerance": 1}),
    (localisation.pointing_game, {"saliency": MAPS, "masks": MASKS, "tolerance": 1}),
    (localisation.energy_pointing_game, {"saliency": MAPS, "masks": MASKS}),
    (localisation.mask_iou, {"saliency": MAPS, "masks": MASKS, "thresholds": [0.1, 0.5]}),
    (localisation.box_iou, {"saliency": MAPS, "boxes": BOXES, "thresholds": [0.1, 0.5], "components": "all"}),
    (localisation.max_box_accuracy, {"ious": torch.rand(3, 4), "delta": 0.5}),
    (localisation.boxes_to_mask, {"boxes": BOXES[0], "size": (8, 8)}),
    (faithfulness.insertion, {**ASKED, "steps": 3, "baseline": "blur", "batch_size": 4, "seed": 0}),
    (faithfulness.deletion, {**ASKED, "activation": perturbed.class_softmax, "seed": 0}),
    (faithfulness.road, {**ASKED, "percentages": [50], "noise": 0.01, "seed": 0}),
    (faithfulness.average_drop, ASKED),
    (faithfulness.increase_in_confidence, ASKED),
    (faithfulness.curve_area, {"curve": torch.rand(2, 4)}),
    (sensitivity_n, {**ASKED, "n": 5, "samples": 4, "baseline": "zero", "seed": 0}),
    (imputation.linear_imputation, {"input": PHOTOS, "removed": MASKS[:, None]}),
    (randomisation.parameter_groups, {"model": NETWORK, "layers": ["0"], "steps": 1}),
    (randomisation.parameter_randomisation, {**EXPLAINED, "cascading": True, "steps": 1, "seed": 0}),
    (randomisation.random_logit, {**EXPLAINED, "classes": 3, "seed": 0}),
    (perturbed.saliency_ranks, {"saliency": MAPS, "seed": 0}),
    (perturbed.make_baseline, {"input": PHOTOS, "baseline": "blur"}),
    (average_precision, {"scores": torch.rand(3, 2), "labels": torch.tensor([[0, 1], [1, 0], [1, 1]])}),
    (images.resize_image, {"image": PHOTOS[0], "size": 4, "square": False}),
    (images.normalise, {"image": PHOTOS[0], "mean": (0.0, 0, 0), "std": (1.0, 1, 1)}),
    (images.display_range, {"saliency_map": MAPS}),
    (images.overlay, {"image": PHOTOS[0], "saliency_map": MAPS[0], "alpha": 0.5}),
    (images.to_picture, {"image": PHOTOS[0]}),
    (scene_network, {"weights": True}),
    (make_scene, {"seed": 0}),
    (models.preprocessing, {"arch": "scenes", "size": 64}),
    (models.load_network, {"arch": "scenes", "weights": None, "pooled": True}),
    (models.find_class, {"name": "a", "classes": ["a", "b"]}),
    (models.find_targets, {"text": "top1", "classes": ["a", "b"], "scores": torch.tensor([0.0, 1.0])}),
    (load_dataset, {"name": "scenes", "root": None, "on_error": "skip", "scenes": 1, "seed": 0}),
    (outputs_of, {"classes": ["a", "b"], "outputs": 2, "class_map": {"a": [0]}}),
]
WRONG = [
    *(None, "text", b"text", "x" * 500, np.ones((2, 3, 8, 8), np.float32), [1.0, 2.0], [], {}, {"a": None}),
    *(-1, 2.5, 1j, True, float("nan"), 10**400, object(), (None,), np.float32(1.5), np.array("text")),
]
# What an error calls an argument that has another name for the user.
ALSO = {
    "y": ("target",),
    "classes": ("target", "class_map"),
    "text": ("target",),
    "name": ("target", "dataset"),
    "module": ("model",),
    "saliency_layers": ("saliency_layer",),
}
ALSO |= {"explain": ("saliency",), "b": ("a",), "labels": ("scores",), "masks": ("saliency",), "points": ("masks",)}


def refusal(function, arguments):
    try:
        function(**arguments)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("function", "arguments"), CALLS, ids=[function.__name__ for function, _ in CALLS])
def test_what_does_not_belong_there_is_named(function, arguments):
    function(**arguments)
    errors = [(argument, refusal(function, {**arguments, argument: x})) for argument in arguments for x in WRONG]
    for argument, text in errors:
        names = argument, *ALSO.get(argument, ())
        assert text is None or (text.startswith(tuple(f"{name}=" for name in names)) and "\n" not in text), text
        assert text is None or len(text) < 1500
    assert any(text for _, text in errors)


@pytest.mark.parametrize("function", [models.read_state_dict, read_class_map, images.read_image, import_network])
def test_a_path_that_is_none_is_named(function):
    for value in (None, 3, ["a"], np.ones(3), b"text", object(), "", "\0", "x" * 5000):
        with pytest.raises(ValueError, match=r"^(weights|class_map|photo|path|import)="):
            function(value)


@pytest.mark.parametrize("function", ["pointing_game", "energy_pointing_game", "mask_iou"])
@pytest.mark.parametrize("kind", ["an array", "a list", "truth values", "NaN"])
def test_maps_that_are_none_are_named(function, kind):
    maps = {
        "an array": MAPS.numpy(),
        "a list": MAPS.tolist(),
        "truth values": MAPS > 0.5,
        "NaN": torch.full_like(MAPS, torch.nan),
    }
    with pytest.raises(ValueError, match=r"^saliency="):
        getattr(localisation, function)(maps[kind], MASKS)


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_no_box_no_curve_and_no_overlap(place, value):
    box = torch.tensor([[1.0, 1, 4, 4]])
    box[0, place] = value
    with pytest.raises(ValueError, match=r"^boxes=NaN or infinity"):
        localisation.box_iou(MAPS, [box, BOXES[0]])
    with pytest.raises(ValueError, match=r"^boxes=NaN or infinity"):
        localisation.boxes_to_mask(box, (8, 8))
    with pytest.raises(ValueError, match=r"^curve=NaN or infinity"):
        faithfulness.curve_area(box)
    with pytest.raises(ValueError, match=r"^ious=NaN or infinity"):
        localisation.max_box_accuracy(box)
