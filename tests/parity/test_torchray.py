"""TorchRay, whose interface this is: the same maps, at the input and inside, from the same pieces."""

import importlib
from copy import deepcopy

import pytest
import torch
from torch import nn

import saliency
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network

TARGET = [1, 3]

common = pytest.importorskip("torchray.attribution.common")
peer_utils = pytest.importorskip("torchray.utils")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # its ReLUContext does
]


def peer(method):
    # `torchray.attribution.gradient` is a module and, after some imports, also a function.
    return getattr(importlib.import_module(f"torchray.attribution.{method}"), method)


def compare(method, name, layer, target=None, **options):
    model, input = network(name), images(CASES[name].size)
    target = CASES[name].target if target is None else target
    ours = getattr(saliency, method)(model, input, target, saliency_layer=layer, **options)
    theirs = peer(method)(deepcopy(model), input.clone(), target, saliency_layer=layer, **options)
    assert_agree(ours, theirs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["gradient", "deconvnet", "guided_backprop", "linear_approx"])
class TestGradientFamily:
    def test_at_the_input(self, method, name):
        compare(method, name, "")

    def test_inside(self, method, name):
        compare(method, name, CASES[name].inside)


@pytest.mark.parametrize("layer", ["inside", "last"])
@pytest.mark.parametrize("name", CASES)
def test_grad_cam(name, layer):
    compare("grad_cam", name, getattr(CASES[name], layer))


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "grad_cam", "linear_approx"])
@pytest.mark.parametrize(
    "options",
    [
        {"resize": True},
        {"resize": (50, 70)},
        {"resize": [50, 70], "resize_mode": "bicubic"},
        {"smooth": 0.02},
        {"resize": (60, 40), "smooth": 0.05},
    ],
    ids=str,
)
def test_resize_and_smooth(method, options):
    compare(method, "resnet18", "layer2", **options)


@pytest.mark.parametrize("target", [4, [2, 2], torch.tensor([9, 0]), torch.linspace(-1, 1, 20).view(2, 10)], ids=repr)
def test_targets(target):
    compare("gradient", "vgg11_bn", "", target)


def test_several_targets_in_one_call():
    model, input = network("resnet18"), images()
    ours = saliency.gradient(model, input, torch.tensor([[1, 5, 9], [3, 3, 0]]), "layer2")
    calls = [peer("gradient")(deepcopy(model), input.clone(), target, "layer2") for target in ([1, 3], [5, 3], [9, 0])]
    assert_agree(ours, torch.cat(calls, 1))


def test_guided_relu_at_exactly_zero():
    # The paper's rule passes the gradient on where x > 0, TorchRay's code where x >= 0. Elsewhere they are the same.
    input, ones = torch.tensor([[-1.0, 0.0, 1.0]]), torch.ones(1, 3)
    ours = saliency.guided_backprop(nn.ReLU(), input, ones, gradient_to_saliency=lambda x: x.grad, layout="layer")
    theirs = peer("guided_backprop")(nn.ReLU(), input, ones, gradient_to_saliency=lambda x: x.grad)
    assert ours.tolist() == [[0, 0, 1]]
    assert theirs.tolist() == [[0, 1, 1]]


def test_wide_images():
    model, input = network("resnet18"), images(128)[..., :80, :]
    ours = saliency.grad_cam(model, input, TARGET, "layer4", resize=True, smooth=0.03)
    theirs = peer("grad_cam")(deepcopy(model), input.clone(), TARGET, saliency_layer="layer4", resize=True, smooth=0.03)
    assert_agree(ours, theirs)


def test_every_debug_probe():
    model, input = network("vgg11_bn"), images()
    map, probes = saliency.saliency(model, input, TARGET, "features.14", debug=True)
    their_map, their_probes = common.saliency(deepcopy(model), input.clone(), TARGET, "features.14", debug=True)
    assert_agree(map, their_map)
    assert list(probes) == list(their_probes)
    for name, probe in probes.items():
        assert_agree(probe.data[0], their_probes[name].data[0])
        assert_agree(probe.data[0].grad, their_probes[name].data[0].grad)


class TestPointingGradient:
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("shape", [(10,), (10, 5, 4)])
    def test_of_an_output(self, shape, normalize):
        output = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
        ours = saliency.get_pointing_gradient(output, TARGET, normalize)
        theirs = [common.get_pointing_gradient(output[n : n + 1], TARGET[n], normalize) for n in range(2)]
        assert_agree(ours, torch.cat(theirs))

    @pytest.mark.parametrize("layer", ["", "features.14"])
    def test_of_a_fully_convolutional_network(self, layer):
        torch.manual_seed(3)
        model = nn.Sequential()
        model.features, model.classifier = network("vgg11_bn").features, nn.Conv2d(512, 10, 1)
        input = images(128)
        ours = saliency.gradient(
            model, input, TARGET, layer, smooth=0.02, get_backward_gradient=saliency.get_pointing_gradient
        )
        theirs = [
            peer("gradient")(
                deepcopy(model),
                input[n : n + 1].clone(),
                TARGET[n],
                layer,
                smooth=0.02,
                get_backward_gradient=common.get_pointing_gradient,
            )
            for n in range(2)
        ]
        assert_agree(ours, torch.cat(theirs))


