"""torch-cam, where it computes what the papers say."""

from copy import deepcopy
from unittest.mock import patch

import pytest
import torch

import saliency
from saliency.engine import paths
from tests.parity.agreement import assert_agree, relative_error
from tests.parity.networks import CASES, Scaled, images, network

peer = pytest.importorskip("torchcam.methods")

pytestmark = pytest.mark.parity

METHODS = {"grad_cam": peer.GradCAM, "layer_cam": peer.LayerCAM, "xgrad_cam": peer.XGradCAM}


def raw_map(method, model, input, target, layer):
    model = deepcopy(model)
    with method(model, layer) as cam:
        (map,) = cam(target, model(input.clone()), normalized=False)
    return map[:, None]


@pytest.mark.parametrize("layer", ["inside", "last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_cam(method, name, layer):
    layer = getattr(CASES[name], layer)
    input, target = images(CASES[name].size), CASES[name].target
    ours = getattr(saliency, method)(network(name), input, target, layer)
    assert_agree(ours, raw_map(METHODS[method], network(name), input, target, layer))


def test_its_grad_cam_plus_plus_does_not_normalise():
    # It divides a copy, so its weights are sum relu(g)^3 whatever the denominator.
    input, target = images(), CASES["resnet18"].target

    def cubes(x):
        return (x * x.grad.relu().pow(3).sum((2, 3), keepdim=True)).sum(1, keepdim=True).relu()

    theirs = raw_map(peer.GradCAMpp, network("resnet18"), input, target, "layer4")
    not_normalised = saliency.saliency(network("resnet18"), input, target, "layer4", gradient_to_saliency=cubes)
    assert_agree(not_normalised, theirs)
    ours = saliency.grad_cam_plus_plus(network("resnet18"), input, target, "layer4")
    scale = (ours * theirs).sum() / (theirs * theirs).sum()
    assert relative_error(theirs * scale, ours) > 1e-3
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("name", CASES)
def test_finer_cam(name):
    case, input = CASES[name], images(CASES[name].size)
    model = deepcopy(network(name))
    with peer.FinerCAM(model, case.last, gamma=0.6, num_references=3) as cam:
        (map,) = cam(case.target, model(input.clone()), normalized=False)
    assert_agree(saliency.finer_cam(network(name), input, case.target, case.last), map[:, None])


@pytest.mark.parametrize(("fuse", "method"), [("max", "LayerCAM"), ("product", "RefineCAM")])
@pytest.mark.parametrize("name", CASES)
def test_several_layers(name, method, fuse):
    """LayerCAM's maximum behind a hyperbolic tangent, and RefineCAM's product: of maps that are 0 somewhere."""
    case, input = CASES[name], images(CASES[name].size)
    layers = [case.inside, case.last]
    model = deepcopy(network(name))
    ours = saliency.fused(saliency.layer_cam, fuse, 2.0 if fuse == "max" else None)
    if method == "LayerCAM":
        with peer.LayerCAM(model, layers) as cam:
            theirs = cam.fuse_cams(cam(case.target, model(input.clone())))
    else:
        with peer.RefineCAM(model, layers, base_method=peer.LayerCAM) as cam:
            (theirs,) = cam(case.target, model(input.clone()), normalized=False)
    maps = saliency.layer_cam(network(name), input, case.target, layers)
    if all((each.amin((2, 3)) == 0).all() for each in maps):
        assert_agree(ours(network(name), input, case.target, layers), theirs[:, None])
    else:  # theirs takes away a minimum that is above 0
        assert all(each.min() > 0 or (each.amin((2, 3)) >= 0).all() for each in maps)


@pytest.mark.parametrize("name", CASES)
def test_smooth_grad_cam_plus_plus(name):
    """Equal draws. It adds up A g^3 over the positions, where the paper has the sum of A times the mean of g^3, and
    takes the last image's gradient, not their mean. With both in place of the paper's, ours are its weights."""
    samples, case, input = 3, CASES[name], images(CASES[name].size).double()
    model = Scaled(deepcopy(network(name)).double(), 1e4)  # it adds 1e-8 to the denominator
    layer = f"network.{case.inside}"
    walk, steps = paths.noise(samples, 0.3).begin([input], None), torch.arange(samples)
    noisy = torch.stack([walk(torch.full((samples,), n), steps).points[0] for n in range(2)], 1)
    copy = deepcopy(model)
    with peer.SmoothGradCAMpp(copy, layer, num_samples=samples) as cam:
        copy(input.clone())
        with patch.object(cam._distrib, "sample", side_effect=list(noisy - input)):
            (theirs,) = cam._get_weights(case.target)
    x = saliency.activation(model, input, None, layer, reduction=None)
    raw = {"gradient_to_saliency": lambda x: x.grad, "layout": "layer"}
    gradients = torch.stack([saliency.saliency(model, images, case.target, layer, **raw) for images in noisy])
    first, second, third = ((gradients**power).mean(0) for power in (1, 2, 3))

    def weights(denominator, gradient):
        return torch.where(second > 0, second / denominator * gradient.relu(), 0).sum((2, 3))

    def total(x):
        return x.sum((2, 3), keepdim=True)

    assert_agree(weights(2 * second + total(third * x), gradients[-1]), theirs)
    options = {"n_samples": samples, "stdevs": 0.3, "reduction": None}
    ours = saliency.smooth_grad_cam_plus_plus(model, input, case.target, layer, **options)
    assert_agree(ours, x * weights(2 * second + total(x) * third, first)[..., None, None])
    assert relative_error(theirs[..., None, None] * x, ours) > 1e-2
