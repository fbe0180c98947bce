"""CAM by its paper's formula, and what it says of networks that it is not made for."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from saliency import cam, grad_cam, positive_sum, shared_forward, sum_channels
from tests import cases
from tests.cases import Net

TARGETS = torch.tensor([[0, 3], [2, 1]])
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def formula(x: Tensor, head: nn.Linear, classes: list[int]) -> Tensor:
    """M_c(u) = sum_k w_k^c f_k(u), position by position and channel by channel."""
    maps = torch.zeros(len(x), 1, *x.shape[2:], dtype=x.dtype)
    for n, c in enumerate(classes):
        for k in range(x.shape[1]):
            maps[n, 0] += head.weight[c, k] * x[n, k]
    return maps.detach()


def pooled(*behind: nn.Module, axes: int = 2) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layer = nn.Sequential(CONV[axes](3, 5, 3), nn.SiLU())
    model = nn.Sequential(layer, *(behind or (POOL[axes](1), nn.Flatten(), nn.Dropout(), nn.Linear(5, 4))))
    return model.double().eval(), torch.randn(2, 3, *(8, 7, 6)[:axes]).double()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_formula_of_the_paper(axes):
    model, input = pooled(axes=axes)
    maps = cam(model, input, TARGETS, "0")
    for k, column in enumerate(TARGETS.T.tolist()):
        expected = formula(model[0](input), model[-1], column)
        assert expected.min() < 0 < expected.max()
        torch.testing.assert_close(maps[:, k : k + 1], expected, rtol=1e-9, atol=1e-12)
        # The mean of the map is the score, less the bias.
        score = model(input)[range(2), column] - model[-1].bias[column]
        torch.testing.assert_close(maps[:, k].flatten(1).mean(1), score.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cam(model, input, TARGETS, "0", reduction=positive_sum), maps.relu())


HEAD = nn.Linear(5, 4)
SPELLINGS = {
    "mean": lambda s, x: s.head(s.layer(x).mean((2, 3))),
    "flattened": lambda s, x: s.head(s.layer(x).flatten(2).mean(2)),
    "average pool of the size": lambda s, x: s.head(torch.nn.functional.avg_pool2d(s.layer(x), (6, 5)).flatten(1)),
    "1 x 1 convolution": lambda s, x: s.conv(s.layer(x).mean((2, 3), keepdim=True)).flatten(1),
    "channels last": lambda s, x: s.head(s.layer(x).permute(0, 2, 3, 1).mean((1, 2))),
    "ReLU in between": lambda s, x: s.head(s.layer(x).relu().mean((2, 3))),
    "softmax": lambda s, x: s.head(s.layer(x).mean((2, 3))).log_softmax(1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_a_pool_and_a_classifier(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 4, 1)
    head = nn.Linear(5, 4)
    with torch.no_grad():
        head.weight.copy_(conv.weight[..., 0, 0])
    model = Net(SPELLINGS[name], layer=nn.Conv2d(3, 5, 3), conv=conv, head=head).double()
    input = torch.randn(2, 3, 8, 7).double()
    x = model.layer(input)
    x = x.relu() if name == "ReLU in between" else x
    expected = formula(x, head, [1, 1])
    if name == "softmax":  # the classes' maps, weighed by what each does to the score
        shares = model.function(model, input).exp()
        expected = expected - sum(shares[:, c, None, None, None] * formula(x, head, [c, c]) for c in range(4))
    torch.testing.assert_close(cam(model, input, 1), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("behind", "lack"),
    [
        (
            (nn.Flatten(), nn.Linear(150, 4)),
            "a global average pool of its 5 channels (linear with 4 values comes first)",
        ),
        ((nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 4)), "a global average pool of its 5 channels"),
        ((nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)), "(adaptive_avg_pool2d with 20 values comes first)"),
        ((nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)), "(batch_norm with 150 values"),
        ((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(5), nn.Linear(5, 4)), "(layer_norm comes first)"),
        ((nn.AdaptiveAvgPool2d(1), nn.Flatten()), "a classifier of their means (nothing comes first)"),
        (
            (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.Hardswish(), nn.Linear(6, 4)),
            "a classifier of one layer (there are linear, linear)",
        ),
    ],
    ids=["flattened", "max pool", "not global", "norm before", "norm behind", "no classifier", "hidden layer"],
)
def test_the_error_names_what_the_network_lacks(behind, lack):
    model, input = pooled(*behind)
    with pytest.raises(
        ValueError, match=r"^model=Sequential lacks, behind saliency_layer='0', .*; expected .*\.$"
    ) as e:
        cam(model, input, 1, "0")
    assert lack in str(e.value)


def test_a_transformer_with_a_class_token_lacks_the_pool():
    with pytest.raises(ValueError, match="lacks, behind saliency_layer=None, a global average pool of its 6 channels"):
        cam(cases.TRANSFORMER.model(), cases.TRANSFORMER.input(), 1)


def test_of_several_layers_one_is_pooled():
    model, input = pooled()
    assert torch.equal(cam(model, input, 1, ["0"])[0], cam(model, input, 1, "0"))
    with pytest.raises(ValueError, match=r"^saliency_layer=\['0', '0.0'\] is not one layer; expected .*\.$"):
        cam(model, input, 1, ["0", "0.0"])


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "mobilenet_v2", "efficientnet_b0", "googlenet", "shufflenet_v2_x0_5", "regnet_x_400mf"],
)
def test_networks_of_torchvision(name):
    """There Grad-CAM is CAM, but for the positions that it divides by; DenseNet's last layer has its ReLU behind it."""
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options).eval()
    input = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = cam(model, input, 2)
    shared = shared_forward(model, input, [None])
    torch.testing.assert_close(cam(model, input, 2, None, shared=shared), found)
    reduce = {"reduction": sum_channels}
    expected = grad_cam(model, input, 2, **reduce) * found[0].numel()
    if name == "densenet121":
        x = model.features(input).relu()
        expected = formula(x, model.classifier, [2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "lack"), [("vgg11", "pool"), ("mobilenet_v3_small", "one layer")])
def test_networks_of_torchvision_that_do_not_pool_and_classify(name, lack):
    options = {"init_weights": False} if name == "vgg11" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options).eval()
    with pytest.raises(ValueError, match=lack):
        cam(model, torch.randn(1, 3, 64, 64), 2)
