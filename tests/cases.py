"""The cases of the tests: a row for every method, and small models, each with a difficulty of its own.

A new method needs one row in ``METHOD_CASES``, with its kind. Methods of one kind run the same code of the engine: the
contract test runs one of them on every model, the others on three.
"""

import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu as bound_relu

import saliency


def shown(value: Any) -> str:
    """The value in the name of a test: the same in every process, which the address of a function is not."""
    if isinstance(value, list) and any(isinstance(each, types.FunctionType) for each in value):
        return f"functions {len(value)}"
    return "function" if isinstance(value, types.FunctionType) else str(value)


# What a call rightly says of small networks, of layers in a branch, and of a part of a batch of methods.
NOTICES = pytest.mark.filterwarnings(
    *(
        f"ignore:.*{words}"
        for words in ("changed nothing", "zero everywhere", "winning probability", "has a single position")
    )
)

# What of the engine a method runs, and the method that stands for all that run the same.
KINDS = {
    "gradient": "gradient",  # a gradient, reduced to a map
    "activation": "activation",  # no backward pass
    "cam": "grad_cam",  # a gradient at a layer that is searched for
    "rules": "guided_backprop",  # another backward pass
    "relevance": "lrp",  # another backward pass, whose rules ask where operations stand
    "excitation": "excitation_backprop",  # another backward pass, of what is no gradient
    "path": "conductance",  # gradients on a path of the input
    "layer path": "integrated_gradients",  # gradients on a path of the layer's own
    "differences": "deep_lift",  # another backward pass, of differences to an earlier pass
    "scores": "feature_ablation",  # scores of changed inputs, or of a layer's changed activations
    "attention": "transformer_attribution",  # attentions of a pass, of networks that have any
    "masks": "rise",  # scores of masked inputs
    "search": "extremal_perturbation",  # changes of the input that are optimised
}


class Net(nn.Module):
    """A network of named parts, and a function of it and its inputs: ``Net(lambda s, x: s.fc(x), fc=Linear(2, 2))``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.function(self, *inputs, **options)


class MethodCase(NamedTuple):
    """A method of the table: its kind, options of every call, and in what its results differ from the others'."""

    name: str
    kind: str
    options: Mapping[str, Any] = {}
    layer: str | None = ""  # the documented default of saliency_layer
    at_input: bool = False  # the map has the input's size, whatever the layer
    uses_target: bool = True
    signed: bool = False
    # What other methods have: "layer", "layers" (a list), "any layer", "default" (one layer), "probes", "batch" (as it
    # came), "functions" (as targets, or an only score).
    lacks: tuple[str, ...] = ()

    @property
    def stands_for_its_kind(self) -> bool:
        return KINDS[self.kind] == self.name

    def __call__(self, model: Any, input: Any, target: Any, *layer: Any, **options: Any) -> Any:
        layer = () if "layer" in self.lacks else layer
        return saliency.METHODS[self.name].function(model, input, target, *layer, **{**self.options, **options})


_FEW_MASKS = {"num_masks": 6, "num_cells": 3, "scores": "raw"}

_FEW_STEPS = {"areas": (0.2, 0.4), "max_iter": 3, "step": 2, "sigma": 2}

