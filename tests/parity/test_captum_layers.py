"""Captum: methods on paths and at layers, before any reduction, on small networks, each with a difficulty of its own.

In float64, relative to the largest attribution, within 1e-7: Captum rounds the weights of its steps to float32, which
makes up to 6e-8. Where the definitions differ, the test says so, and computes the right value by hand.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.engine import paths
from tests.parity.agreement import relative_error

peer = pytest.importorskip("captum.attr")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients:UserWarning"),
]

QUADRATURES = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
STEPS = 5


@pytest.fixture(autouse=True)
def _captum_places_its_steps_in_float64() -> Iterator[None]:
    """Their positions are computed in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class TwoInputs(nn.Module):
    """An image and a vector, which meet in a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3, padding=1)
        self.vector = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gate = self.vector(y).sigmoid()
        return self.head(F.softplus(self.image(x)).mean((2, 3)) * gate + gate).tanh()


class Residual(nn.Module):
    """``out += identity``, then ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        self.inplace = True
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.norm(self.conv(x))
        if not self.inplace:
            out = out + x
        else:
            out += x
        return self.head(self.last(out).mean((2, 3))).tanh()


class UNet(nn.Module):
    """A skip connection from the first level into what lies behind the second; the output has a grid of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 5, 3, padding=1)
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)
        self.head = nn.Conv2d(7, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(self.down(x))
        x = self.up(torch.relu(self.middle(F.avg_pool2d(skip, 2))))
        return self.head(torch.cat([skip, x], 1)).square().mean((2, 3))


class Embedded(nn.Module):
    """Integers in, one vector for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(self.embedding(x).mT)).mean(2))


def _in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 4 * 6, 3),
        nn.Tanh(),
    )


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 3, 3),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(15, 3),
    )


def _conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 3, 2), nn.ELU(), nn.AvgPool3d(2), nn.Conv3d(3, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(32, 3)
    )


