"""Excitation backprop against the paper's formula in plain loops, its mass, and its contrastive variant."""

import itertools
import threading
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import saliency
from saliency import (
    ContrastiveExcitationBackpropContext,
    ExcitationBackpropContext,
    Probe,
    contrastive_excitation_backprop,
    excitation_backprop,
    get_backward_gradient,
)
from saliency.rules.excitation import positive_part
from tests import cases
from tests.cases import NOTICES
from tests.parity.networks import randomise

pytestmark = NOTICES

RAW = {"gradient_to_saliency": lambda x: x.grad, "layout": "layer"}
EXACT = {"rtol": 1e-11, "atol": 1e-14}


def mass(map: Tensor) -> Tensor:
    return map.flatten(1).sum(1)


class Net(nn.Module):
    """Convolution, max pooling, batch norm, a residual sum, concatenation, average pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv3 = nn.Conv2d(4, 3, 3, padding=1, stride=2)
        self.conv4 = nn.Conv2d(4, 2, 1, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(5, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu_())
        x = self.relu(self.bn(self.conv2(x)) + x)
        x = torch.cat([F.relu(self.conv3(x)), F.relu(self.conv4(x))], 1)
        return self.fc(self.hidden(self.average(x).flatten(1)).relu())


def conv_links(weight, shape, stride, padding):
    """The connections of a convolution: for every unit its inputs, each with its weight."""
    (outputs, inputs, kh, kw), (_, height, width) = weight.shape, shape
    rows, columns = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    links = {}
    for o, r, c in itertools.product(range(outputs), range(rows), range(columns)):
        links[o, r, c] = []
        for i, dr, dc in itertools.product(range(inputs), range(kh), range(kw)):
            at = (i, r * stride + dr - padding, c * stride + dc - padding)
            if 0 <= at[1] < height and 0 <= at[2] < width:
                links[o, r, c].append((at, float(weight[o, i, dr, dc])))
    return links


def linear_links(weight):
    return {(o,): [((i,), float(w)) for i, w in enumerate(row)] for o, row in enumerate(weight)}


def window_links(shape, size):
    links = {}
    for c, y, x in itertools.product(range(shape[0]), range(shape[1] // size), range(shape[2] // size)):
        window = itertools.product([c], range(size * y, size * y + size), range(size * x, size * x + size))
        links[c, y, x] = [(at, 1 / size**2) for at in window]
    return links


def run_links(links, x, bias):
    shape = tuple(max(unit[axis] for unit in links) + 1 for axis in range(len(next(iter(links)))))
    y = np.zeros(shape)
    for unit, inputs in links.items():
        y[unit] = sum(w * x[at] for at, w in inputs) + bias[unit[0]]
    return y


def win(links, x, p):
    """Every unit draws one of its inputs: with probability w+ x+ / (sum of w+ x+)."""
    sent = np.zeros_like(x)
    for unit, inputs in links.items():
        chances = [max(w, 0) * max(x[at], 0) for at, w in inputs]
        for (at, _), chance in zip(inputs, chances, strict=True):
            if chance > 0:
                sent[at] += chance / sum(chances) * p[unit]
    return sent


def win_max(shape, size, x, p):
    sent = np.zeros_like(x)
    for unit, inputs in window_links(shape, size).items():
        sent[max((at for at, _ in inputs), key=lambda at: x[at])] += p[unit]
    return sent


def paper(net: Net, image: Tensor, target: int) -> dict[str, np.ndarray]:
    """Winning probabilities at the layers of ``Net``, for one image."""
    w = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    x = image.numpy()
    links1 = conv_links(w["conv1.weight"], x.shape, 1, 1)
    a = np.maximum(run_links(links1, x, w["conv1.bias"]), 0)
    b = np.zeros((4, a.shape[1] // 2, a.shape[2] // 2))
    for unit, inputs in window_links(a.shape, 2).items():
        b[unit] = max(a[at] for at, _ in inputs)
    links2 = conv_links(w["conv2.weight"], b.shape, 1, 1)
    scale = w["bn.weight"] / np.sqrt(w["bn.running_var"] + net.bn.eps)
    c = run_links(links2, b, w["conv2.bias"])
    c = (c - w["bn.running_mean"][:, None, None]) * scale[:, None, None] + w["bn.bias"][:, None, None]
    d = np.maximum(c + b, 0)
    links3, links4 = conv_links(w["conv3.weight"], d.shape, 2, 1), conv_links(w["conv4.weight"], d.shape, 2, 0)
    three = np.maximum(run_links(links3, d, w["conv3.bias"]), 0)
    e = np.concatenate([three, np.maximum(run_links(links4, d, w["conv4.bias"]), 0)])
    averages, hidden, fc = window_links(e.shape, 2), linear_links(w["hidden.weight"]), linear_links(w["fc.weight"])
    f = run_links(averages, e, [0] * 5).flatten()
    g = np.maximum(run_links(hidden, f, w["hidden.bias"]), 0)

    p = {"hidden": win(fc, g, np.eye(3)[target])}
    p["average"] = win(hidden, f, p["hidden"])[:, None, None]
    both = win(averages, e, p["average"])
    p["conv3"], p["conv4"] = both[:3], both[3:]
    p["relu"] = win(links3, d, p["conv3"]) + win(links4, d, p["conv4"])
    p["bn"] = p["conv2"] = c / (c + b) * p["relu"]
    p["pool"] = b / (c + b) * p["relu"] + win(links2, b, p["conv2"])
    p["conv1"] = win_max(a.shape, 2, a, p["pool"])
    p[""] = win(links1, x, p["conv1"])
    return p


LAYERS = ("", "conv1", "pool", "conv2", "bn", "relu", "conv3", "conv4", "average", "hidden")


class TestPaper:
    @pytest.mark.parametrize("target", [0, 1, 2])
    def test_the_formula_in_loops(self, target):
        torch.manual_seed(3)
        net = randomise(Net()).double().eval()
        for layer in (net.hidden, net.fc):  # so that something of every image and layer excites the class
            nn.init.uniform_(layer.weight, -0.5, 1)
        images = torch.randn(2, 2, 6, 7, dtype=torch.float64)
        found = excitation_backprop(net, images, target, list(LAYERS), **RAW)
        for n in range(2):
            expected = paper(net, images[n], target)
            for layer, map in zip(LAYERS, found, strict=True):
                torch.testing.assert_close(map[n], torch.from_numpy(expected[layer]), **EXACT)
                assert expected[layer].any(), layer

    def test_one_convolution_by_hand(self):
        """The sums of the windows are 45, 54, 81, 90; behind the ReLU 0, 4, 31, 40 and 0, 0, 6, 15.

        The first five units excite the class, the last three its opposite: totals of 75 and 21.
        """
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU()).double()
        with torch.no_grad():
            model[0].weight.fill_(1)
            model[0].bias.copy_(torch.tensor([-50, -75]))
            model[3].weight.copy_(torch.tensor([1, 1, 1, 1, 1, -1, -1, -1]).expand(4, 8))
            model[3].bias.zero_()
        image = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
        expected = torch.tensor([[0, 4 / 75], [31 / 75, 40 / 75]], dtype=torch.float64)
        contrast = torch.tensor([[0, 4 / 75], [31 / 75 - 6 / 21, 0]], dtype=torch.float64)  # 40 / 75 - 15 / 21 < 0
        for layer in ("0", "1"):
            torch.testing.assert_close(excitation_backprop(model, image, 0, layer)[0, 0], expected, **EXACT)
            for at in (None, "1", "2"):
                found = contrastive_excitation_backprop(model, image, 0, layer, at)
                torch.testing.assert_close(found[0, 0], contrast, **EXACT)
        # Every pixel of a window wins by its own value: the pixel of value 15 in one window, 0 in none.
        window = torch.nn.functional.unfold(image, 3)[0]
        shares = window / window.sum(0) * expected.flatten()
        pixels = F.fold(shares[None], (4, 4), 3)[0, 0]
        torch.testing.assert_close(excitation_backprop(model, image, 0, "")[0, 0], pixels, **EXACT)

    def test_the_default_layer_is_the_last_with_a_grid(self):
        net, x = randomise(Net()).double().eval(), torch.rand(2, 2, 12, 12, dtype=torch.float64)
        assert torch.equal(excitation_backprop(net, x, 0), excitation_backprop(net, x, 0, "conv4"))

    def test_the_reductions(self):
        x = torch.zeros(1, 2, 1, 2)
        x.grad = torch.tensor([[[[1.0, -3.0]], [[0.5, 2.0]]]])
        assert saliency.gradient_to_excitation_backprop_saliency(x).flatten().tolist() == [1.5, -1]
        assert saliency.gradient_to_contrastive_excitation_backprop_saliency(x).flatten().tolist() == [1.5, 0]
        with pytest.raises(ValueError, match=r"expected .*"):
            saliency.gradient_to_excitation_backprop_saliency(torch.zeros(1, 2, 1, 2))


RESNET_BLOCKS = [f"layer{i}.{j}" for i, blocks in enumerate((3, 4, 6, 3), 1) for j in range(blocks)]
# Every layer that all paths cross, but for those in front of units that lose their share.
CROSSED = {
    "vgg16": [f"features.{i}" for i in range(31)] + ["avgpool", "classifier.0", "classifier.3"],
    "resnet50": ["", "conv1", "bn1", "relu", "maxpool", *RESNET_BLOCKS, "avgpool"],
    "googlenet": ["", "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"]
    + [f"inception4{c}" for c in "abcde"]
    + ["maxpool4", "inception5a", "inception5b", "avgpool"],
    "inception_v3": ["", "Conv2d_1a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_4a_3x3", "maxpool2"]
    + [f"Mixed_{c}" for c in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]]
    + ["avgpool"],
    "densenet121": ["", "features.conv0", "features.norm0", "features.pool0"]
    + [f"features.{part}{i}" for i in (1, 2, 3) for part in ("denseblock", "transition")]
    + ["features.denseblock4", "features.norm5", "features"],
    "mobilenet_v2": [f"features.{i}" for i in range(3, 19)],
}
OPTIONS = {
    "vgg16": {"init_weights": False},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **OPTIONS.get(name, {}))
    if name == "vgg16":  # few hidden units in place of 4096
        hidden = [nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 48), nn.ReLU(True)]
        model.classifier = nn.Sequential(*hidden, nn.Linear(48, 10))
    return model.double().eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TestMass:
    @pytest.mark.parametrize("name", CROSSED)
    def test_it_is_1_at_every_layer_that_all_paths_cross(self, name):
        x = images(96 if name == "inception_v3" else 64)
        maps = excitation_backprop(network(name), x, [1, 3], CROSSED[name])
        for layer, map in zip(CROSSED[name], maps, strict=True):
            assert (mass(map) - 1).abs().max() < 1e-9, layer

    @pytest.mark.parametrize("random", [False, True], ids=["torchvision's own", "random statistics"])
    @pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "densenet121"])
    def test_what_is_missing_is_what_units_without_excitation_had(self, name, random):
        """A shift by a bias or a normalisation lets a unit win that has no active excitatory input, or is 0 itself."""
        model = network(name)
        model = randomise(model) if random else model
        inputs: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0].clone()}))
            for name, layer in model.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.ReLU))
        ]
        map, probes = excitation_backprop(model, images(), [1, 3], "", debug=True)
        for hook in hooks:
            hook.remove()
        lost = torch.zeros(2, dtype=torch.float64)
        for path, x in inputs.items():
            layer = deepcopy(model.get_submodule(path))
            for parameter in layer.parameters():
                parameter.data = parameter.data.clamp(min=0) if parameter.ndim > 1 else torch.zeros_like(parameter)
            p = probes[path].data[0].grad
            lost += mass(torch.where(layer(x.clamp(min=0)) == 0, p, 0)).detach()
        torch.testing.assert_close(mass(map) + lost, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)
        assert lost.max() > 1e-6 or (name == "densenet121" and not random)

    def test_a_unit_that_only_its_bias_excites_loses_its_share(self):
        """Hidden units of 2 and 3: the second is all bias, so 3/5 are lost."""
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1, 1], [-1, 0]]))
            model[0].bias.copy_(torch.tensor([0, 4]))
            model[2].weight.fill_(1)
        x = torch.ones(1, 2, dtype=torch.float64)
        assert excitation_backprop(model, x, 0, "0", **RAW)[0].tolist() == pytest.approx([0.4, 0.6])
        assert excitation_backprop(model, x, 0, "", **RAW)[0].tolist() == pytest.approx([0.2, 0.2])

    def test_a_dead_class_sends_nothing(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        with torch.no_grad():
            model[2].weight[0].abs_().neg_()
        x = torch.rand(2, 3, dtype=torch.float64)
        assert not excitation_backprop(model, x, 0, "", **RAW).any()

    @pytest.mark.parametrize(
        "activation",
        [
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.SiLU,
            nn.GELU,
            nn.ELU,
            nn.Sigmoid,
            nn.Tanh,
            nn.Softplus,
            nn.Hardswish,
            nn.Mish,
        ],
    )
    @pytest.mark.parametrize(
        "head", [nn.Identity, nn.Sigmoid, lambda: nn.Softmax(1), lambda: nn.LogSoftmax(1), nn.ReLU6]
    )
    def test_any_activation_and_any_head(self, activation, head):
        body = [nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3, bias=False), activation(), nn.AdaptiveAvgPool2d(1)]
        model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 5), head()).double()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # some positive activation for every unit
                nn.init.uniform_(module.weight, -0.5, 1)
        x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
        for map in excitation_backprop(model, x, [1, 4], ["", "0", "1", "2", "3", "4"]):
            torch.testing.assert_close(mass(map), torch.ones(2, dtype=torch.float64))

    @pytest.mark.parametrize(
        "norm",
        [
            lambda: nn.BatchNorm2d(8),
            lambda: nn.InstanceNorm2d(8, affine=True),
            lambda: nn.GroupNorm(2, 8),
            lambda: nn.LayerNorm((8, 7, 7)),
            lambda: nn.LocalResponseNorm(3),
            nn.Dropout,
        ],
    )
    def test_normalisations_pass_it_on(self, norm):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU(), nn.Conv2d(8, 8, 7), nn.Flatten(), nn.Linear(8, 5))
        model = model.double().eval()
        nn.init.uniform_(model[0].weight, -0.5, 1)
        nn.init.constant_(model[5].weight, 1)
        maps = excitation_backprop(model, torch.rand(2, 3, 9, 9, dtype=torch.float64), 1, ["0", "1", ""])
        assert torch.equal(maps[0], maps[1])
        torch.testing.assert_close(mass(maps[2]), mass(maps[0]))
        assert (mass(maps[0]) > 0.5).all()


class TestNumbers:
    def test_linear_in_the_start(self):
        net, x = randomise(Net()).double().eval(), torch.randn(2, 2, 6, 7, dtype=torch.float64)
        a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
        maps = [excitation_backprop(net, x, start, "conv1") for start in (a, b, 2 * a - 3 * b)]
        torch.testing.assert_close(maps[2], 2 * maps[0] - 3 * maps[1])

    @pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
    def test_several_targets_in_one_call(self, method):
        net, x = randomise(Net()).double().eval(), torch.randn(2, 2, 6, 7, dtype=torch.float64)
        found = method(net, x, torch.tensor([[0, 2, 1], [1, 1, 0]]), "conv1")
        single = [method(net, x, target, "conv1") for target in ([0, 1], [2, 1], [1, 0])]
        torch.testing.assert_close(found, torch.cat(single, 1))
        several = method(net, x, [0, 1], ["conv1", "pool"])
        torch.testing.assert_close(several[0], single[0])
        torch.testing.assert_close(several[1], method(net, x, [0, 1], "pool"))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
    def test_a_black_image(self, method, dtype):
        model = network("resnet50").to(dtype) if method is excitation_backprop else randomise(Net()).eval().to(dtype)
        x = torch.zeros(1, 3 if method is excitation_backprop else 2, 64, 64, dtype=dtype)
        for layer in ("", "conv1"):
            map = method(model, x, 1, layer)
            assert map.dtype == dtype
            assert map.isfinite().all()
        assert not method(model, x, 1, "").any()

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
    @pytest.mark.parametrize("layer", ["", "conv1", "pool", "bn", "relu"])
    def test_half_precision(self, layer, dtype, tolerance):
        net, x = randomise(Net()).eval().to(dtype), torch.rand(2, 2, 12, 12).to(dtype)
        exact = excitation_backprop(deepcopy(net).double(), x.double(), [0, 2], layer)
        found = excitation_backprop(net, x, [0, 2], layer)
        assert found.dtype == dtype
        # Rounding makes ties, and of those max pooling chooses another winner: a few positions may be far off.
        assert (found.double() - exact).abs().sum() <= tolerance * exact.abs().sum()

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
    def test_half_precision_in_a_deep_network(self, dtype, tolerance):
        model = network("resnet50").to(dtype)
        x = images(64).to(dtype)
        layers = ["layer1", "layer2", "layer3", "layer4", "avgpool"]
        exact = excitation_backprop(deepcopy(model).double(), x.double(), [1, 3], layers)
        for found, map in zip(excitation_backprop(model, x, [1, 3], layers), exact, strict=True):
            assert found.isfinite().all()
            assert (found.double() - map).abs().max() <= tolerance * map.abs().max()
            assert (mass(found.double()) - 1).abs().max() < tolerance

    @pytest.mark.parametrize(
        ("dtype", "scale"), [(torch.float32, 1e-30), (torch.bfloat16, 1e-7), (torch.float64, 1e-200)]
    )
    def test_the_scale_of_a_network_without_biases_does_not_matter(self, dtype, scale):
        layers = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.AvgPool2d(5)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5, bias=False)).to(dtype)
        nn.init.uniform_(model[6].weight, -0.5, 1)
        x = torch.rand(2, 3, 9, 9).to(dtype)
        tolerance = 20 * torch.finfo(dtype).eps
        for layer in ("", "1", "3"):
            large, small = (excitation_backprop(model, x * factor, 1, layer) for factor in (1, scale))
            assert large.abs().max() > 0
            assert (large - small).abs().max() <= tolerance * large.abs().max()

    @pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
    def test_autocast(self, method):
        net, x = randomise(Net()).eval(), torch.rand(2, 2, 12, 12)
        with torch.autocast("cpu", torch.bfloat16):
            found = method(net, x, [0, 2], "conv1")
        exact = method(net, x, [0, 2], "conv1")
        assert found.dtype == torch.float32
        assert (found - exact).abs().sum() <= 0.1 * exact.abs().sum()


@pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_recorded_in_front_of_the_layer(method, frozen):
    net, x, seen = randomise(Net()).eval().requires_grad_(not frozen), torch.randn(2, 2, 6, 7), {}
    for name in ("conv1", "conv2", "bn", "conv3", "fc"):
        layer = net.get_submodule(name)
        layer.register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: seen.get(name, output.requires_grad)})
        )
    expected = method(net, x, 1, "relu")
    assert seen == {"conv1": False, "conv2": False, "bn": False, "conv3": True, "fc": True}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(method(net.requires_grad_(frozen), x, 1, "relu"), expected)


def small(classes: int = 5) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(True), nn.Conv2d(6, 8, 3), nn.ReLU(True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7), nn.ReLU(True), nn.Linear(7, classes))
    return nn.Sequential(body, head).double().eval()


def opposite(model: nn.Module, classifier: str) -> nn.Module:
    model = deepcopy(model)
    model.get_submodule(classifier).weight.data.neg_()
    return model


def contrast_by_hand(model: nn.Module, x: Tensor, target: object, layer: str, classifier: str) -> Tensor:
    """Two plain calls: p under the classifier, and under its opposite. What lies behind it has to pass p on."""
    p = [excitation_backprop(net, x, target, layer, **RAW) for net in (model, opposite(model, classifier))]
    return (p[0] - p[1]).sum(1, keepdim=True).relu()


CLASSIFIER = "1.4"


class TestContrastive:
    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.model, self.x = small(), torch.rand(2, 3, 10, 11, dtype=torch.float64)

    @pytest.mark.parametrize("layer", ["0.0", "0.1", "0.2", "0"])
    @pytest.mark.parametrize("at", [None, "0", "0.2", "1.1", "1.2", "1.3"])
    def test_by_two_plain_passes(self, layer, at):
        if (layer, at) == ("0", "0.2"):
            pytest.skip("the contrast lies in front of the layer")
        found = contrastive_excitation_backprop(self.model, self.x, [1, 4], layer, at)
        expected = contrast_by_hand(self.model, self.x, [1, 4], layer, CLASSIFIER)
        assert expected.max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)

    def test_in_a_branch(self):
        """Not all paths cross it, so only what comes through it is contrasted."""
        net, x = randomise(Net()).double().eval(), torch.randn(2, 2, 6, 7, dtype=torch.float64)
        p, opposed = (
            excitation_backprop(model, x, [0, 2], ["conv1", "bn"], **RAW) for model in (net, opposite(net, "fc"))
        )
        with ExcitationBackpropContext(), Probe(net.conv1, "output") as probe, Probe(net.bn, "output") as branch:
            net(x)
            (through,) = torch.autograd.grad(branch.data[0], probe.data[0], opposed[1])
        expected = (p[0] - through).sum(1, keepdim=True).relu()
        found = contrastive_excitation_backprop(net, x, [0, 2], "conv1", "bn")
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, contrastive_excitation_backprop(net, x, [0, 2], "conv1"))

    @pytest.mark.parametrize("classifier", [CLASSIFIER, "1", "module", "", None])
    def test_the_classifier_named_or_found(self, classifier):
        """A container is named for the last operation with weights inside it."""
        layer = self.model[1][4] if classifier == "module" else classifier
        found = contrastive_excitation_backprop(self.model, self.x, 2, "0.0", None, layer)
        assert torch.equal(found, contrastive_excitation_backprop(self.model, self.x, 2, "0.0"))

    def test_another_classifier(self):
        """Its opposite weights are those of the way back: what lies behind it sees the values that it really had."""
        with Probe(self.model[1][1], "output") as probe:
            self.model(self.x)
        x, weight = probe.data[0].detach(), self.model[1][2].weight.detach()
        p = excitation_backprop(self.model, self.x, 2, "1.2", **RAW)
        shares = [(w * x[:, None, :]) for w in (weight.clamp(min=0), (-weight).clamp(min=0))]
        difference = [(share / share.sum(2, keepdim=True) * p[:, :, None]).sum(1) for share in shares]
        with ExcitationBackpropContext(), Probe(self.model[0][0], "output") as probe:
            y = self.model[1][:2](self.model[0](self.x))
            (expected,) = torch.autograd.grad(y, probe.data[0], difference[0] - difference[1])
        found = contrastive_excitation_backprop(self.model, self.x, 2, "0.0", None, "1.2")
        torch.testing.assert_close(found, expected.sum(1, keepdim=True).relu(), rtol=1e-8, atol=1e-12)
        assert found.max() > 0

    def test_the_classifier_is_the_last_that_runs_not_the_last_defined(self):
        class First(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(6, 4)
                self.conv = nn.Conv2d(3, 6, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.conv(x).relu().mean((2, 3)))

        model = First().double()
        found = contrastive_excitation_backprop(model, self.x, 1, "conv")
        assert torch.equal(found, contrastive_excitation_backprop(model, self.x, 1, "conv", None, "fc"))
        torch.testing.assert_close(found, contrast_by_hand(model, self.x, 1, "conv", "fc"))

    def test_keywords_in_the_model(self):
        class Keywords(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = F.conv2d(weight=self.conv.weight, input=x, bias=self.conv.bias).relu()
                return F.linear(weight=self.fc.weight, input=x.mean(dim=(2, 3)), bias=self.fc.bias)

        model = Keywords().double()
        found = contrastive_excitation_backprop(model, self.x, 1, "")
        torch.testing.assert_close(found, contrast_by_hand(model, self.x, 1, "", "fc"))

    @pytest.mark.parametrize("name", [None, CLASSIFIER])
    def test_a_parametrised_classifier(self, name):
        expected = contrastive_excitation_backprop(self.model, self.x, 1, "0.0")
        nn.utils.parametrizations.weight_norm(self.model[1][4])
        found = contrastive_excitation_backprop(self.model, self.x, 1, "0.0", None, name)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
        assert expected.max() > 0

    @pytest.mark.parametrize("wrap", [nn.Identity, nn.Sigmoid, lambda: nn.Softmax(1), lambda: nn.LogSoftmax(1)])
    def test_behind_the_classifier(self, wrap):
        found = contrastive_excitation_backprop(nn.Sequential(*self.model, wrap()), self.x, 1, "0.0")
        assert torch.equal(found, contrastive_excitation_backprop(self.model, self.x, 1, "0.0"))

    def test_an_input_read_by_others_too(self):
        """The classifier's input also goes elsewhere: only what the classifier sends there is contrasted."""

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.other, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(6, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x).relu().mean((2, 3))
                return torch.cat([self.other(x), self.fc(x)], 1)

        model = Two().double()
        found = contrastive_excitation_backprop(model, self.x, 6, "conv")
        torch.testing.assert_close(found, contrast_by_hand(model, self.x, 6, "conv", "fc"))
        plain = contrastive_excitation_backprop(model, self.x, 1, "conv")  # a class that has another classifier
        torch.testing.assert_close(plain, excitation_backprop(model, self.x, 1, "conv").relu())

    @pytest.mark.parametrize("debug", [False, True])
    def test_a_fully_convolutional_network(self, debug):
        """The last layer with a grid is the classifier: the map is made at the input."""
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*layers).double()
        nn.init.uniform_(model[2].weight, -0.5, 1)
        found = contrastive_excitation_backprop(model, self.x, 1, debug=debug)
        found = found[0] if debug else found
        assert found.shape == (2, 1, 10, 11)
        assert (found.flatten(1).amax(1) > 0).all()
        assert torch.equal(found, contrastive_excitation_backprop(model, self.x, 1, ""))
        x, weight = model[:2](self.x).detach(), model[2].weight.detach()[..., 0, 0]
        p, sent = excitation_backprop(model, self.x, 1, "2", **RAW), []
        for excitatory in (weight.clamp(min=0), (-weight).clamp(min=0)):
            chances = torch.einsum("oi,niyx->noiyx", excitatory, x)
            sent.append((chances / chances.sum(2, keepdim=True).clamp(min=1e-300) * p[:, :, None]).sum(1))
        inside = contrastive_excitation_backprop(model, self.x, 1, "1")
        torch.testing.assert_close(inside, (sent[0] - sent[1]).sum(1, keepdim=True).relu())
        assert torch.equal(inside, contrastive_excitation_backprop(model, self.x, 1, "1", "1"))

    def test_squeezenet(self):
        model, x = randomise(network("squeezenet1_1")), images(96)
        found = contrastive_excitation_backprop(model, x, model(x).argmax(1))
        assert found.shape == (2, 1, 96, 96)
        assert (found.flatten(1).amax(1) > 0).all()

    def test_one_forward_pass_and_no_weight_touched(self):
        before, calls, seen = deepcopy(self.model.state_dict()), [], []
        versions = [parameter._version for parameter in self.model.parameters()]

        def look(gradient: Tensor | None = None) -> None:
            weights = self.model.state_dict()
            seen.append(all(torch.equal(weights[key], value) for key, value in before.items()))

        def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            calls.append(module)
            look()
            output.register_hook(look)

        hooks = [self.model[1][4].register_forward_hook(count), self.model[0][2].register_forward_hook(count)]
        contrastive_excitation_backprop(self.model, self.x, torch.tensor([[0, 1], [2, 3]]), "0.0", "0")
        for hook in hooks:
            hook.remove()
        assert calls == [self.model[0][2], self.model[1][4]]
        assert seen == [True] * (2 + 2 * 3)  # per target, the scores are crossed twice and the convolution once
        look()
        assert seen[-1]
        assert versions == [parameter._version for parameter in self.model.parameters()]

    def test_threads(self):
        """Two calls at once on one model, and an ordinary forward pass in between."""
        layers, found, barrier = ["0.0", "0.2"] * 2, {}, threading.Barrier(4)
        expected = {layer: contrastive_excitation_backprop(self.model, self.x, 1, layer) for layer in layers}
        scores = self.model(self.x)

        def run(i: int, layer: str) -> None:
            barrier.wait()
            for _ in range(5):
                found[i] = layer, contrastive_excitation_backprop(self.model, self.x, 1, layer), self.model(self.x)

        threads = [threading.Thread(target=run, args=(i, layer)) for i, layer in enumerate(layers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for layer, map, output in found.values():
            assert torch.equal(map, expected[layer])
            assert torch.equal(output, scores)

    def test_the_pieces_of_a_call(self):
        """A gradient and a reduction of one's own."""
        start = torch.rand(2, 5, dtype=torch.float64)
        options = {
            "get_backward_gradient": lambda output, target: start,
            "gradient_to_saliency": lambda x: x.grad[:, :1],
        }
        found = contrastive_excitation_backprop(self.model, self.x, None, "0.0", **options)
        p = [
            excitation_backprop(m, self.x, start, "0.0", **RAW) for m in (self.model, opposite(self.model, CLASSIFIER))
        ]
        torch.testing.assert_close(found, (p[0] - p[1])[:, :1])


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Spare(nn.Module):
    """A network with parts that are off the path, or not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aside, self.unused = small(), nn.Conv2d(3, 4, 1), nn.Linear(3, 3)
        self.table = nn.Embedding(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        aside = self.aside(x)
        self.table(torch.zeros(1, dtype=torch.long))
        return self.body(x), aside


ERRORS = {
    "unknown contrast": ("contrast_layer", {"contrast_layer": "body.9"}),
    "contrast of another type": ("contrast_layer", {"contrast_layer": 3}),
    "contrast of another model": ("contrast_layer", {"contrast_layer": nn.ReLU()}),
    "contrast never called": ("contrast_layer", {"contrast_layer": "unused"}),
    "contrast off the path": ("saliency_layer=.* contrast_layer='aside'", {"contrast_layer": "aside"}),
    "unknown classifier": ("classifier_layer", {"classifier_layer": "body.9"}),
    "classifier without weights": ("classifier_layer", {"classifier_layer": "body.1.3"}),
    "classifier never called": ("classifier_layer", {"classifier_layer": "unused"}),
    "classifier that does not multiply": ("classifier_layer", {"classifier_layer": "table"}),
    "classifier off the path": ("", {"classifier_layer": "aside"}),
    "layer is the classifier": ("saliency_layer", {"saliency_layer": "body.1.4"}),
    "layer is the classifier, debug": ("saliency_layer", {"saliency_layer": "body.1.4", "debug": True}),
    "layer behind the contrast": ("", {"saliency_layer": "body.1.2", "contrast_layer": "body.0"}),
    "layer behind the contrast, debug": ("", {"saliency_layer": "body.1.2", "contrast_layer": "body.0", "debug": True}),
    "layer unknown": ("saliency_layer", {"saliency_layer": "body.9"}),
    "class out of range": ("target", {"target": 17}),
}


class TestErrors:
    @pytest.mark.parametrize("name", ERRORS)
    def test_they_name_the_argument_and_leave_the_model(self, name):
        argument, options = ERRORS[name]
        model, x = Spare().train(), torch.rand(2, 3, 10, 11, dtype=torch.float64)
        model.aside.double()
        before = deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=rf"^{argument}.*expected .*\.$"):
            contrastive_excitation_backprop(model, x, **{"target": 1, "saliency_layer": "body.0.0", **options})
        assert hooks_of(model) == 0
        assert _get_current_function_mode_stack() == []
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_a_model_without_weights(self):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(ValueError, match=r"^classifier_layer=None .*expected .*\.$"):
            contrastive_excitation_backprop(model, torch.rand(1, 3, 6, 6), 1, "")

    def test_the_last_operation_off_the_path(self):
        """It is passed over where no classifier is named, and an error that names the argument where it is."""

        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc, self.box = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(6, 2)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                x = self.conv(x).relu().mean((2, 3))
                return self.fc(x), self.box(x)

        model, x = Heads().double(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
        found = contrastive_excitation_backprop(model, x, 1, "conv", None, "fc")
        torch.testing.assert_close(found, contrast_by_hand(model, x, 1, "conv", "fc"))
        torch.testing.assert_close(contrastive_excitation_backprop(model, x, 1, "conv"), found)
        with pytest.raises(ValueError, match=r"^classifier_layer=Linear .*expected .*\.$"):
            contrastive_excitation_backprop(model, x, 1, "conv", None, "box")

    def test_the_context_is_not_to_be_chosen(self):
        with pytest.raises((TypeError, ValueError)):
            contrastive_excitation_backprop(
                small(), torch.rand(1, 3, 9, 9).double(), 1, "0.0", context_builder=ExcitationBackpropContext
            )


class TestContexts:
    def test_by_hand(self):
        model, x = small(), torch.rand(2, 3, 10, 11, dtype=torch.float64)
        context = ExcitationBackpropContext()
        for _ in range(2):  # a context may be opened again
            with context, Probe(model[0][0], "output") as probe:
                model(x)[:, 1].sum().backward(inputs=probe.data)
            found = saliency.gradient_to_excitation_backprop_saliency(probe.data[0])
            torch.testing.assert_close(found, excitation_backprop(model, x, 1, "0.0"))
        assert hooks_of(model) == 0

    @pytest.mark.parametrize("contrast", [None, "1.1"])
    def test_the_contrast_by_hand(self, contrast):
        model, x = small(), torch.rand(2, 3, 10, 11, dtype=torch.float64)
        context = ContrastiveExcitationBackpropContext(None if contrast is None else model.get_submodule(contrast))
        for _ in range(2):
            with context, Probe(model[0][0], "output", enable_grad=True) as probe:
                scores = model(x)
                start = get_backward_gradient(scores, 1)
                context.oppose(scores, start)
                scores.backward(start, inputs=probe.data)
            found = saliency.gradient_to_contrastive_excitation_backprop_saliency(probe.data[0])
            expected = contrastive_excitation_backprop(model, x, 1, "0.0", contrast)
            torch.testing.assert_close(found, expected)
        assert hooks_of(model) == 0

    def test_without_an_opposite_it_is_excitation_backprop(self):
        model, x = small(), torch.rand(2, 3, 10, 11, dtype=torch.float64)
        map = saliency.saliency(
            model,
            x,
            1,
            "0.0",
            context_builder=ContrastiveExcitationBackpropContext,
            gradient_to_saliency=saliency.gradient_to_excitation_backprop_saliency,
        )
        torch.testing.assert_close(map, excitation_backprop(model, x, 1, "0.0"))

    @pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
    def test_nothing_stays(self, method):
        model, x = small(), torch.rand(2, 3, 10, 11, dtype=torch.float64)
        options = {"contrast_layer": "0"} if method is contrastive_excitation_backprop else {}
        method(model, x, 1, "0.0", **options)
        assert hooks_of(model) == 0
        assert _get_current_function_mode_stack() == []
        leaf = x.clone().requires_grad_()
        model(leaf)[:, 1].sum().backward()
        gradient = saliency.gradient(model, x, 1, gradient_to_saliency=lambda x: x.grad)
        torch.testing.assert_close(gradient, leaf.grad)

    def test_the_context_holds_no_tensor_afterwards(self):
        model, x = small(), torch.rand(1, 3, 10, 11, dtype=torch.float64)
        context = ContrastiveExcitationBackpropContext(model[0], model[1])
        with context:
            scores = model(x.requires_grad_())
            context.oppose(scores, torch.ones_like(scores))
        held = [value for value in vars(context).values() if isinstance(value, (Tensor, Probe, tuple)) and value != ()]
        assert held == []


class TestConstants:
    """Factors and terms that no gradient is asked of."""

    def test_a_frozen_normalisation_is_a_normalisation(self):
        """``FrozenBatchNorm2d`` is a product and a sum with buffers."""
        frozen = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
        plain = torchvision.models.resnet18()
        with torch.no_grad():
            for module in plain.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 2)
                    module.bias.uniform_(-0.5, 0.5)
                    module.running_mean.uniform_(-0.1, 0.1)
                    module.running_var.uniform_(0.5, 2)
        frozen.load_state_dict(plain.state_dict(), strict=False)
        x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        for layer in ("layer1", "layer3"):
            expected = excitation_backprop(plain.double().eval(), x, 1, layer)
            found = excitation_backprop(frozen.double().eval(), x, 1, layer)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))

    @pytest.mark.parametrize(
        "scale",
        [
            lambda x: x * 2,
            lambda x: 0.5 * x,
            lambda x: x / 4,
            lambda x: x.mul_(3),
            lambda x: x * torch.tensor([2.0, 3.0, 4.0]),
            lambda x: x * nn.Parameter(torch.tensor([2.0, 3.0, 4.0])),
            lambda x: x + torch.tensor([2.0, 3.0, 4.0]),
        ],
    )
    def test_what_is_only_scaled_or_moved_passes_everything_on(self, scale):
        x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
        with ExcitationBackpropContext():
            scale(x.view_as(x).clone()).backward(torch.tensor([[0.5, 0.3, 0.2]]))
        torch.testing.assert_close(x.grad, torch.tensor([[0.5, 0.3, 0.2]]))

    def test_a_product_of_two_signals_keeps_its_gradient(self):
        x, gate = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0.5, 0.25]], requires_grad=True)
        with ExcitationBackpropContext():
            (x * gate).sum().backward()
        assert x.grad.tolist() == [[0.5, 0.25]]
        assert gate.grad.tolist() == [[1.0, 2.0]]


def test_threads_may_share_a_context():
    """The memory that a context uses again belongs to the thread."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(8 * 64, 4)
    ).eval()
    inputs = [torch.rand(2, 3, 12, 12) for _ in range(4)]
    context = ExcitationBackpropContext()
    expected = [excitation_backprop(model, x, 1, "0") for x in inputs]
    found = [[] for _ in inputs]

    def work(i):
        for _ in range(5):
            found[i].append(excitation_backprop(model, inputs[i], 1, "0", context_builder=lambda: context))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for maps, map_alone in zip(found, expected, strict=True):
        assert len(maps) == 5
        assert all(torch.equal(map, map_alone) for map in maps)


def test_no_weight_stays_behind_in_a_contrastive_context():
    context = ContrastiveExcitationBackpropContext()
    x = torch.rand(1, 3, requires_grad=True)
    with context:
        score = F.linear(F.linear(x, torch.rand(4, 3)).relu(), torch.rand(2, 4))
        context.oppose(score, torch.tensor([[1.0, 0.0]]))
        assert positive_part._memory
    assert not positive_part._memory


def test_the_convolutions_that_smooth_a_map_are_not_taken_for_the_classifier():
    """Of K targets, each map is finished before the next is computed."""
    torch.manual_seed(0)
    model, input = Net().double().eval(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([[0, 1, 2], [2, 0, 1]])
    for reduce in ({}, {"gradient_to_saliency": lambda x: F.conv2d(x.grad, torch.ones(1, 4, 1, 1, dtype=x.dtype))}):
        options = {"smooth": 0.1, **reduce}
        together = contrastive_excitation_backprop(model, input, target, "conv1", **options)
        alone = [contrastive_excitation_backprop(model, input, target[:, k], "conv1", **options) for k in range(3)]
        torch.testing.assert_close(together, torch.cat(alone, 1), **EXACT)


def test_a_linear_layer_of_what_the_model_has_learnt_is_a_constant():
    """As the query of a pooling by attention: its input and its weight are the model's own."""

    def forward(net: cases.Net, x: Tensor) -> Tensor:
        tokens = net.conv(x).relu().flatten(2).mT
        query = net.embed.weight[None].expand(len(x), -1, -1) if fixed is None else fixed.expand(len(x), -1, -1)
        return net.fc(((net.query(query) if fixed is None else query) @ tokens.mT).softmax(-1) @ tokens).flatten(1)

    torch.manual_seed(0)
    fixed = None
    parts = {
        "conv": nn.Conv2d(1, 4, 2, 2),
        "embed": nn.Embedding(1, 4),
        "query": nn.Linear(4, 4),
        "fc": nn.Linear(4, 3),
    }
    model, input = cases.Net(forward, **parts).double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    found = contrastive_excitation_backprop(model, input, 1, "conv", classifier_layer="fc")
    assert found.any()
    fixed = model.query(model.embed.weight[None]).detach()
    torch.testing.assert_close(found, contrastive_excitation_backprop(model, input, 1, "conv", classifier_layer="fc"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_contrast_cancels_at_each_position_the_map_is_zero_and_says_so(dtype):
    """At the input of a segmenter's last convolution; what is left there is rounding, and not a map."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 5, 1)).eval().to(dtype)
    input = torch.rand(2, 1, 12, 12, dtype=dtype)
    with pytest.warns(UserWarning, match="zero"):
        found = contrastive_excitation_backprop(model, input, 1, "1")
    assert not found.any()
    signed = contrastive_excitation_backprop(model, input, 1, "1", **RAW)
    assert (signed.abs().sum(1) > 1e-3).all()
    assert contrastive_excitation_backprop(model, input, 1, "", contrast_layer="1").isfinite().all()


@pytest.mark.parametrize("shared", [False, True])
def test_of_several_heads_the_classifier_is_the_one_on_the_way_to_the_score(shared):
    """As in a detector, whose boxes are computed last."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    heads = {"classes": nn.Linear(4, 3), "boxes": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))}
    model = cases.Net(
        lambda net, x: {"logits": net.classes(y := net.body(x)), "boxes": net.boxes(y)}, body=body, **heads
    )
    input = torch.rand(2, 1, 6, 6)
    options = {"shared": saliency.shared_forward(model, input)} if shared else {}
    found = contrastive_excitation_backprop(model, input, 1, "body.1", **options)
    assert found.any()
    expected = contrastive_excitation_backprop(model, input, 1, "body.1", classifier_layer="classes")
    torch.testing.assert_close(found, expected)
    boxes = contrastive_excitation_backprop(model, input, lambda output: output["boxes"][:, 0], "body.1")
    expected = contrastive_excitation_backprop(
        model, input, lambda output: output["boxes"][:, 0], "body.1", classifier_layer="boxes"
    )
    torch.testing.assert_close(boxes, expected)


def test_terms_that_are_single_numbers():
    """A score computed image by image, from numbers without an axis, is the same as for the whole batch at once."""

    def each(s: cases.Net, x: Tensor) -> Tensor:
        y = s.conv(x).relu()
        return torch.stack([(row[0].sum() + row[1].mean())[None] for row in y])

    def at_once(s: cases.Net, x: Tensor) -> Tensor:
        y = s.conv(x).relu()
        return (y[:, 0].sum((1, 2)) + y[:, 1].mean((1, 2)))[:, None]

    conv, x = nn.Conv2d(3, 2, 3), torch.rand(2, 3, 6, 6)
    conv.weight.data.abs_()
    of = [excitation_backprop(cases.Net(forward, conv=conv), x, 0, "conv") for forward in (each, at_once)]
    assert of[1].any()
    torch.testing.assert_close(of[0], of[1])