METHOD_CASES = (
    MethodCase("gradient", "gradient"),
    MethodCase("gradient_x_activation", "gradient", signed=True),
    MethodCase("linear_approx", "gradient", signed=True),
    MethodCase("activation", "activation", layer=None, uses_target=False, signed=True),
    MethodCase("deconvnet", "rules"),
    MethodCase("guided_backprop", "rules"),
    MethodCase("guided_grad_cam", "rules", layer=None, at_input=True),
    MethodCase("excitation_backprop", "excitation", layer=None, signed=True),
    MethodCase("contrastive_excitation_backprop", "excitation", layer=None),
    MethodCase("lrp", "relevance", signed=True),
    MethodCase("grad_cam", "cam", layer=None),
    MethodCase("grad_cam_plus_plus", "cam", layer=None),
    MethodCase("layer_cam", "cam", layer=None),
    MethodCase("xgrad_cam", "cam", layer=None),
    MethodCase("hires_cam", "cam", layer=None),
    MethodCase("cam", "rules", layer=None, signed=True, lacks=("layers", "any layer")),
    MethodCase("eigen_cam", "activation", layer=None, uses_target=False, signed=True),
    MethodCase("eigen_grad_cam", "cam", layer=None, signed=True),
    MethodCase("kpca_cam", "activation", layer=None, uses_target=False, signed=True),
    MethodCase("fem", "activation", {"k": 1}, layer=None, uses_target=False, signed=True),
    MethodCase("finer_cam", "cam", layer=None, lacks=("functions",)),
    MethodCase("shapley_cam", "rules", layer=None),
    MethodCase("smooth_grad_cam_plus_plus", "path", {"n_samples": 3}, layer=None, lacks=("probes", "batch")),
    MethodCase("refine_cam", "cam", layer=None, lacks=("layers", "probes", "default")),
    MethodCase("full_grad", "rules"),
    MethodCase("integrated_gradients", "layer path", {"n_steps": 5}, signed=True, lacks=("probes", "batch")),
    MethodCase("internal_influence", "path", {"n_steps": 5}, layer=None, signed=True, lacks=("probes", "batch")),
    MethodCase("conductance", "path", {"n_steps": 5}, layer=None, signed=True, lacks=("probes", "batch")),
    MethodCase("gradient_shap", "path", {"n_samples": 3}, signed=True, lacks=("probes", "batch")),
    MethodCase("expected_gradients", "path", {"n_samples": 3}, signed=True, lacks=("probes", "batch")),
    MethodCase("deep_lift", "differences", signed=True),
    MethodCase("deep_lift_shap", "differences", signed=True, lacks=("probes", "batch")),
    MethodCase("smooth_gradient", "path", {"n_samples": 3}, lacks=("probes", "batch")),
    MethodCase("feature_ablation", "scores", layer=None, signed=True, lacks=("probes", "batch")),
    MethodCase("feature_permutation", "scores", layer=None, signed=True, lacks=("probes", "batch", "one")),
    MethodCase("occlusion", "scores", signed=True, lacks=("probes", "batch")),
    MethodCase("score_cam", "scores", layer=None, lacks=("probes", "batch")),
    MethodCase("ss_cam", "scores", {"num_samples": 2}, layer=None, lacks=("probes", "batch")),
    MethodCase("is_cam", "scores", {"num_samples": 2}, layer=None, lacks=("probes", "batch")),
    MethodCase("ablation_cam", "scores", layer=None, lacks=("probes", "batch")),
    MethodCase("recipro_cam", "scores", layer=None, signed=True, lacks=("probes", "batch")),
    MethodCase("raw_attention", "attention", uses_target=False, lacks=("layers", "probes")),
    MethodCase("attention_rollout", "attention", uses_target=False, lacks=("layers", "probes")),
    MethodCase("gradient_attention", "attention", signed=True, lacks=("layers", "probes")),
    MethodCase("transformer_attribution", "attention", lacks=("layers", "probes")),
    MethodCase("legrad", "attention", lacks=("layers", "probes", "batch")),
    MethodCase("grad_eclip", "attention", lacks=("layers", "probes")),
    MethodCase("rise", "masks", _FEW_MASKS, at_input=True, signed=True, lacks=("layer", "layers", "probes", "batch")),
    MethodCase("extremal_perturbation", "search", _FEW_STEPS, lacks=("layers", "batch")),
)
# Methods that explain any network, and those that need one with attention; their contract: test_attention_contract.py
GENERAL = tuple(case for case in METHOD_CASES if case.kind != "attention")
ATTENTION = tuple(case for case in METHOD_CASES if case.kind == "attention")


def _norm(channels: int) -> nn.BatchNorm2d:
    """A batch normalisation that does something in evaluation mode."""
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    return norm


class InPlace(nn.Module):
    """In-place ReLU modules behind every layer that may be probed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            _norm(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(6, 4)

    def scores(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Any:
        return self.scores(x)


class Functional(nn.Module):
    """Two convolutions, each followed by a function."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.classifier = nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.conv1(x))
        x = self.function(self.conv2(x))
        return self.classifier(x.mean((2, 3)))