class Network(NamedTuple):
    """A network, the shapes of its inputs, layers whose output can be explained, and one whose input can."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]
    read: str  # a layer whose input nothing else reads
    integer: bool = False


_IMAGE = ((3, 2, 6, 8),)
NETWORKS = {
    "two inputs": Network(TwoInputs, ((3, 2, 5, 6), (3, 5)), ("image", "vector"), "head"),
    "residual": Network(Residual, _IMAGE, ("stem", "norm"), "head"),
    "u-net": Network(UNet, _IMAGE, ("down", "middle", "up"), "up"),
    "in-place": Network(_in_place, _IMAGE, ("0", "2", "3"), "2"),
    "embeddings": Network(Embedded, ((3, 6),), ("embedding", "conv"), "conv", integer=True),
    "conv1d": Network(_conv1d, ((3, 2, 16),), ("0", "3"), "2"),
    "conv3d": Network(_conv3d, ((3, 2, 8, 8, 8),), ("0", "3"), "3"),
}
FLOATS = [name for name, network in NETWORKS.items() if not network.integer]
TARGETS = torch.tensor([2, 0, 1])
# (network, layer, does the layer's input count?)
PLACES = [
    *[(name, layer, False) for name, network in NETWORKS.items() for layer in network.layers],
    *[(name, network.read, True) for name, network in NETWORKS.items()],
]
FLOAT_PLACES = [place for place in PLACES if place[0] in FLOATS]


def make(name: str) -> tuple[nn.Module, nn.Module, Any, Any]:
    """The model, a copy for the peer, input and baselines.

    Captum puts a leaf that requires a gradient in the layer's place: its copy computes the same, nothing in place.
    """
    torch.manual_seed(0)
    network = NETWORKS[name]
    model = network.build().double().eval()
    copy = deepcopy(model)
    for module in copy.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    if network.integer:
        return model, copy, torch.randint(7, network.shapes[0]), torch.randint(7, network.shapes[0])
    tensors = [(torch.randn(shape), torch.randn(shape) / 2) for shape in network.shapes]
    inputs, baselines = zip(*tensors, strict=True)
    return model, copy, *((inputs[0], baselines[0]) if len(tensors) == 1 else (inputs, baselines))


def agree(ours: Any, theirs: Any, tolerance: float = 1e-7) -> None:
    ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
    errors = [relative_error(x, y.detach()) for x, y in zip(ours, theirs, strict=True)]
    assert max(errors) <= tolerance, errors


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# --- steps on a line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("name", FLOATS)
def test_integrated_gradients_at_the_input(name, size):
    model, copy, input, baselines = make(name)
    theirs = peer.IntegratedGradients(copy).attribute(input, baselines, TARGETS, n_steps=STEPS)
    options = {"n_steps": STEPS, "internal_batch_size": size, "reduction": None}
    agree(saliency.integrated_gradients(model, input, TARGETS, "", baselines, **options), theirs)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("name", "layer", "before"), PLACES)
def test_integrated_gradients_at_a_layer(name, layer, before, size):
    model, copy, input, baselines = make(name)
    theirs = peer.LayerIntegratedGradients(copy, copy.get_submodule(layer)).attribute(
        input, baselines, TARGETS, n_steps=STEPS, attribute_to_layer_input=before
    )
    options = {"n_steps": STEPS, "internal_batch_size": size, "reduction": None, "attribute_to_layer_input": before}
    agree(saliency.integrated_gradients(model, input, TARGETS, layer, baselines, **options), theirs)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("name", "layer", "before"), FLOAT_PLACES)
def test_internal_influence(name, layer, before, size):
    model, copy, input, baselines = make(name)
    theirs = peer.InternalInfluence(copy, copy.get_submodule(layer)).attribute(
        input, baselines, TARGETS, n_steps=STEPS, attribute_to_layer_input=before
    )
    options = {"n_steps": STEPS, "internal_batch_size": size, "reduction": None, "attribute_to_layer_input": before}
    agree(saliency.internal_influence(model, input, TARGETS, layer, baselines, **options), theirs)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("name", "layer", "before"), FLOAT_PLACES)
def test_conductance(name, layer, before, size):
    model, copy, input, baselines = make(name)
    theirs = peer.LayerConductance(copy, copy.get_submodule(layer)).attribute(
        input, baselines, TARGETS, n_steps=STEPS, attribute_to_layer_input=before
    )
    options = {"n_steps": STEPS, "internal_batch_size": size, "reduction": None, "attribute_to_layer_input": before}
    agree(saliency.conductance(model, input, TARGETS, layer, baselines, **options), theirs)


@pytest.mark.parametrize("n_steps", [2, 7, 50])
@pytest.mark.parametrize("method", QUADRATURES)
@pytest.mark.parametrize("layer", ["", "middle"])
def test_every_quadrature(layer, method, n_steps):
    """Captum's trapezoid has spacing 1 / n in place of 1 / (n - 1), so its weights sum to (n - 1) / n; ours to 1."""
    model, copy, input, baselines = make("u-net")
    steps = {"n_steps": n_steps, "method": method}
    if layer:
        theirs = peer.LayerIntegratedGradients(copy, copy.middle).attribute(input, baselines, TARGETS, **steps)
    else:
        theirs = peer.IntegratedGradients(copy).attribute(input, baselines, TARGETS, **steps)
    if method == "riemann_trapezoid":
        theirs = theirs * n_steps / (n_steps - 1)
    ours = saliency.integrated_gradients(model, input, TARGETS, layer, baselines, **steps, reduction=None)
    agree(ours, theirs)


@pytest.mark.parametrize("method", QUADRATURES)
def test_every_quadrature_of_influence_and_conductance(method):
    model, copy, input, baselines = make("residual")
    steps = {"n_steps": STEPS, "method": method}
    theirs = peer.InternalInfluence(copy, copy.stem).attribute(input, baselines, TARGETS, **steps)
    if method == "riemann_trapezoid":
        theirs = theirs * STEPS / (STEPS - 1)
    agree(saliency.internal_influence(model, input, TARGETS, "stem", baselines, **steps, reduction=None), theirs)
    # No weights: conductance takes positions alone.
    theirs = peer.LayerConductance(copy, copy.stem).attribute(input, baselines, TARGETS, **steps)
    agree(saliency.conductance(model, input, TARGETS, "stem", baselines, **steps, reduction=None), theirs)


