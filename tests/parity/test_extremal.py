"""TorchRay's extremal perturbations: the same masks of parameters, rewards, perturbed images, and search.

At its start the search sorts masks full of ties, and rounding decides which of them are pushed up: in float32, TorchRay
itself takes another way when its input changes by 1e-7. So the search is compared twice: with TorchRay as it is, to
1e-3 and what such a change makes; and tightly, in float64 and with a stable order.
"""

from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn

from saliency.engine.maps import imsmooth
from saliency.methods import extremal
from saliency.methods.extremal import contrastive_reward, extremal_perturbation, simple_reward
from saliency.methods.extremal.perturbation import POOLING_METHODS, MaskGenerator, Perturbation
from saliency.scenes import scene_network
from tests.parity.networks import network, randomise

peer = pytest.importorskip("torchray.attribution.extremal_perturbation")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]


def draw(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooling_method", POOLING_METHODS)
@pytest.mark.parametrize(
    ("shape", "step", "sigma"),
    [((64, 96), 7, 21), ((50, 33), 5, 3.5), ((40, 40), 2, 4), ((33, 47), 6, 10), ((30, 20), 3, 7.5)],
)
def test_masks_of_parameters(shape, step, sigma, pooling_method):
    ours = MaskGenerator(shape, step, sigma, pooling_method=pooling_method)
    theirs = peer.MaskGenerator(shape, step, sigma, pooling_method=pooling_method)
    for name in ("shape_in", "shape_mid", "shape_up", "shape_out"):
        assert list(getattr(ours, name)) == list(getattr(theirs, name))
    scale = {"softmax": 1, "sum": 1 / 40, "sigmoid": 1 / 200}[pooling_method]  # not to saturate
    parameters = (scale * draw(3, 1, *ours.shape_in)).requires_grad_()
    pairs = list(zip(ours.generate(parameters), theirs.generate(parameters), strict=True))
    for mask, expected in pairs:
        assert (mask - expected).abs().max() < 1e-6
    gradients = [torch.autograd.grad(full.square().sum(), parameters)[0] for full in pairs[1]]
    assert gradients[1].abs().max() > 0
    assert (gradients[0] - gradients[1]).abs().max() < 5e-5 * gradients[1].abs().max()


@pytest.mark.parametrize("kind", ["blur", "fade"])
@pytest.mark.parametrize("num_levels", [2, 6, 8])
def test_perturbed_images(kind, num_levels):
    x, mask = draw(1, 3, 30, 40), draw(4, 1, 30, 40, seed=2)
    ours, theirs = (make(x, num_levels, type=kind) for make in (Perturbation, peer.Perturbation))
    torch.testing.assert_close(ours.pyramid, theirs.pyramid, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.apply(mask), theirs.apply(mask), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("grid", [(), (2, 3)])
def test_rewards(grid, variant):
    scores = draw(2 if variant == "dual" else 1, 5, *grid)  # one mask: with more, its contrast is between masks
    for ours, theirs in (simple_reward, peer.simple_reward), (contrastive_reward, peer.contrastive_reward):
        expected = theirs(scores, 3, variant)
        torch.testing.assert_close(ours(scores, 3, variant), expected.reshape(1, *grid))


@cache
def small_network():
    """Fast, so that all options can be compared."""
    layers = [nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    return randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)).float()).eval()


RUNS = {
    "defaults": ((64, 96), {}),
    "areas": ((96, 64), {"areas": [0.05, 0.1, 0.2]}),
    "whole": ((64, 64), {"areas": [0.5, 1.0]}),
    "delete": ((64, 96), {"areas": [0.1, 0.3], "variant": "delete"}),
    "dual": ((64, 64), {"areas": [0.1, 0.3], "variant": "dual"}),
    "fade": ((80, 64), {"perturbation": "fade"}),
    "dual fade": ((64, 64), {"perturbation": "fade", "variant": "dual", "num_levels": 5}),
    "step and sigma": ((64, 96), {"step": 5, "sigma": 11.5, "jitter": False}),
    "resize and smooth": ((64, 96), {"resize": (50, 70), "resize_mode": "bicubic", "smooth": 0.05}),
    "contrastive": ((64, 96), {"reward_func": "contrastive_reward"}),
}


def run(search, rewards, name, model, dtype, scale=1.0):
    """Masks and energies of 20 iterations."""
    size, options = RUNS[name]
    x = (scale * (4 * draw(1, 3, *size).double() - 2)).to(dtype)
    options = {"areas": [0.1], "max_iter": 20, **options}
    options["reward_func"] = getattr(rewards, options.get("reward_func", "simple_reward"))
    return search(deepcopy(model).to(dtype), x, 3, **options)


def distance(found, expected):
    """How far masks and energies are apart; the latter relative to the largest of their row."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    assert expected[0].std() > 0
    energies = (found[1] - expected[1]).abs() / expected[1].abs().amax((1, 2), keepdim=True)
    return torch.stack([(found[0] - expected[0]).abs().max(), energies.max()])


@pytest.mark.parametrize("build", [lambda: small_network(), scene_network], ids=["small", "scenes"])
@pytest.mark.parametrize("name", RUNS)
def test_the_search(name, build):
    model = build()
    ours = run(extremal_perturbation, extremal, name, model, torch.float32)
    theirs = run(peer.extremal_perturbation, peer, name, model, torch.float32)
    nearby = run(peer.extremal_perturbation, peer, name, model, torch.float32, scale=1 + 2e-7)
    assert (distance(ours, theirs) <= 1e-3 + 2 * distance(nearby, theirs)).all()


@pytest.fixture
def double_precision(monkeypatch):
    """TorchRay's search in float64 and with a stable order: its masks of parameters and its blur know float32 alone."""
    sort = torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda x, dim: sort(x, dim=dim, stable=True))
    monkeypatch.setattr(peer, "MaskGenerator", lambda *args: MaskGenerator(*args).to(torch.float64))
    monkeypatch.setattr(peer, "imsmooth", imsmooth)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_equal_but_for_rounding(name, model):
    ours = run(extremal_perturbation, extremal, name, model, torch.float64)
    theirs = run(peer.extremal_perturbation, peer, name, model, torch.float64)
    assert (distance(ours, theirs) < 1e-9).all()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("double_precision")
def test_the_search_without_rounding(name):
    assert_equal_but_for_rounding(name, small_network())


@pytest.mark.parametrize("architecture", ["resnet18", "googlenet"])
@pytest.mark.usefixtures("double_precision")
def test_on_deep_networks(architecture):
    assert_equal_but_for_rounding("areas", network(architecture))