def _thrown_away(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


_inplace_module = nn.ReLU(inplace=True)


def _module_thrown_away(x: Tensor) -> Tensor:
    _inplace_module(x)
    return x


# ReLU however it is spelled: all of these are the same function of their argument.
RELU_SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU()": nn.ReLU(),
    "nn.ReLU(inplace=True)": _inplace_module,
    "nn.ReLU(inplace=True) thrown away": _module_thrown_away,
    "F.relu": lambda x: F.relu(x),
    "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "F.relu(input=x)": lambda x: F.relu(input=x),
    "F.relu(inplace=True) thrown away": _thrown_away,
    "F.relu_": lambda x: F.relu_(x),
    "bound before": bound_relu,
    "bound before, in place": lambda x: bound_relu(x, inplace=True),
    "torch.relu": lambda x: torch.relu(x),
    "torch.relu_": lambda x: torch.relu_(x),
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp(0)": lambda x: x.clamp(0),
    "x.clamp(0, None)": lambda x: x.clamp(0, None),
    "x.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "x.clamp_min(0)": lambda x: x.clamp_min(0),
    "x.clamp_min_(0)": lambda x: x.clamp_min_(0),
    "torch.clamp(x, min=0)": lambda x: torch.clamp(x, min=0),
    "torch.clamp(input=x, min=0.0)": lambda x: torch.clamp(input=x, min=0.0),
    "torch.clamp_(x, 0)": lambda x: torch.clamp_(x, 0),
    "torch.clamp_min(x, 0)": lambda x: torch.clamp_min(x, 0),
    "x.clip(min=0)": lambda x: x.clip(min=0),
    "x.clip_(0)": lambda x: x.clip_(0),
    "torch.clip(x, 0)": lambda x: torch.clip(x, 0),
    "F.threshold(x, 0, 0)": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold(0, 0)": nn.Threshold(0, 0),
    "nn.Threshold(0, 0, inplace=True)": nn.Threshold(0, 0, inplace=True),
}


class Residual(nn.Module):
    """The block of a ResNet: ``out += identity``, then an in-place ReLU; its shortcut is an empty Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.norm = _norm(5)
        self.shortcut = nn.Sequential()
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        identity = self.shortcut(x)
        out = self.norm(self.conv(x))
        out += identity
        return self.classifier(self.relu(out).mean((2, 3)))


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.classifier = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x).relu()).relu_()
        return self.classifier(self.conv(x).tanh().mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 7), nn.GELU(), nn.Linear(7, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 3 x 3 and a class token in front of them: (N, 1 + h * w, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 21, 6))
        self.blocks = nn.Sequential(_Block(6), _Block(6))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class ChannelsLast(nn.Module):
    """Activations (N, h, w, C), as in a Swin transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, 3, stride=3)
        self.mlp = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 7), nn.GELU(), nn.Linear(7, 10))
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return self.head(self.norm(x).mean((1, 2)))


class DictOutput(InPlace):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"boxes": x.sum(), "scores": self.scores(x)}


class TupleOutput(InPlace):
    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        return self.scores(x), None, x.sum()


class ColumnOutput(InPlace):
    """(N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)[..., None, None]


class OneScore(InPlace):
    """(N,)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)[:, 1]


class DenseOutput(nn.Module):
    """(N, C, H, W), as in segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv2(F.relu_(self.conv1(x))), x.shape[2:]).tanh()


class TwoInputs(InPlace):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scores(x) * y


class KeywordArguments(InPlace):
    def forward(self, x: Tensor, extra: Tensor, *, scale: Tensor, power: int = 1) -> Tensor:
        return self.scores(x * extra) * scale**power


class FirstInPlace(InPlace):
    """The first operation overwrites the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x.mul_(2).sub_(0.1))


class Stochastic(InPlace):
    """Draws random numbers in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(F.dropout(x, 0.3, training=True))


class TrainMode(InPlace):
    """In training, with dropout awake and the batch normalisation put to sleep by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features.append(nn.Dropout(0.5))
        self.features[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.scores(x), 0.5, self.training)