@pytest.mark.parametrize("baselines", [None, 0, 0.3, "one for all"])
def test_baselines(baselines):
    model, copy, input, others = make("in-place")
    baselines = others[:1] if baselines == "one for all" else baselines
    theirs = peer.LayerIntegratedGradients(copy, copy[2]).attribute(input, baselines, TARGETS, n_steps=STEPS)
    ours = saliency.integrated_gradients(model, input, TARGETS, "2", baselines, n_steps=STEPS, reduction=None)
    agree(ours, theirs)
    theirs = peer.IntegratedGradients(copy).attribute(input, baselines, TARGETS, n_steps=STEPS)
    ours = saliency.integrated_gradients(model, input, TARGETS, "", baselines, n_steps=STEPS, reduction=None)
    agree(ours, theirs)


@pytest.mark.parametrize("layer", ["", "image"])
def test_baselines_of_several_inputs(layer):
    model, copy, input, others = make("two inputs")
    baselines = (0.25, others[1][:1])
    attribution = peer.LayerIntegratedGradients(copy, copy.image) if layer else peer.IntegratedGradients(copy)
    theirs = attribution.attribute(input, baselines, TARGETS, n_steps=STEPS)
    ours = saliency.integrated_gradients(model, input, TARGETS, layer, baselines, n_steps=STEPS, reduction=None)
    agree(ours, theirs)


@pytest.mark.parametrize("layer", ["", "stem"])
def test_convergence_deltas(layer):
    """At a place that all ways to the score cross; of conductance too."""
    model, copy, input, baselines = make("residual")
    options = {"n_steps": STEPS, "return_convergence_delta": True}
    attribution = peer.LayerIntegratedGradients(copy, copy.stem) if layer else peer.IntegratedGradients(copy)
    theirs = attribution.attribute(input, baselines, TARGETS, **options)
    ours = saliency.integrated_gradients(model, input, TARGETS, layer, baselines, **options, reduction=None)
    agree(ours[0], theirs[0])
    rounding = 1e-7 * float(theirs[0].abs().sum())
    torch.testing.assert_close(ours[1], theirs[1].detach(), rtol=0, atol=rounding)
    if layer:
        theirs = peer.LayerConductance(copy, copy.stem).attribute(input, baselines, TARGETS, **options)
        ours = saliency.conductance(model, input, TARGETS, layer, baselines, **options, reduction=None)
        torch.testing.assert_close(ours[1], theirs[1].detach(), rtol=0, atol=rounding)


@pytest.mark.parametrize("layer", ["", "2"])
def test_gradients_that_are_not_multiplied_by_inputs(layer):
    model, copy, input, baselines = make("in-place")
    attribution = (
        peer.LayerIntegratedGradients(copy, copy[2], multiply_by_inputs=False)
        if layer
        else peer.IntegratedGradients(copy, multiply_by_inputs=False)
    )
    theirs = attribution.attribute(input, baselines, TARGETS, n_steps=STEPS)
    options = {"n_steps": STEPS, "multiply_by_inputs": False, "reduction": None}
    agree(saliency.integrated_gradients(model, input, TARGETS, layer, baselines, **options), theirs)


@pytest.mark.parametrize("method", ["integrated_gradients", "internal_influence", "conductance"])
def test_additional_forward_args(method):
    """A second input that does not move, (N, ...): it goes along with its sample."""
    model, copy, (image, vector), (baselines, _) = make("two inputs")
    attribution = {
        "integrated_gradients": peer.LayerIntegratedGradients,
        "internal_influence": peer.InternalInfluence,
        "conductance": peer.LayerConductance,
    }[method](copy, copy.image)
    theirs = attribution.attribute(image, baselines, TARGETS, additional_forward_args=vector, n_steps=STEPS)
    options = {"n_steps": STEPS, "additional_forward_args": vector, "internal_batch_size": 4, "reduction": None}
    agree(getattr(saliency, method)(model, image, TARGETS, "image", baselines, **options), theirs)


# --- random steps ---------------------------------------------------------------------------------------------------


def on_path(path: paths.Path, inputs: tuple[Tensor, ...]) -> paths.Rows:
    """All points of a path, the steps of a sample one after the other, as Captum orders them."""
    samples, steps = len(inputs[0]), len(path.weights)
    walk = path.begin([*inputs], None)
    return walk(torch.arange(samples).repeat_interleave(steps), torch.arange(steps).repeat(samples))