class TestOwnPieces:
    """A user's pieces, written for TorchRay, mean the same here; and TorchRay's pieces do."""

    @pytest.mark.parametrize("name", CASES)
    def test_own_reduction_and_own_gradient(self, name):
        (target, size, layer, _), model = CASES[name], network(name)
        input = images(size)
        pieces = {"gradient_to_saliency": own_reduction, "get_backward_gradient": own_gradient}
        ours = saliency.saliency(model, input, target, layer, **pieces)
        assert_agree(ours, common.saliency(deepcopy(model), input.clone(), target, layer, **pieces))

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("patch", [saliency.Patch, common.Patch], ids=["our Patch", "their Patch"])
    def test_own_context(self, name, patch):
        target, model, input = CASES[name].target, network(name), images(CASES[name].size)
        ours = saliency.saliency(model, input, target, context_builder=lambda: OwnContext(patch))
        theirs = common.saliency(
            deepcopy(model), input.clone(), target, context_builder=lambda: OwnContext(common.Patch)
        )
        assert_agree(ours, theirs)

    @pytest.mark.parametrize("name", CASES)
    def test_own_relu(self, name):
        target, model, input = CASES[name].target, network(name), images(CASES[name].size)
        ours = saliency.saliency(model, input, target, context_builder=lambda: saliency.ReLUContext(OwnReLU))
        theirs = common.saliency(
            deepcopy(model), input.clone(), target, context_builder=lambda: common.ReLUContext(OwnReLU)
        )
        assert_agree(ours, theirs)

    def test_their_contexts_and_reductions_in_our_driver(self):
        from torchray.attribution.grad_cam import gradient_to_grad_cam_saliency
        from torchray.attribution.guided_backprop import GuidedBackpropContext

        model, input = network("resnet18"), images()
        pieces = {"context_builder": GuidedBackpropContext, "gradient_to_saliency": gradient_to_grad_cam_saliency}
        ours = saliency.saliency(model, input, TARGET, "layer2", **pieces)
        assert_agree(ours, common.saliency(deepcopy(model), input.clone(), TARGET, "layer2", **pieces))


def own_reduction(x):
    return (x.detach() * x.grad).abs().sum(1, keepdim=True).sqrt()


def own_gradient(output, target):
    """The gradient of the logarithm of a probability."""
    chosen = nn.functional.one_hot(torch.tensor(target), output.shape[1])
    return chosen - output.detach().softmax(1)


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (input,) = ctx.saved_tensors
        return gradient * torch.where(input > 0, 1.0, 0.25)


class OwnContext:
    def __init__(self, patch):
        self.patch = patch

    def __enter__(self):
        self.patches = [self.patch("torch.relu", OwnReLU.apply), self.patch("torch.relu_", OwnReLU.apply)]

    def __exit__(self, *error):
        for patch in self.patches:
            patch.remove()


class TestFunctions:
    @pytest.mark.parametrize("sigma", [0, 0.3, 1.0, 2.7])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"padding_mode": "replicate"},
            {"padding_mode": "replicate", "padding": 2},
            {"padding_mode": "reflect", "padding": 1},
            {"padding_value": 0.5},
            {"padding_value": 0.5, "padding": 3},
        ],
        ids=str,
    )
    def test_imsmooth(self, options, stride, sigma):
        tensor = images(24)[..., :17]
        ours = saliency.imsmooth(tensor, sigma, stride=stride, **options)
        assert_agree(ours, peer_utils.imsmooth(tensor, sigma, stride=stride, **options))

    def test_imsmooth_pads_both_axes_once(self):
        # With zeros as padding TorchRay pads each axis in both convolutions, with other values only once.
        tensor = images(24)
        assert peer_utils.imsmooth(tensor, 1, padding=2, padding_value=0.5).shape[2:] == (28, 28)
        assert peer_utils.imsmooth(tensor, 1, padding=2).shape[2:] == (32, 32)
        assert saliency.imsmooth(tensor, 1, padding=2).shape[2:] == (28, 28)

    @pytest.mark.parametrize("size", [False, True, (9, 14), [30, 20]], ids=str)
    @pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
    def test_resize_saliency(self, size, mode):
        tensor, map = images(24), images(7)[:, :1]
        ours = saliency.resize_saliency(tensor, map, size, mode)
        assert_agree(ours, common.resize_saliency(tensor, map, size, mode))

    @pytest.mark.parametrize("shape", [(2, 10), (2, 10, 4, 3)], ids=str)
    @pytest.mark.parametrize("target", [0, 9, TARGET, torch.tensor(TARGET)], ids=repr)
    def test_get_backward_gradient(self, shape, target):
        output = torch.randn(shape)
        ours = saliency.get_backward_gradient(output, target)
        assert torch.equal(ours, common.get_backward_gradient(output, target))

    def test_get_backward_gradient_takes_the_gradient_itself(self):
        output, gradient = torch.randn(2, 10), torch.randn(2, 10)
        ours = saliency.get_backward_gradient(output, gradient)
        assert torch.equal(ours, common.get_backward_gradient(output, gradient))

    def test_gradient_to_saliency(self):
        x = torch.zeros(2, 5, 3, 4)
        x.grad = torch.randn(2, 5, 3, 4)
        assert torch.equal(saliency.gradient_to_saliency(x), common.gradient_to_saliency(x))
