"""Contexts x paths x reductions x places x targets: every combination that has a meaning is the sum of its parts.

Each pair of choices is met in a small number of cases. By hand, a case is: the context entered around the model, the
points of the path one at a time, gradients from a Probe (or from autograd, for a layer whose output is replaced), the
fold and the reduction as formulas. Combinations without a meaning raise before the forward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.engine import folds, paths
from tests import cases
from tests.cases import ModelCase

pytestmark = cases.NOTICES

STEPS, BASELINE = 3, 0.3


class _Halved(torch.autograd.Function):
    """A ReLU that lets a little through below 0, and half of the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=-0.2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2 * (ctx.saved_tensors[0] > -0.2)


def _tripled(op: Any, gradient: Tensor) -> Tensor:
    return 3 * op.derivative(gradient)[0]


CONTEXTS: dict[str, Callable[[], Any]] = {
    "plain": saliency.NullContext,
    "guided": saliency.GuidedBackpropContext,
    "deconvnet": saliency.DeConvNetContext,
    "excitation": saliency.ExcitationBackpropContext,
    "instead": lambda: saliency.ReLUContext(_Halved),
    "rule": lambda: saliency.RuleContext({F.linear: saliency.Rule(_tripled), F.gelu: saliency.Pre(torch.neg)}),
}


class PathCase(NamedTuple):
    """A path; what a fold makes of gradients, activations and movements of its steps; what it is multiplied with."""

    build: Callable[[], paths.Path | None]
    fold: Callable[[list[float], list[Tensor], list[Tensor], list[Tensor]], Tensor] = lambda w, g, y, moved: sum(
        a * b for a, b in zip(w, g, strict=True)
    )
    times: str = "activation"  # "displacement", or "nothing" where the fold's result is an attribution
    needs_derivatives: bool = False


def _flow(w: list[float], g: list[Tensor], y: list[Tensor], moved: list[Tensor]) -> Tensor:
    return sum(g[t] * (y[t + 1] - y[t]) for t in range(len(y) - 1))


def _variance(w: list[float], g: list[Tensor], y: list[Tensor], moved: list[Tensor]) -> Tensor:
    mean = sum(g) / len(g)
    return sum((x - mean) ** 2 for x in g) / len(g)


def _between(**options: Any) -> paths.Path:
    """Baselines with as many entries as the image has."""
    shape = (2, *options.pop("shape"))
    return saliency.between([torch.linspace(-1, 1, int(np.prod(shape)), dtype=torch.float64).view(shape)], STEPS, 0.1)


PATHS: dict[str, PathCase] = {
    "none": PathCase(lambda **_: None),
    "line": PathCase(lambda **_: saliency.line(BASELINE, STEPS)),
    "line from": PathCase(lambda **_: saliency.line(BASELINE, STEPS, times="displacement"), times="displacement",
                          needs_derivatives=True),
    "layer's": PathCase(lambda **_: saliency.line(BASELINE, STEPS, at_layer=True, times="displacement"),
                        times="displacement", needs_derivatives=True),
    "conductance": PathCase(lambda **_: saliency.line(BASELINE, STEPS - 1, fold=folds.CONDUCTANCE), _flow, "nothing",
                            True),
    "noise": PathCase(lambda **_: saliency.noise(STEPS, 0.2)),
    "squared": PathCase(lambda **_: saliency.noise(STEPS, 0.2, fold=folds.SQUARED),
                        lambda w, g, y, moved: sum(x * x for x in g) / len(g), "nothing"),
    "variance": PathCase(lambda **_: saliency.noise(STEPS, 0.2, fold=folds.VARIANCE), _variance, "nothing"),
    "between": PathCase(_between, lambda w, g, y, moved: sum(a * b for a, b in zip(g, moved, strict=True)) / len(g),
                        "nothing", True),
}  # fmt: skip

# name -> the reduction, its formula, and is it one of an attribution?
REDUCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor], bool]] = {
    "gradient": (saliency.gradient_to_saliency, lambda x, g: g.abs().amax(1, keepdim=True), False),
    "sum": (saliency.Attribution(saliency.sum_channels), lambda x, g: (x * g).sum(1, keepdim=True), True),
    "max": (saliency.Attribution(saliency.max_channels), lambda x, g: (x * g).abs().amax(1, keepdim=True), True),
    "whole": (saliency.Attribution(None), lambda x, g: x * g, True),
    "Grad-CAM": (
        saliency.gradient_to_grad_cam_saliency,
        lambda x, g: (x * g.mean((2, 3), keepdim=True)).sum(1, keepdim=True).clamp(min=0),
        False,
    ),
    "LayerCAM": (
        saliency.gradient_to_layer_cam_saliency,
        lambda x, g: (x * g.clamp(min=0)).sum(1, keepdim=True).clamp(min=0),
        False,
    ),
}