class ModelCase(NamedTuple):
    """A model, what it is called with, two of its layers, and the grid (h, w) of the second, its default one."""

    name: str
    build: Callable[[], nn.Module]
    layers: tuple[str, str]
    grid: tuple[int, int]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 11, 14),)
    target: Any = 1
    options: Callable[[torch.dtype], dict[str, Any]] = lambda dtype: {}
    train: bool = False
    batched: bool = True  # does the map of an image not depend on the rest of its batch?

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build().to(dtype)
        return model if self.train else model.eval()

    def input(self, dtype: torch.dtype = torch.float64) -> Any:
        generator = torch.Generator("cpu").manual_seed(1)
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") for shape in self.shapes]
        tensors = tuple(tensor.to(torch.get_default_device(), dtype) for tensor in drawn)
        return tensors[0] if len(tensors) == 1 else tensors


_FEATURES = (("features.0", "features"), (6, 7))
_PATCHES = ((2, 3, 12, 15),)


def _keywords(dtype: torch.dtype) -> dict[str, Any]:
    extra = torch.linspace(0.5, 2, 11 * 14, dtype=dtype).view(1, 1, 11, 14)
    scale = torch.tensor([0.5, 1, 2, 3], dtype=dtype)
    return {"additional_forward_args": extra, "forward_kwargs": {"scale": scale, "power": 2}}


IN_PLACE = ModelCase("in place", InPlace, *_FEATURES)
FUNCTIONAL = ModelCase("functional", Functional, ("conv1", "conv2"), (6, 7))
RESIDUAL = ModelCase("residual", Residual, ("shortcut", "relu"), (6, 7), target=2)
TRANSFORMER = ModelCase("transformer", VisionTransformer, ("blocks.0", "blocks.1.norm1"), (4, 5), _PATCHES, target=3)
CHANNELS_LAST = ModelCase("channels last", ChannelsLast, ("mlp", "norm"), (4, 5), _PATCHES)
DICT = ModelCase("dict", DictOutput, *_FEATURES, target=lambda output: output["scores"][:, 1])
TUPLE = ModelCase("tuple", TupleOutput, *_FEATURES)
COLUMN = ModelCase("column", ColumnOutput, *_FEATURES)
ONE_SCORE = ModelCase("one score", OneScore, *_FEATURES, target=None)
DENSE = ModelCase("dense", DenseOutput, ("conv1", "conv2"), (6, 7))
TWO_INPUTS = ModelCase("two inputs", TwoInputs, *_FEATURES, shapes=((2, 3, 11, 14), (2, 4)))
KEYWORDS = ModelCase("keywords", KeywordArguments, *_FEATURES, options=_keywords)
FIRST_IN_PLACE = ModelCase("first in place", FirstInPlace, *_FEATURES)
STOCHASTIC = ModelCase("stochastic", Stochastic, *_FEATURES, batched=False)
TRAIN_MODE = ModelCase("train mode", TrainMode, *_FEATURES, train=True)
TWICE = ModelCase("twice", Twice, ("stem", "conv"), (6, 7))

# In place, branched, and of tokens: what every method has to get right by itself.
FEW_MODELS = (IN_PLACE, RESIDUAL, TRANSFORMER)

MODEL_CASES = (
    *(IN_PLACE, FUNCTIONAL, RESIDUAL, TWICE, TRANSFORMER, CHANNELS_LAST, DICT, TUPLE, COLUMN, ONE_SCORE, DENSE),
    *(TWO_INPUTS, KEYWORDS, FIRST_IN_PLACE, STOCHASTIC, TRAIN_MODE),
)


def crossed(
    name: str, values: Iterable[Any], few: Iterable[Any], methods: Iterable[MethodCase] = GENERAL
) -> pytest.MarkDecorator:
    """Parametrise by ``method`` and another argument: one method of each kind takes all values, the others a few."""
    values, few = list(values), list(few)
    pairs = [(method, value) for method in methods for value in (values if method.stands_for_its_kind else few)]
    return pytest.mark.parametrize(
        ("method", name), [pytest.param(*pair, id="-".join(map(_name, pair))) for pair in pairs]
    )


def on_models(only: Callable[[ModelCase], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Parametrise by ``method`` and ``case``: one method of each kind runs on all models, the others on three."""
    return crossed("case", filter(only, MODEL_CASES), filter(only, FEW_MODELS))


def _name(value: Any) -> str:
    return value.name if isinstance(value, (MethodCase, ModelCase)) else str(value)
