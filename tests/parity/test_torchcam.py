"""torch-cam, where it computes what the papers say."""

from copy import deepcopy

import pytest
import torch

import saliency
from tests.parity.agreement import assert_agree, relative_error
from tests.parity.networks import CASES, images, network

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