_INDICES = torch.tensor([[1, 3], [0, 2]])
# name -> the target, and the scores (1,) of one sample by its number and output (1, C)
TARGETS: dict[str, tuple[Any, list[Callable[[int, Tensor], Tensor]]]] = {
    "int": (1, [lambda n, y: y[:, 1]]),
    "(N, K)": (_INDICES, [lambda n, y, k=k: y[:, _INDICES[n, k]] for k in range(2)]),
    "function": (
        lambda y: torch.stack([y[:, 1] - y[:, 2], y[:, 0]], 1),
        [lambda n, y: y[:, 1] - y[:, 2], lambda n, y: y[:, 0]],
    ),
}

FACTORS: dict[str, tuple[Any, ...]] = {
    "model": ("in place", "residual", "transformer"),
    "context": tuple(CONTEXTS),
    "path": tuple(PATHS),
    "reduction": tuple(REDUCTIONS),
    "where": ("layer", "list", "input"),
    "target": tuple(TARGETS),
    "size": (None, 1, 4),
}
MODELS = {"in place": cases.IN_PLACE, "residual": cases.RESIDUAL, "transformer": cases.TRANSFORMER}


def has_meaning(case: Mapping[str, Any]) -> bool:
    path = PATHS[case["path"]]
    if case["path"] == "none":
        return case["size"] is None
    if path.times == "nothing" and not REDUCTIONS[case["reduction"]][2]:
        return False
    return not (path.needs_derivatives and case["context"] == "excitation")


def pairs_of(case: Mapping[str, Any]) -> frozenset[tuple[Any, ...]]:
    return frozenset(combinations(case.items(), 2))


def pairwise() -> Iterator[dict[str, Any]]:
    """Cases that meet every pair of choices that has a meaning: each time the one that meets most that are missing."""
    every = [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]
    every = [case for case in every if has_meaning(case)]
    bits: dict[tuple[Any, ...], int] = {}
    met = [sum(1 << bits.setdefault(pair, len(bits)) for pair in combinations(case.items(), 2)) for case in every]
    missing = (1 << len(bits)) - 1
    most = met[0].bit_count()
    while missing:
        # The first that meets as many as the last one did; no other meets more.
        found = next((i for i, pairs in enumerate(met) if (pairs & missing).bit_count() >= most), None)
        if found is None:
            most -= 1
        else:
            missing &= ~met[found]
            yield every[found]


CASES = list(pairwise())


def test_every_pair_of_choices_with_a_meaning_is_met_in_few_cases():
    assert len(CASES) <= 400
    assert all(map(has_meaning, CASES))
    met = frozenset().union(*map(pairs_of, CASES))
    for (a, values), (b, others) in combinations(FACTORS.items(), 2):
        for value, other in product(values, others):
            fixed = {a: value, b: other}
            free = {name: of for name, of in FACTORS.items() if name not in fixed}
            meant = any(has_meaning(dict(zip(free, rest, strict=True)) | fixed) for rest in product(*free.values()))
            assert (((a, value), (b, other)) in met) == meant


# --- by hand --------------------------------------------------------------------------------------------------------


