"""Score-CAM and Ablation-CAM beside pytorch-grad-cam and torch-cam, and the papers' formulas where those leave them."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saliency
from tests.methods.test_ablation import behind
from tests.methods.test_scored_cam import class_map, formula, softmax
from tests.parity.agreement import assert_agree, relative_error

peer = pytest.importorskip("pytorch_grad_cam")

pytestmark = pytest.mark.parity

TARGET = [1, 3]


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Conv2d(8, 5, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.append(nn.Linear(5, 4))
        model[-1].weight.data *= 5
    return model.double().eval()


def images():
    return torch.randn(2, 3, 17, 15, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(method, layer):
    """The paper's map, one channel after the other."""
    model, input = network(), images()
    found = []
    with torch.no_grad():
        for n in range(2):
            x, run = behind(model, layer, input, n)
            found.append(formula(method, model, "", layer, input[n : n + 1], x, run, TARGET[n]))
    return torch.stack(found)[:, None]


def raw_map(method, layer):
    """The peer's map before it is scaled to [0, 1]: its own weights and sum, on a copy of the model."""
    model, input = network(), images()
    module = model.get_submodule(layer)
    with method(model, [module]) as cam, torch.no_grad():
        cam.activations_and_grads(input.clone())
        (x,) = cam.activations_and_grads.activations
        targets = [peer.utils.model_targets.ClassifierOutputTarget(target) for target in TARGET]
        for handle in cam.activations_and_grads.handles:  # the peer's own ablations would be recorded too
            handle.remove()
        weights = cam.get_cam_weights(
            input, module, targets, x.clone() if method is peer.AblationCAM else x.numpy(), None
        )
    total = (np.asarray(weights)[:, :, None, None] * x.numpy()).sum(1, keepdims=True)
    return torch.from_numpy(np.maximum(total, 0))


@pytest.mark.parametrize("layer", ["1", "3"])
def test_score_cam(layer, monkeypatch):
    """But for align_corners: the peer's UpsamplingBilinear2d stretches the grid from corner pixel to corner pixel."""

    def upsample(size):
        return nn.Upsample(size, mode="bilinear", align_corners=False)

    ours = saliency.score_cam(network(), images(), TARGET, layer)
    assert relative_error(raw_map(peer.ScoreCAM, layer), ours) > 1e-3
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", upsample)
    assert_agree(ours, raw_map(peer.ScoreCAM, layer))
    assert_agree(ours, expected("score_cam", layer), 1e-12)


@pytest.mark.parametrize("layer", ["1", "3"])
def test_ablation_cam_of_what_is_nowhere_negative(layer):
    ours = saliency.ablation_cam(network(), images(), TARGET, layer)
    assert_agree(ours, raw_map(peer.AblationCAM, layer))
    assert_agree(ours, expected("ablation_cam", layer), 1e-12)


def test_ablation_cam_of_what_is_negative_in_places():
    """There the peer puts a value 1e7 below the smallest in the place of a channel, the paper 0."""
    paper = expected("ablation_cam", "5")
    assert relative_error(raw_map(peer.AblationCAM, "5"), paper) > 0.1
    assert_agree(saliency.ablation_cam(network(), images(), TARGET, "5"), paper, 1e-12)


def normalised_first(model, input, layer, target):
    """Score-CAM's map where a channel is scaled to [0, 1] before it is brought to the image's size."""
    x, _ = behind(model, layer, input, 0)
    scores = []
    for channel in x[0]:
        mask = (channel - channel.min()) / (channel.max() - channel.min())
        mask = F.interpolate(mask[None, None], input.shape[2:], mode="bilinear")
        scores.append(float(model(input * mask)[0, target].detach()))
    return class_map(softmax(scores), x[0])


def test_torchcam_normalises_before_it_upsamples():
    """The paper (equations 4 to 6) scales the enlarged map: interpolation in between does not reach its extremes."""
    torchcam = pytest.importorskip("torchcam.methods")
    model, input = network(), images()
    theirs = []
    for n in range(2):
        copy = deepcopy(model)
        with torchcam.ScoreCAM(copy, "3", input_shape=(3, 17, 15)) as cam:
            out = copy(input[n : n + 1].clone())
            theirs.append(cam(TARGET[n], out, normalized=False)[0])
    theirs = torch.stack(theirs)
    swapped = torch.stack([normalised_first(model, input[n : n + 1], "3", TARGET[n]) for n in range(2)])[:, None]
    assert_agree(theirs, swapped)
    ours = saliency.score_cam(model, input, TARGET, "3")
    assert relative_error(theirs, ours) > 1e-4
    assert_agree(ours, expected("score_cam", "3"), 1e-12)


def at_full_resolution():
    """A network whose layer '1' has the image's size: nothing is brought to another one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        model.append(nn.Linear(24, 4))
        model[-1].weight.data *= 5
    return model.double().eval()


def _drawn(draws, shape):
    return draws.pop(0).expand(shape)


def torchcam_map(method, **options):
    """Its map of each image, before it is scaled."""
    torchcam, model, maps = pytest.importorskip("torchcam.methods"), at_full_resolution(), []
    for n, image in enumerate(images().split(1)):
        with getattr(torchcam, method)(model, "1", input_shape=(3, 17, 15), **options) as cam:
            if method == "SSCAM":
                generator = torch.Generator().manual_seed(0)
                size = image.shape[2:]
                draws = [torch.empty(size).normal_(0, 0.5, generator=generator).double() for _ in range(3)]
                cam._distrib.sample = partial(_drawn, draws)
            maps.append(cam(TARGET[n], model(image.clone()), normalized=False)[0])
    return torch.stack(maps)


def test_ss_cam_with_equal_draws():
    theirs = torchcam_map("SSCAM", num_samples=3, std=0.5)
    assert_agree(saliency.ss_cam(at_full_resolution(), images(), TARGET, "1", num_samples=3, std=0.5), theirs)


def test_is_cam_of_shares_that_torchcam_adds_up():
    """The mask grows by shares t / T of itself; the peer adds these up: 1/3, 3/3 and 6/3 of it for 1/3, 2/3 and 3/3."""
    model, theirs = at_full_resolution(), torchcam_map("ISCAM", num_samples=3)

    def score(image, mask, share, n):
        return float(model(image * mask * share).detach()[0, TARGET[n]])

    def expected(shares):
        maps = []
        for n, image in enumerate(images().split(1)):
            x, means = model[:2](image)[0].detach(), []
            for channel in x:
                mask = (channel - channel.min()) / (channel.max() - channel.min())
                means.append(sum(score(image, mask, share, n) for share in shares) / len(shares))
            maps.append(class_map(softmax(means), x))
        return torch.stack(maps)[:, None]

    assert_agree(theirs, expected([1 / 3, 3 / 3, 6 / 3]))
    ours = saliency.is_cam(model, images(), TARGET, "1", num_samples=3)
    assert_agree(ours, expected([1 / 3, 2 / 3, 3 / 3]), 1e-12)
    assert relative_error(theirs, ours) > 1e-4