@pytest.fixture
def equal_noise(monkeypatch) -> Callable[[paths.Path], None]:
    """Let Captum's noise tunnel add our noise."""

    def give(path: paths.Path) -> None:
        def add(tunnel: Any, samples: int, inputs: tuple[Tensor, ...], stdevs: Any) -> tuple[Tensor, ...]:
            rows = on_path(path, tuple(x.detach() for x in inputs))
            noisy = rows.ends or rows.points
            return tuple(x.requires_grad_() for x in noisy)

        monkeypatch.setattr(peer.NoiseTunnel, "_add_noise_to_inputs", add)

    return give


@pytest.fixture
def equal_draws(monkeypatch, equal_noise) -> Callable[[paths.Path, tuple[Tensor, ...], tuple[Tensor, ...]], None]:
    """Let Captum draw our noise, positions between baseline and input, and baselines."""

    def give(path: paths.Path, inputs: tuple[Tensor, ...], baselines: tuple[Tensor, ...]) -> None:
        equal_noise(path)
        rows = on_path(path, inputs)
        points, starts, ends = (x[0].flatten(1) for x in rows)
        alphas = ((points - starts) / (ends - starts)).median(1).values
        monkeypatch.setattr(np.random, "uniform", lambda low, high, size: alphas.numpy())
        chosen = iter(
            [
                np.array([next(i for i, b in enumerate(of) if torch.equal(b, start)) for start in drawn])
                for of, drawn in zip(baselines, rows.starts, strict=True)
            ]
        )
        monkeypatch.setattr(np.random, "choice", lambda count, size: next(chosen))

    return give


def distribution(baselines: Any) -> Any:
    """More baselines than samples."""
    several = tuple(torch.cat([x, x.flip(0) * 0.5 + 0.1]) for x in as_tuple(baselines))
    return several if isinstance(baselines, tuple) else several[0]


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("name", FLOATS)
def test_gradient_shap(name, size, equal_draws):
    model, copy, input, baselines = make(name)
    baselines = distribution(baselines)
    equal_draws(saliency.between(as_tuple(baselines), 4, 0.1), as_tuple(input), as_tuple(baselines))
    theirs = peer.GradientShap(copy).attribute(input, baselines, n_samples=4, stdevs=0.1, target=TARGETS)
    options = {"n_samples": 4, "stdevs": 0.1, "internal_batch_size": size, "reduction": None}
    agree(saliency.gradient_shap(model, input, TARGETS, "", baselines, **options), theirs)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("name", "layer", "before"), FLOAT_PLACES)
def test_layer_gradient_shap(name, layer, before, size, equal_draws):
    model, copy, input, baselines = make(name)
    baselines = distribution(baselines)
    equal_draws(saliency.between(as_tuple(baselines), 4, 0.1), as_tuple(input), as_tuple(baselines))
    theirs = peer.LayerGradientShap(copy, copy.get_submodule(layer)).attribute(
        input, baselines, n_samples=4, stdevs=0.1, target=TARGETS, attribute_to_layer_input=before
    )
    options = {"n_samples": 4, "stdevs": 0.1, "internal_batch_size": size, "reduction": None}
    ours = saliency.gradient_shap(model, input, TARGETS, layer, baselines, **options, attribute_to_layer_input=before)
    agree(ours, theirs)


def test_gradient_shap_without_multiplying_and_its_delta(equal_draws):
    model, copy, input, baselines = make("residual")
    baselines = distribution(baselines)
    path = saliency.between([baselines], 4, 0.1)
    equal_draws(path, (input,), (baselines,))
    theirs = peer.GradientShap(copy, multiply_by_inputs=False)
    theirs = theirs.attribute(input, baselines, n_samples=4, stdevs=0.1, target=TARGETS)
    options = {"n_samples": 4, "stdevs": 0.1, "reduction": None}
    ours = saliency.gradient_shap(model, input, TARGETS, "", baselines, multiply_by_inputs=False, **options)
    agree(ours, theirs)
    equal_draws(path, (input,), (baselines,))
    theirs = peer.GradientShap(copy).attribute(
        input, baselines, n_samples=4, stdevs=0.1, target=TARGETS, return_convergence_delta=True
    )
    ours = saliency.gradient_shap(model, input, TARGETS, "", baselines, return_convergence_delta=True, **options)
    # Captum gives a delta for each draw, we the mean of them: what the attribution, their mean, misses.
    agree(ours[1], theirs[1].view(3, 4).mean(1))


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(("power", "kind"), [("mean", ""), ("squared", "_sq"), ("variance", "vargrad")])
@pytest.mark.parametrize("name", FLOATS)
def test_smooth_gradient(name, power, kind, size, equal_noise):
    model, copy, input, _ = make(name)
    stdevs = (0.2, 0.1) if isinstance(input, tuple) else 0.2
    equal_noise(saliency.noise(4, stdevs))
    kind = kind if kind == "vargrad" else f"smoothgrad{kind}"
    theirs = peer.NoiseTunnel(peer.Saliency(copy)).attribute(
        input, nt_type=kind, nt_samples=4, stdevs=stdevs, target=TARGETS, abs=False
    )
    options = {"n_samples": 4, "stdevs": stdevs, "power": power, "internal_batch_size": size, "reduction": None}
    agree(saliency.smooth_gradient(model, input, TARGETS, **options), theirs)


