"""Captum: DeepLIFT, to 1e-6 of the largest attribution where Captum's sums to the change of the score; in float64.

Where it does not, ours does to 1e-9: Captum has rules of modules, loses that of max pooling beside an activation, and
takes products, and functions, by their derivative.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from tests.cases import Net
from tests.parity.agreement import relative_error

peer = pytest.importorskip("captum.attr")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings(
        "ignore:Input Tensor .* did not already require gradients:UserWarning",
        "ignore:Setting forward, backward hooks and attributes on non-linear:UserWarning",
        "ignore:.*required_grads has been set automatically:UserWarning",
    ),
]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def _norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5), nn.Tanh(), nn.Linear(5, 3)


# By name: a network of which Captum's attributions are complete, its layers, and the size of its image.
COMPLETE: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[int, ...]]] = {
    "activations": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), _norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.1)),
            *(nn.Conv2d(4, 4, 1), nn.ELU(), nn.Conv2d(4, 4, 1), nn.Softplus(), nn.Conv2d(4, 4, 1), nn.Sigmoid()),
            *_head(4),
        ),
        ("0", "2", "9"),
        (2, 8, 7),
    ),
    "max pooling": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU()), *_head(4)
        ),
        ("0", "1"),
        (2, 8, 8),
    ),
    "max pooling of signals": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 4, 3), nn.MaxPool1d(3), nn.Conv1d(4, 4, 1), nn.Softplus()),
            *(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)),
        ),
        ("0", "4"),
        (2, 14),
    ),
    "residual": (
        lambda: Net(
            lambda s, x: s.fc(s.relu2(s.norm(s.conv(y := s.relu1(s.stem(x)))) + y).mean((2, 3))),
            stem=nn.Conv2d(2, 4, 3, padding=1),
            relu1=nn.ReLU(),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            norm=_norm(4),
            relu2=nn.ReLU(),
            fc=nn.Linear(4, 3),
        ),
        ("stem", "relu1", "relu2"),
        (2, 7, 6),
    ),
}
_CASES = [(name, layer) for name, (_, layers, _) in COMPLETE.items() for layer in ("", *layers)]
cases = pytest.mark.parametrize(("name", "layer"), _CASES)
TARGETS = [2, 0]


def _case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, two images, and three baselines."""
    build, _, shape = COMPLETE[name]
    return build().eval(), torch.randn(2, *shape), torch.randn(3, *shape)


def _peer(kind: str, model: nn.Module, layer: str, **options: Any) -> Any:
    if not layer:
        return getattr(peer, kind)(model, **options)
    return getattr(peer, f"Layer{kind}")(model, model.get_submodule(layer), **options)


@cases
@pytest.mark.parametrize("multiply", [True, False])
def test_deep_lift(name, layer, multiply):
    model, input, baselines = _case(name)
    found, delta = saliency.deep_lift(
        model, input, TARGETS, layer, baselines[:2], reduction=None, multiply_by_inputs=multiply,
        return_convergence_delta=True,
    )  # fmt: skip
    theirs = _peer("DeepLift", model, layer, multiply_by_inputs=multiply)
    expected, its = theirs.attribute(input, baselines[:2], target=TARGETS, return_convergence_delta=True)
    assert relative_error(found, expected.detach()) <= 1e-6
    if multiply:
        assert float(torch.stack([delta.abs(), its.abs()]).max()) <= 1e-9 * float(found.abs().sum())


@cases
@pytest.mark.parametrize("size", [None, 4])
def test_deep_lift_shap(name, layer, size):
    model, input, baselines = _case(name)
    found, delta = saliency.deep_lift_shap(
        model, input, TARGETS, layer, baselines, None, internal_batch_size=size, return_convergence_delta=True
    )
    theirs = _peer("DeepLiftShap", model, layer)
    expected, its = theirs.attribute(input, baselines, target=TARGETS, return_convergence_delta=True)
    assert relative_error(found, expected.detach()) <= 1e-6
    assert float((delta - its.view(2, 3).mean(1)).abs().max()) <= 1e-9 * float(found.abs().sum())


@pytest.mark.parametrize("kind", ["DeepLift", "DeepLiftShap"])
@pytest.mark.parametrize("layer", ["", "conv"])
def test_custom_attributions(kind, layer):
    model, input, baselines = _case("residual")
    baselines = baselines if kind == "DeepLiftShap" else baselines[:2]

    def attribute(multipliers: Any, inputs: Any, starts: Any) -> Any:
        return tuple(m * (x.abs() + s**2) for m, x, s in zip(multipliers, inputs, starts, strict=True))

    ours = saliency.deep_lift if kind == "DeepLift" else saliency.deep_lift_shap
    found = ours(model, input, 1, layer, baselines, reduction=None, custom_attribution_func=attribute)
    theirs = _peer(kind, model, layer)
    expected = theirs.attribute(input, baselines, target=1, custom_attribution_func=attribute)
    assert relative_error(found, expected.detach()) <= 1e-6


