"""The CAMs by components, differences, Shapley values, biases and factors beside pytorch-grad-cam's.

Where it leaves the paper, the paper's formula in loops, and what the peer does in its place.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import saliency
from tests.parity.agreement import assert_agree, relative_error
from tests.parity.networks import CASES, Scaled, images, network
from tests.parity.test_pytorch_grad_cam import captured

peer = pytest.importorskip("pytorch_grad_cam")
from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff  # noqa: E402
from pytorch_grad_cam.utils.model_targets import (  # noqa: E402
    ClassifierOutputReST,
    ClassifierOutputTarget,
    FinerWeightedTarget,
)
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_kernel  # noqa: E402

pytestmark = pytest.mark.parity

PLACES = [pytest.param(name, layer, id=f"{name} {layer}") for name in CASES for layer in ("inside", "last")]


def raw_map(method, name, layer, target=ClassifierOutputTarget, **options):
    """The peer's map of every image before it is clamped and scaled to [0, 1]."""
    model, input = deepcopy(network(name)), images(CASES[name].size).clone()
    module = model.get_submodule(getattr(CASES[name], layer))
    targets = [target(c) for c in CASES[name].target]
    with method(model, [module], **options) as cam:
        input = input.requires_grad_(cam.compute_input_gradient)
        scores = cam.activations_and_grads(input)
        loss = sum(target(output) for target, output in zip(targets, scores, strict=True))
        if cam.detach:
            loss.backward()
        else:
            torch.autograd.grad(loss, input, retain_graph=True, create_graph=True)
        kept = cam.activations_and_grads
        (x,), (dx,) = kept.activations, kept.gradients
        x, dx = (x.numpy(), dx.numpy()) if cam.detach else (x, dx)
        return torch.from_numpy(cam.get_cam_image(input, module, targets, x, dx, False))[:, None].float()


def ours(method, name, layer, target=None, **options):
    place = getattr(CASES[name], layer)
    return method(network(name), images(CASES[name].size), target or CASES[name].target, place, **options)


def turned(theirs, like):
    """With our signs: theirs are those by which the entry that is largest of a vector is positive, or any."""
    signs = (theirs * like).flatten(1).sum(1).sign()
    return theirs * signs.view(-1, 1, 1, 1)


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_eigen_grad_cam(name, layer):
    found = ours(saliency.eigen_grad_cam, name, layer)
    assert_agree(found, turned(raw_map(peer.EigenGradCAM, name, layer), found))


@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf", "sigmoid", "cosine"])
@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_kpca_cam(name, layer, kernel):
    """In double precision: kernels of positions that hardly differ lose it where they are centred."""
    x, _ = captured(network(name), images(CASES[name].size), CASES[name].target, getattr(CASES[name], layer))
    found = saliency.kpca_cam(nn.Sequential(nn.Identity()), torch.from_numpy(x), None, "0", kernel=kernel)
    theirs = torch.from_numpy(get_2d_projection_kernel(x, kernel))[:, None]
    assert_agree(found, turned(theirs, found))


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_eigen_cam(name, layer):
    """The paper decomposes the activation itself, O = U S V^T, L = O v_1; the peer the one without its mean."""
    x, _ = captured(network(name), images(CASES[name].size), CASES[name].target, getattr(CASES[name], layer))
    rows = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
    paper = [one @ np.linalg.svd(one, full_matrices=False)[2][0] for one in rows]
    paper = torch.from_numpy(np.stack(paper)).view(len(x), 1, *x.shape[2:])
    found = ours(saliency.eigen_cam, name, layer)
    assert_agree(found, turned(paper, found))
    theirs = raw_map(peer.EigenCAM, name, layer)
    assert relative_error(turned(theirs, found), found) > 1e-3
    centred = ours(saliency.kpca_cam, name, layer, kernel="linear")
    assert_agree(centred, turned(theirs, centred))


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_fem(name, layer):
    """The paper adds up where a channel is above the threshold, times its mean; the peer the channel itself, times how
    often it is."""
    x, _ = captured(network(name), images(CASES[name].size), CASES[name].target, getattr(CASES[name], layer))
    paper, other = np.zeros((len(x), 1, *x.shape[2:])), np.zeros((len(x), 1, *x.shape[2:]))
    for n in range(len(x)):
        for c in range(x.shape[1]):
            above = x[n, c] > x[n, c].mean() + x[n, c].std()
            paper[n, 0] += x[n, c].mean() * above
            other[n, 0] += above.mean() * x[n, c]
    found = ours(saliency.fem, name, layer, k=1)
    assert_agree(found, torch.from_numpy(paper))
    theirs = raw_map(peer.FEM, name, layer, k=1)
    assert_agree(theirs, torch.from_numpy(other))
    assert relative_error(theirs * (found.max() / theirs.max()), found) > 1e-2


@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_finer_cam(name, layer):
    """Of one class to compare with, the difference of two scores. Of several, the paper takes the mean of the
    differences; the peer weighs them by their probabilities, through which the gradient goes too."""
    scores = network(name)(images(CASES[name].size)).detach()
    distance = (scores - scores[range(2), CASES[name].target][:, None]).abs()
    nearest = distance.argsort(1)[:, 1:4]

    def theirs(count):
        left = iter(nearest[:, :count].tolist())
        return raw_map(peer.GradCAM, name, layer, lambda c: FinerWeightedTarget(c, next(left), 0.6))

    signed = {"reduction": saliency.sum_channels}
    assert_agree(ours(saliency.finer_cam, name, layer, num_references=1, **signed), theirs(1))
    weighted = [FinerWeightedTarget(c, near, 0.6) for c, near in zip(CASES[name].target, nearest.tolist(), strict=True)]
    assert_agree(ours(saliency.grad_cam, name, layer, weighted, **signed), theirs(3))


@pytest.mark.parametrize("target", [ClassifierOutputTarget, ClassifierOutputReST], ids=["logit", "ReST"])
@pytest.mark.parametrize(("name", "layer"), PLACES)
def test_shapley_cam(name, layer, target):
    found = ours(saliency.shapley_cam, name, layer, [target(c) for c in CASES[name].target])
    assert_agree(found, raw_map(peer.ShapleyCAM, name, layer, target).relu())


@pytest.mark.parametrize("name", CASES)
def test_full_grad(name):
    """In double precision, and of large scores: it adds 1e-7 to what it divides by."""
    model, case = Scaled(deepcopy(network(name)).double(), 1e6), CASES[name]
    input = images(case.size).double()
    found = saliency.full_grad(model, input, case.target)
    with peer.FullGrad(model, []) as cam:
        given = input.clone().requires_grad_()
        cam.activations_and_grads(given)[range(2), case.target].sum().backward()
        theirs = cam.compute_cam_per_layer(given, None, False)
    assert_agree(found, torch.from_numpy(theirs))


def test_deep_feature_factorization():
    """A factorisation has no one solution: ours leaves as little as the peer's. It is of what is no less than 0."""
    model, input = network("resnet18"), images()
    x = saliency.activation(model, input, None, "layer3", reduction=None)
    assert x.min() == 0
    maps, concepts = saliency.deep_feature_factorization(model, input, "layer3", n_components=5)
    theirs, explanations = dff(x.numpy().copy(), n_components=5)

    def error(maps, concepts):
        return float((x - torch.einsum("nkhw,kc->nchw", maps, concepts)).norm() / x.norm())

    offset = x.amin((0, 2, 3))  # which the peer takes away, and adds to every concept
    of_peer = error(torch.from_numpy(explanations), torch.from_numpy(theirs.T.copy()) - offset)
    assert error(maps, concepts) <= 1.01 * of_peer