@pytest.mark.parametrize("power", ["mean", "squared", "variance"])
@pytest.mark.parametrize(("name", "layer", "before"), FLOAT_PLACES)
def test_smooth_gradient_at_a_layer(name, layer, before, power, equal_noise):
    model, copy, input, _ = make(name)
    equal_noise(saliency.noise(4, 0.2))
    kind = {"mean": "smoothgrad", "squared": "smoothgrad_sq", "variance": "vargrad"}[power]
    gradient = peer.LayerGradientXActivation(copy, copy.get_submodule(layer), multiply_by_inputs=False)
    theirs = peer.NoiseTunnel(gradient).attribute(
        input, nt_type=kind, nt_samples=4, stdevs=0.2, target=TARGETS, attribute_to_layer_input=before
    )
    options = {"n_samples": 4, "stdevs": 0.2, "power": power, "internal_batch_size": 3, "reduction": None}
    ours = saliency.smooth_gradient(model, input, TARGETS, layer, **options, attribute_to_layer_input=before)
    agree(ours, theirs)


# --- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer", "before"), PLACES)
def test_gradient_x_activation(name, layer, before):
    model, copy, input, _ = make(name)
    theirs = peer.LayerGradientXActivation(copy, copy.get_submodule(layer))
    theirs = theirs.attribute(input, TARGETS, attribute_to_layer_input=before)
    options = {"reduction": None, "attribute_to_layer_input": before}
    agree(saliency.gradient_x_activation(model, input, TARGETS, layer, **options), theirs)
    theirs = peer.LayerGradientXActivation(copy, copy.get_submodule(layer), multiply_by_inputs=False)
    theirs = theirs.attribute(input, TARGETS, attribute_to_layer_input=before)
    agree(saliency.gradient_x_activation(model, input, TARGETS, layer, multiply_by_inputs=False, **options), theirs)


@pytest.mark.parametrize(("name", "layer", "before"), PLACES)
def test_activation(name, layer, before):
    model, copy, input, _ = make(name)
    theirs = peer.LayerActivation(copy, copy.get_submodule(layer)).attribute(input, attribute_to_layer_input=before)
    options = {"reduction": None, "attribute_to_layer_input": before}
    agree(saliency.activation(model, input, TARGETS, layer, **options), theirs)


@pytest.mark.parametrize(
    ("name", "layer", "before"), [p for p in PLACES if p[1] not in ("vector", "head", "embedding")]
)
def test_grad_cam(name, layer, before):
    """Ours clamps, theirs if it is asked to. (Of tokens, (N, L, C), Captum would take the positions for channels.)"""
    model, copy, input, _ = make(name)
    theirs = peer.LayerGradCam(copy, copy.get_submodule(layer))
    theirs = theirs.attribute(input, TARGETS, relu_attributions=True, attribute_to_layer_input=before)
    options = {"attribute_to_layer_input": before, "layout": "channels_first"}
    agree(saliency.grad_cam(model, input, TARGETS, layer, **options), theirs)