def test_layer_inputs():
    model, input, baselines = _case("residual")
    options = {"attribute_to_layer_input": True}
    found = saliency.deep_lift(model, input, 1, "norm", baselines[:2], reduction=None, **options)
    theirs = peer.LayerDeepLift(model, model.norm).attribute(input, baselines[:2], target=1, **options)
    assert relative_error(found, theirs.detach()) <= 1e-6


@pytest.mark.parametrize("kind", ["DeepLift", "DeepLiftShap"])
def test_several_inputs_and_further_arguments(kind):
    model = Net(
        lambda s, x, y, scale: s.fc(s.relu(s.conv(x)).mean((2, 3)) + s.sigmoid(s.vector(y))) * scale,
        conv=nn.Conv2d(2, 4, 3),
        relu=nn.ReLU(),
        vector=nn.Linear(5, 4),
        sigmoid=nn.Sigmoid(),
        fc=nn.Linear(4, 3),
    )
    input = torch.randn(2, 2, 6, 6), torch.randn(2, 5)
    count = 3 if kind == "DeepLiftShap" else 2
    baselines = torch.randn(count, 2, 6, 6), torch.randn(count, 5)
    scale = torch.tensor([[0.5], [2.0]])
    ours = saliency.deep_lift if kind == "DeepLift" else saliency.deep_lift_shap
    found = ours(model, input, 1, "", baselines, reduction=None, additional_forward_args=scale)
    expected = _peer(kind, model, "").attribute(input, baselines, target=1, additional_forward_args=(scale,))
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b.detach()) <= 1e-6


# --- where Captum's attributions do not sum to the change of the score ----------------------------------------------


def _of(function: Callable[..., Tensor], **parts: nn.Module) -> Callable[[], nn.Module]:
    """A network with a function between its convolution and its classifier."""

    def build() -> nn.Module:
        conv, fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        return Net(lambda s, x: s.fc(function(s, s.conv(x)).mean((2, 3))), conv=conv, fc=fc, **parts).double()

    return build


INCOMPLETE = {
    "ReLU before max pooling": _of(lambda s, x: s.pool(s.relu(x)), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
    "max pooling before a sigmoid": _of(lambda s, x: s.sigmoid(s.pool(x)), pool=nn.MaxPool2d(2), sigmoid=nn.Sigmoid()),
    "overlapping pools": _of(lambda s, x: s.pool(x), pool=nn.MaxPool2d(3, 2, 1)),
    "reused ReLU": _of(lambda s, x: s.relu(s.relu(x) - 0.3), relu=nn.ReLU()),
    "ReLU as a function": _of(lambda s, x: F.relu(x)),
    "gate": _of(lambda s, x: x * s.sigmoid(x), sigmoid=nn.Sigmoid()),
    "gates of channels": _of(lambda s, x: x * s.sigmoid(x.mean((2, 3), keepdim=True)), sigmoid=nn.Sigmoid()),
    "SiLU": _of(lambda s, x: s.silu(x), silu=nn.SiLU()),
    "layer normalisation": _of(lambda s, x: s.norm(x.movedim(1, -1)).movedim(-1, 1), norm=nn.LayerNorm(4)),
    "softmax": _of(lambda s, x: s.softmax(3 * x), softmax=nn.Softmax(1)),
    "attention": _of(
        lambda s, x: s.attention(*[x.flatten(2).mT] * 3, need_weights=False)[0].mT.unflatten(2, x.shape[2:]),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_ours_is_complete_where_captums_is_not(name):
    model, input, baselines = INCOMPLETE[name]().eval(), torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    change = (model(input) - model(baselines))[:, 1].detach()
    for layer in ("", "conv"):
        found, delta = saliency.deep_lift(
            model, input, 1, layer, baselines, reduction=None, return_convergence_delta=True
        )
        flat = found.flatten(1)
        scale = torch.maximum(flat.abs().sum(1), change.abs())
        assert bool(((flat.sum(1) - change).abs() <= 1e-9 * scale).all())
        assert bool((delta.abs() <= 1e-9 * scale).all())
    try:
        theirs = peer.DeepLift(model).attribute(input, baselines, target=1).detach().flatten(1)
    except (AssertionError, RuntimeError):  # of a module that runs twice
        return
    assert bool(((theirs.sum(1) - change).abs() > 1e-4 * theirs.abs().sum(1)).any())