class ByHand:
    """One layer of a model, in one context, for one sample at a time."""

    def __init__(self, case: ModelCase, layer: str, context: Callable[[], Any]) -> None:
        self.model = case.model().requires_grad_(False)
        self.module = self.model.get_submodule(layer)
        self.side = "output" if layer else "input"
        self.context = context

    def activation(self, x: Tensor) -> Tensor:
        with self.context(), saliency.Probe(self.module, self.side) as probe:
            self.model(x.clone())
        return probe.data[0].detach()

    def gradient(self, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        with self.context(), saliency.Probe(self.module, self.side) as probe:
            score(self.model(x.clone().requires_grad_())).sum().backward()
        return probe.data[0].grad

    def gradient_with(self, x: Tensor, y: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient at y, which stands in for what the layer returns in its last call."""
        y = y.clone().requires_grad_()
        calls: list[int] = []
        handle = self.module.register_forward_hook(lambda *args: calls.append(1))
        self.model(x.clone())
        handle.remove()
        left = len(calls)

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal left
            left -= 1
            return output if left else y.clone()

        handle = self.module.register_forward_hook(replace)
        with self.context():
            (gradient,) = torch.autograd.grad(score(self.model(x.clone())).sum(), y)
        handle.remove()
        return gradient


def gauss_legendre(count: int) -> list[tuple[float, float]]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return [((a + 1) / 2, w / 2) for a, w in zip(nodes, weights, strict=True)]


def points_of(name: str, x: Tensor) -> tuple[list[float], list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, points, starts and ends of the steps of a sample (1, ...); of random ones, those that were drawn."""
    if name == "none":
        return [1.0], [x], [x], [x]
    if name in ("noise", "squared", "variance", "between"):
        rows = PATHS[name].build(shape=x.shape[1:]).begin([x], None)(torch.zeros(STEPS).long(), torch.arange(STEPS))
        points, starts, ends = (list(of[0].split(1)) if of else [] for of in rows)
        return [1 / STEPS] * STEPS, points, starts, ends
    start = torch.full_like(x, BASELINE)
    points = [start + a * (x - start) for a, _ in gauss_legendre(STEPS)]
    return [w for _, w in gauss_legendre(STEPS)], points, [start] * STEPS, [x] * STEPS


def expected_pair(hand: ByHand, name: str, x: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What becomes of the activation, and of its gradient, for a sample (1, ...)."""
    path = PATHS[name]
    start = torch.full_like(x, BASELINE)
    weights, points, starts, ends = points_of(name, x)
    if name == "layer's" and hand.side == "output":
        y, y0 = hand.activation(x), hand.activation(start)
        gradients = [hand.gradient_with(x, y0 + a * (y - y0), score) for a, _ in gauss_legendre(STEPS)]
        return y - y0, path.fold(weights, gradients, [], [])
    gradients = [hand.gradient(point, score) for point in points]
    at = [hand.activation(point) for point in points]
    moved = [hand.activation(b) - hand.activation(a) for a, b in zip(starts, ends, strict=True)]
    folded = path.fold(weights, gradients, at, moved)
    if path.times == "displacement":
        return hand.activation(x) - hand.activation(start), folded
    return (hand.activation(x) if path.times == "activation" else torch.ones_like(folded)), folded


def to_grid(x: Tensor) -> Tensor:
    """Tokens (N, 1 + 20, C) as (N, C, 4, 5)."""
    return x if x.ndim == 4 else x[:, 1:].mT.reshape(len(x), -1, 4, 5)


def by_hand(case: Mapping[str, Any], layer: str, input: Tensor) -> Tensor:
    hand = ByHand(MODELS[case["model"]], layer, CONTEXTS[case["context"]])
    reduce = REDUCTIONS[case["reduction"]][1]
    maps = []
    for score in TARGETS[case["target"]][1]:
        rows = [
            expected_pair(hand, case["path"], input[n : n + 1], lambda y, n=n, score=score: score(n, y))
            for n in range(len(input))
        ]
        x, g = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        maps.append(reduce(x, g) if case["reduction"] == "whole" else reduce(to_grid(x), to_grid(g)))
    if len(maps) == 1:
        return maps[0]
    return torch.stack(maps, 1) if case["reduction"] == "whole" else torch.cat(maps, 1)


@pytest.mark.parametrize("case", [pytest.param(c, id=", ".join(str(v) for v in c.values())) for c in CASES])
def test_a_combination_is_what_its_parts_come_to(case):
    of = MODELS[case["model"]]
    input = of.input()
    layers = {"layer": of.layers[1], "list": [*of.layers, ""], "input": ""}[case["where"]]
    found = saliency.saliency(
        of.model(),
        input,
        TARGETS[case["target"]][0],
        layers,
        context_builder=CONTEXTS[case["context"]],
        gradient_to_saliency=REDUCTIONS[case["reduction"]][0],
        path=PATHS[case["path"]].build(shape=input.shape[1:]),
        internal_batch_size=case["size"],
    )
    for layer, map in zip(layers, found, strict=True) if isinstance(layers, list) else [(layers, found)]:
        expected = by_hand(case, layer, input).detach()
        assert map.isfinite().all()
        assert map.shape == expected.shape
        torch.testing.assert_close(map, expected, rtol=1e-9, atol=1e-12 + 1e-10 * float(expected.abs().max()))


# --- what has no meaning --------------------------------------------------------------------------------------------


class Refused(NamedTuple):
    words: str
    options: dict[str, Any]
    layer: str = "features.0"


_SUM = {"gradient_to_saliency": saliency.Attribution(saliency.sum_channels)}
_BY_NAME = {name: path.build(shape=(3, 11, 14)) for name, path in PATHS.items() if name != "none"}
REFUSED = {
    **{
        f"debug, {name}": Refused("debug=True", {"path": path, "debug": True, **_SUM})
        for name, path in _BY_NAME.items()
    },
    **{
        f"no gradient, {name}": Refused(
            "get_backward_gradient=None", {"path": path, "get_backward_gradient": None, **_SUM}
        )
        for name, path in _BY_NAME.items()
    },
    **{
        f"shared, {name}": Refused("shared", {"path": path, "shared": True, **_SUM})
        for name, path in _BY_NAME.items()
        if name != "layer's"
    },
    "shared, layer's, at the input": Refused("shared", {"path": _BY_NAME["layer's"], "shared": True, **_SUM}, ""),
    **{
        f"{name}, {reduction}": Refused(
            "gradient_to_saliency=", {"path": _BY_NAME[name], "gradient_to_saliency": REDUCTIONS[reduction][0]}
        )
        for name in ("conductance", "squared", "variance", "between")
        for reduction in ("gradient", "Grad-CAM", "LayerCAM")
    },
    **{
        f"delta, {name}": Refused(
            "return_convergence_delta=True", {"path": path, "return_convergence_delta": True, **_SUM}
        )
        for name, path in {"none": None, **_BY_NAME}.items()
        if name in ("none", "noise", "squared", "variance")
    },
    "delta, Grad-CAM": Refused(
        "return_convergence_delta=True",
        {
            "path": _BY_NAME["line"],
            "return_convergence_delta": True,
            "gradient_to_saliency": saliency.gradient_to_grad_cam_saliency,
        },
    ),
    "size, none": Refused("internal_batch_size=3", {"internal_batch_size": 3}),
    "call, layer's": Refused("call=0", {"path": _BY_NAME["layer's"], "call": 0, **_SUM}),
    **{
        f"relevance{i}, {name}": Refused(
            "context_builder=", {"path": _BY_NAME[name], "context_builder": builder, **_SUM}
        )
        for name in ("line from", "layer's", "conductance", "between")
        for i, builder in enumerate(
            [
                saliency.ExcitationBackpropContext,
                lambda: saliency.ExcitationBackpropContext(),
                saliency.ContrastiveExcitationBackpropContext,
            ]
        )
    },
}


@pytest.mark.parametrize("refused", [pytest.param(case, id=name) for name, case in REFUSED.items()])
def test_a_combination_without_a_meaning_raises_before_the_forward_pass(refused):
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    options = dict(refused.options)
    if options.get("shared"):
        options["shared"] = saliency.shared_forward(model, input, ["features.0", "features"])
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *args: forwards.append(1))
    with pytest.raises(ValueError, match=rf"^{refused.words}.* is not possible .*expected .*\.$"):
        saliency.saliency(model, input, 1, refused.layer, **options)
    with pytest.raises(ValueError, match=rf"^{refused.words}.* is not possible .*expected .*\.$"):
        saliency.saliency(model, input, 1, [refused.layer, "features"], **options)
    assert forwards == []


@pytest.mark.parametrize("name", ["line from", "layer's", "between"])
def test_relevance_that_is_not_multiplied_by_a_displacement_may_be_averaged(name):
    model, input = cases.IN_PLACE.model(), cases.IN_PLACE.input()
    options = {"path": _BY_NAME[name], "context_builder": saliency.ExcitationBackpropContext, **_SUM}
    found = saliency.saliency(model, input, 1, "features.0", multiply_by_inputs=False, **options)
    assert found.isfinite().all()


def test_a_shared_pass_may_be_given_to_a_path_of_the_layers_own():
    model, input = cases.RESIDUAL.model(), cases.RESIDUAL.input()
    shared = saliency.shared_forward(model, input, ["relu", "stem"])
    for layer in ("relu", "stem", ["relu", "stem"]):
        alone = saliency.integrated_gradients(model, input, 1, layer, n_steps=3)
        found = saliency.integrated_gradients(model, input, 1, layer, n_steps=3, shared=shared)
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-15)