class Halves(nn.Module):
    """A layer that gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x.tanh(), self.norm(x[..., ::2]).sigmoid()


class OfHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.halves = Halves()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.halves(x)
        return self.head(a.mean((2, 3)) * b.sum((2, 3))).tanh()


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("activation", lambda model: peer.LayerActivation(model, model.halves).attribute),
        ("gradient_x_activation", lambda model: peer.LayerGradientXActivation(model, model.halves).attribute),
        ("internal_influence", lambda model: peer.InternalInfluence(model, model.halves).attribute),
        ("conductance", lambda model: peer.LayerConductance(model, model.halves).attribute),
    ],
)
def test_a_layer_that_gives_two_tensors_has_a_tuple_of_attributions(method, theirs):
    torch.manual_seed(0)
    model, input = OfHalves().eval(), torch.randn(3, 2, 6, 8)
    options = {"n_steps": STEPS} if method in ("internal_influence", "conductance") else {}
    expected = theirs(deepcopy(model))(input, **({} if method == "activation" else {"target": TARGETS}), **options)
    ours = getattr(saliency, method)(model, input, TARGETS, "halves", reduction=None, **options)
    assert isinstance(ours, tuple)
    agree(ours, expected)


# --- where the definitions differ -----------------------------------------------------------------------------------


def test_the_input_of_a_layer_that_a_skip_also_reads_is_the_layers_alone():
    """Captum differentiates the tensor, and so adds what goes round the layer; it counts for the layer's input here.

    Its layer integrated gradients, which replace what the layer is given, agree with ours.
    """
    model, copy, input, baselines = make("residual")
    with torch.no_grad():
        x, x0 = (model.relu(model.stem(start)) for start in (input, baselines))
        at, weights = np.polynomial.legendre.leggauss(STEPS)

    def gradient(y: Tensor, round_it: Tensor) -> Tensor:
        y = y.detach().requires_grad_()
        out = model.head((model.norm(model.conv(y)) + round_it).relu().mean((2, 3))).tanh()
        return torch.autograd.grad(out[range(3), TARGETS].sum(), y)[0]

    options = {"reduction": None, "attribute_to_layer_input": True}
    expected = x * gradient(x, x)
    ours = saliency.gradient_x_activation(model, input, TARGETS, "conv", **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    theirs = peer.LayerGradientXActivation(copy, copy.conv).attribute(input, TARGETS, attribute_to_layer_input=True)
    assert relative_error(ours, theirs.detach()) > 0.1

    expected = sum(
        w / 2 * gradient(x0 + (a + 1) / 2 * (x - x0), x) * (x - x0) for a, w in zip(at, weights, strict=True)
    )
    options["n_steps"] = STEPS
    ours = saliency.integrated_gradients(model, input, TARGETS, "conv", baselines, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    theirs = peer.LayerIntegratedGradients(copy, copy.conv)
    agree(ours, theirs.attribute(input, baselines, TARGETS, n_steps=STEPS, attribute_to_layer_input=True))

    def on_the_way(a: float) -> Tensor:
        with torch.no_grad():
            return model.relu(model.stem(baselines + (a + 1) / 2 * (input - baselines)))

    expected = sum(w / 2 * gradient(on_the_way(a), on_the_way(a)) for a, w in zip(at, weights, strict=True))
    ours = saliency.internal_influence(model, input, TARGETS, "conv", baselines, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_the_delta_at_a_layer_is_what_is_missed_of_the_scores_change_on_the_layers_path():
    """There, what goes round the layer stays as it is. Captum subtracts the change from baselines to inputs of it all.

    Its delta so does not fall to 0 where a skip leads round the layer, however many the steps.
    """
    model, copy, input, baselines = make("residual")
    with torch.no_grad():
        x, x0 = (model.relu(model.stem(start)) for start in (input, baselines))
        end, start = (
            model.head((model.norm(model.conv(y)) + x).relu().mean((2, 3))).tanh()[range(3), TARGETS] for y in (x, x0)
        )
    options = {"n_steps": 200, "return_convergence_delta": True, "reduction": None}
    ours, delta = saliency.integrated_gradients(model, input, TARGETS, "norm", baselines, **options)
    torch.testing.assert_close(delta, ours.flatten(1).sum(1) - (end - start), rtol=0, atol=1e-12)
    missed = float((delta / ours.flatten(1).abs().sum(1)).abs().max())
    theirs, delta = peer.LayerIntegratedGradients(copy, copy.norm).attribute(
        input, baselines, TARGETS, n_steps=200, return_convergence_delta=True
    )
    agree(ours, theirs)
    assert missed < 1e-3 < 0.1 < float((delta / ours.flatten(1).abs().sum(1)).abs().max())
