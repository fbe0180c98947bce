"""FullGrad: the paper's formula layer by layer, and that its terms sum to the score."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import saliency
from saliency.engine.targets import Targets
from tests import cases
from tests.cases import MODEL_CASES


class Sites(nn.Module):
    """A convolution with a bias, a batch norm, a curved activation and a convolution without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = cases._norm(4)
        self.last = nn.Conv2d(4, 5, 2, stride=2, bias=False)
        self.head = nn.Linear(5, 6)
        self.kept: list[Tensor] = []

    def keep(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        self.kept = []
        x = self.keep(self.norm(self.keep(self.conv(x))))
        x = self.keep(F.gelu(self.keep(x)))
        return self.head(self.last(x).relu().mean((2, 3)))


def psi(term: Tensor, size: tuple[int, int]) -> Tensor:
    """The sum over channels, each with its absolute values scaled to [0, 1] and brought to the input's size."""
    total = torch.zeros(1, 1, *size, dtype=term.dtype)
    for channel in term[0]:
        values = channel.abs()
        if values.max() > values.min():
            values = (values - values.min()) / (values.max() - values.min())
            total += F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)
        # A channel whose values are all the same is 0.
    return total


def test_the_formula_of_the_paper():
    torch.manual_seed(0)
    model = Sites().double().eval()
    images = torch.randn(2, 3, 9, 8).double()
    found = saliency.full_grad(model, images, [[0, 3], [5, 1]])
    for n, classes in enumerate([[0, 3], [5, 1]]):
        for k, target in enumerate(classes):
            x = images[n : n + 1].clone().requires_grad_()
            score = model(x)[0, target]
            convolved, normed, given, bent = model.kept
            dx, d_conv, d_norm, d_bent = torch.autograd.grad(score, [x, convolved, normed, bent])
            # b = beta - mean gamma / sigma of a batch norm, f(x) - f'(x) x of an activation
            scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
            shift = model.norm.bias - model.norm.running_mean * scale
            slope = torch.autograd.functional.jvp(F.gelu, given.detach(), torch.ones_like(given))[1]
            terms = [
                x * dx,
                model.conv.bias.view(1, -1, 1, 1) * d_conv,
                shift.view(1, -1, 1, 1) * d_norm,
                (bent - slope * given) * d_bent,
            ]
            torch.testing.assert_close(sum(term.sum() for term in terms) + model.head.bias[target], score)
            expected = sum(psi(term.detach(), (9, 8)) for term in terms)
            torch.testing.assert_close(found[n : n + 1, k : k + 1], expected, rtol=1e-9, atol=1e-12)


def total_and_size(model, input, target, layer, **options):
    """The sum of all terms of FullGrad, and that of their absolute values."""
    context = saliency.FullGradientContext()

    def product(x: Tensor) -> Tensor:
        return (x * x.grad).flatten(1).sum(1).view(-1, 1, 1, 1)

    options = {"context_builder": lambda: context, "layout": "layer", **options}
    found = saliency.saliency(model, input, target, layer, gradient_to_saliency=product, **options)
    terms = [*(found if isinstance(found, tuple) else [found]), *(bias.values for bias in context.noted)]
    return sum(term.sum() for term in terms), sum(term.abs().sum() for term in terms)


# Random, or a cut that not all of the score comes through: a residual branch, tokens that one is put in front of.
INCOMPLETE = {("stochastic", ""), ("residual", "shortcut")}
PLACES = [
    pytest.param(case, layer, id=f"{case.name} {layer!r}")
    for case in MODEL_CASES
    for layer in ("", *case.layers)
    if (case.name, layer) not in INCOMPLETE and (case.name, "") != ("stochastic", "")
]


@pytest.mark.parametrize(("case", "layer"), PLACES)
def test_the_terms_sum_to_the_score(case, layer):
    model, input = case.model(), case.input()
    options = case.options(torch.float64)
    total, size = total_and_size(model, input, case.target, layer, **options)
    given = input if isinstance(input, tuple) else (input.clone(),)
    further = [options[key] for key in ("additional_forward_args",) if key in options]
    output = model.eval()(*given, *further, **options.get("forward_kwargs", {}))
    score = Targets(case.target, 2).scores(output).sum().detach()
    assert abs(total - score) < 1e-9 * max(abs(score), size)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
def test_the_terms_sum_to_the_score_of_networks_of_torchvision(name):
    """Gates and curved activations have implicit biases, too."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.1)
    input = torch.randn(1, 3, 64, 64).double()
    total, size = total_and_size(model, input, 1, "")
    score = model(input)[0, 1].detach()
    assert abs(score) > 1e-6
    assert abs(total - score) < 1e-9 * max(abs(score), size)


def test_a_layer_has_the_biases_behind_it():
    case = cases.IN_PLACE
    model, input = case.model(), case.input()
    found = saliency.full_grad(model, input, 1, ["features.3", "features"])
    x = saliency.gradient_x_activation(model, input, 1, "features.3", reduction=None)
    for n in range(2):
        torch.testing.assert_close(found[0][n : n + 1], psi(x[n : n + 1], (6, 7)))
    assert [each.shape for each in found] == [(2, 1, 6, 7)] * 2


def test_what_is_linear_adds_no_rounding():
    """Scaled to [0, 1], it would look like a bias: batch norm that only scales, a leaky ReLU, a factor."""
    torch.manual_seed(0)

    def forward(own, x):
        return own.head((F.leaky_relu(own.norm(own.conv(x)), 0.3) * 0.7 / 3).mean((2, 3)))

    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_var.uniform_(0.5, 2)
    model = cases.Net(forward, conv=nn.Conv2d(3, 4, 3, bias=False), norm=norm, head=nn.Linear(4, 2))
    input = torch.randn(1, 3, 9, 8)
    found = saliency.full_grad(model, input, 1)
    product = saliency.gradient_x_activation(model, input, 1, reduction=None)
    torch.testing.assert_close(found, psi(product, (9, 8)))
