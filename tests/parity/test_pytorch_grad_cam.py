"""pytorch-grad-cam, and the papers' formulas where it leaves them."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import saliency
from tests.parity.agreement import assert_agree, relative_error
from tests.parity.networks import CASES, Scaled, images, network

peer = pytest.importorskip("pytorch_grad_cam")

pytestmark = pytest.mark.parity


def raw_map(method, model, input, target, layer):
    """The peer's map before it is scaled to [0, 1]; its hooks, weights and sum, on a copy of the model."""
    model = deepcopy(model)
    module = model.get_submodule(layer)
    with method(model, [module]) as cam:
        scores = cam.activations_and_grads(input.clone())
        scores[range(len(target)), target].sum().backward()
        (x,), (dx,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
        map = cam.get_cam_image(input, module, target, x.numpy(), dx.numpy(), False)
    return torch.from_numpy(np.maximum(map, 0))[:, None]


def captured(model, input, target, layer):
    """Activation and gradient of a layer that no in-place operation follows, by a plain hook, in float64."""
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    scores = model(input)
    hook.remove()
    (dx,) = torch.autograd.grad(scores[range(len(target)), target].sum(), kept)
    return kept[0].detach().double().numpy(), dx.double().numpy()


def sum_of_channels(x, weights):
    """ReLU(sum_c w_c x_c), one image and channel after the other."""
    maps = np.zeros((len(x), 1, *x.shape[2:]))
    for n in range(len(x)):
        for c in range(x.shape[1]):
            maps[n, 0] += weights[n][c] * x[n, c]
    return torch.from_numpy(np.maximum(maps, 0))


def grad_cam_plus_plus_weights(x, dx):
    """Equations 19 and 10 of the paper: alpha_uv = g^2 / (2 g^2 + g^3 sum_ab A_ab), w = sum_uv alpha_uv relu(g_uv)."""
    weights = np.zeros(x.shape[:2])
    for n, c, u, v in np.ndindex(*x.shape):
        g = dx[n, c, u, v]
        if g > 0:  # elsewhere relu(g) is 0
            weights[n, c] += g**2 / (2 * g**2 + g**3 * x[n, c].sum()) * g
    return weights


def xgrad_cam_weights(x, dx):
    """Equation 7 of the paper: w = sum_uv g_uv A_uv / sum_ab A_ab; a channel that is 0 adds nothing to the map."""
    weights = np.zeros(x.shape[:2])
    for n, c in np.ndindex(*x.shape[:2]):
        if x[n, c].any():
            weights[n, c] = (dx[n, c] * x[n, c]).sum() / x[n, c].sum()
    return weights


METHODS = {
    "grad_cam": peer.GradCAM,
    "grad_cam_plus_plus": peer.GradCAMPlusPlus,
    "layer_cam": peer.LayerCAM,
    "xgrad_cam": peer.XGradCAM,
    "hires_cam": peer.HiResCAM,
}
WEIGHTS = {"grad_cam_plus_plus": grad_cam_plus_plus_weights, "xgrad_cam": xgrad_cam_weights}


@pytest.mark.parametrize("layer", ["inside", "last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_cam(method, name, layer):
    # Its Grad-CAM++ adds 1e-6 to a g^2 of about that size: agreement is tested on large scores.
    model = Scaled(network(name), 1e4) if method == "grad_cam_plus_plus" else network(name)
    layer = ("network." if isinstance(model, Scaled) else "") + getattr(CASES[name], layer)
    input, target = images(CASES[name].size), CASES[name].target
    ours = getattr(saliency, method)(model, input, target, layer)
    assert_agree(ours, raw_map(METHODS[method], model, input, target, layer))


@pytest.mark.parametrize("layer", ["inside", "last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", WEIGHTS)
def test_formula(method, name, layer):
    model, layer = network(name), getattr(CASES[name], layer)
    input, target = images(CASES[name].size), CASES[name].target
    x, dx = captured(model, input, target, layer)
    ours = getattr(saliency, method)(model, input, target, layer)
    assert_agree(ours, sum_of_channels(x, WEIGHTS[method](x, dx)))


def test_grad_cam_plus_plus_with_an_absolute_epsilon_leaves_the_formula():
    model, input, target = network("resnet18"), images(), CASES["resnet18"].target
    x, dx = captured(model, input, target, "layer3")
    formula = sum_of_channels(x, grad_cam_plus_plus_weights(x, dx))
    theirs = raw_map(peer.GradCAMPlusPlus, model, input, target, "layer3")
    assert relative_error(theirs, formula) > 1e-3


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_guided_backprop(name):
    input, target = images(), CASES[name].target
    ours = saliency.guided_backprop(network(name), input, target, gradient_to_saliency=lambda x: x.grad, layout="layer")
    theirs = peer.GuidedBackpropReLUModel(deepcopy(network(name)), "cpu")
    # It explains one image at a time, and gives it channels last.
    theirs = [torch.from_numpy(theirs(input[n : n + 1].clone(), target[n])).movedim(2, 0) for n in range(2)]
    assert_agree(ours, torch.stack(theirs))
