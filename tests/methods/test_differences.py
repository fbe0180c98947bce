"""DeepLIFT: the rescale rule and that of max pooling in loops, its axioms for every operation, and its options."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.rules.differences import DEEP_LIFT
from tests.cases import IN_PLACE, RELU_SPELLINGS, RESIDUAL, STOCHASTIC, TRANSFORMER, TWO_INPUTS, Net

GENERATOR = torch.Generator().manual_seed(3)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --- the paper's rules, unit by unit --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "relu_", "tanh", "softplus"])
def test_the_rescale_rule_unit_by_unit(name):
    """m_j = sum_i w_ij m_i Delta y_i / Delta z_i, from the score down."""
    function = {"relu": torch.relu, "relu_": torch.relu_, "tanh": torch.tanh, "softplus": F.softplus}[name]
    first, second, last = rand(5, 4), rand(3, 5), rand(3)
    model = Net(lambda s, x: (function(function(x @ first.T) @ second.T) @ last)[:, None])
    x, start = rand(1, 4), rand(1, 4)
    z = [[row @ of for row in first] for of in (x[0], start[0])]  # of the input, and of the baseline
    y = [[function(value.clone()) for value in values] for values in z]
    zz = [[sum(second[i, j] * of[j] for j in range(5)) for i in range(3)] for of in y]
    yy = [[function(value.clone()) for value in values] for values in zz]
    of_top = [last[i] * (yy[0][i] - yy[1][i]) / (zz[0][i] - zz[1][i]) for i in range(3)]
    of_middle = [
        sum(second[i, j] * of_top[i] for i in range(3)) * (y[0][j] - y[1][j]) / (z[0][j] - z[1][j]) for j in range(5)
    ]
    multipliers = [sum(first[j, k] * of_middle[j] for j in range(5)) for k in range(4)]
    expected = torch.stack([(x[0, k] - start[0, k]) * multipliers[k] for k in range(4)])[None]
    close(saliency.deep_lift(model, x, 0, "", start, reduction=None), expected)
    found = saliency.deep_lift(model, x, 0, "", start, reduction=None, multiply_by_inputs=False)
    close(found, torch.stack(multipliers)[None])


@pytest.mark.parametrize("stride", [1, 2])
def test_max_pooling_window_by_window(stride):
    """A window's rise to the higher of both results is its own winner's, and what is left the reference's winner's."""
    weight = rand(7)
    model = Net(lambda s, x: (F.max_pool1d(x, 2, stride) @ weight[: (8 - 2) // stride + 1]).sum(1, keepdim=True))
    x, start = rand(1, 1, 8), rand(1, 1, 8)
    a, b = x.flatten().tolist(), start.flatten().tolist()
    shares = [0.0] * 8
    for window in range((8 - 2) // stride + 1):
        at = [window * stride, window * stride + 1]
        won, lost = max(at, key=lambda i: a[i]), max(at, key=lambda i: b[i])
        top = max(a[won], b[lost])
        shares[won] += float(weight[window]) * (top - b[lost])
        shares[lost] += float(weight[window]) * (a[won] - top)
    close(
        saliency.deep_lift(model, x, 0, "", start, reduction=None).flatten(), torch.tensor(shares, dtype=torch.float64)
    )


def test_the_mean_over_the_baselines():
    model, x, starts = IN_PLACE.model(), IN_PLACE.input(), rand(3, 3, 11, 14)
    for layer in ("", "features.0"):
        each = [saliency.deep_lift(model, x, [1, 2], layer, starts[t : t + 1], reduction=None) for t in range(3)]
        for size in (None, 1, 4):
            found = saliency.deep_lift_shap(model, x, [1, 2], layer, starts, None, internal_batch_size=size)
            close(found, sum(each) / 3)
    close(saliency.deep_lift_shap(model, x, 1, "", lambda input: 2 * input[:1]), saliency.deep_lift_shap(
        model, x, 1, "", 2 * x[:1]))  # fmt: skip


def test_expected_gradients_are_gradient_shap_without_noise():
    model, x, starts = IN_PLACE.model(), IN_PLACE.input(), rand(3, 3, 11, 14)
    found = saliency.expected_gradients(model, x, 1, "", starts, 7, seed=5)
    assert torch.equal(found, saliency.gradient_shap(model, x, 1, "", starts, 7, 0.0, 5))


# --- every operation ------------------------------------------------------------------------------------------------

_W, _B = rand(6), rand(6)
_CHANNELS = rand(4)


def _attention(x: Tensor, **options: Any) -> Tensor:
    q, k, v = x.flatten(2).mT.split(2, 2)[0], x.flatten(2).mT[..., 1:3], x.flatten(2).mT
    return F.scaled_dot_product_attention(3 * q, k, v, **options)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"relu: {name}": function for name, function in RELU_SPELLINGS.items()},
    **{
        function.__name__: function
        for function in (
            *(F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish),
            *(F.hardsigmoid, F.logsigmoid, F.softplus, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink),
            *(torch.sigmoid, torch.tanh, torch.exp, torch.sin, torch.erf, torch.square, torch.abs),
        )
    },
    "prelu": lambda x: F.prelu(x, _CHANNELS),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "hardsigmoid in place": lambda x: F.hardsigmoid(x * 1, True),
    "sigmoid_": lambda x: (x * 1).sigmoid_(),
    "x ** 3": lambda x: x**3,
    "2 ** x": lambda x: 2**x,
    "1 / x": lambda x: 1 / (x + 9),
    "log, sqrt, rsqrt": lambda x: (x + 9).log() + (x + 9).sqrt() + (x + 9).rsqrt(),
    "x * x": lambda x: x * x,
    "gate": lambda x: x * x.sigmoid(),
    "gate of channels": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "mul_": lambda x: x.relu().mul_(x.sigmoid()),
    "x @ y": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncdh", x, x.tanh()),
    "bmm": lambda x: torch.bmm(x.flatten(1, 2), x.flatten(1, 2).mT),
    "baddbmm": lambda x: torch.baddbmm(x[:, :, 0], x[:, :, 1, :1], x[:, :1, 2]),
    "dynamic convolution": lambda x: (
        F.conv2d(x.flatten(0, 1)[None], x[:, :, :2, :2].flatten(0, 1)[:, None], groups=8)
        .unflatten(1, x.shape[:2])
        .squeeze(0)
    ),
    "x / y": lambda x: x / (x.exp() + 1),
    "x / y, broadcast": lambda x: x / x.exp().sum(1, keepdim=True),
    "div_": lambda x: x.relu().div_(x.exp()),
    "maximum": lambda x: torch.maximum(x, x.flip(1) / 2),
    "minimum": lambda x: torch.min(x, x.flip(1) / 2),
    "max pooling": lambda x: F.max_pool2d(x, 2),
    "overlapping max pooling": lambda x: F.max_pool2d(x.relu(), 3, 1, 1),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 2),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2),
    "max_pool3d": lambda x: F.max_pool3d(x, 2, 1),
    "amax": lambda x: x.amax((2, 3)),
    "softmax": lambda x: F.softmax(4 * x, 1),
    "softmax of logits far apart": lambda x: torch.softmax(300 * x, -1),
    "x.softmax": lambda x: x.softmax(dim=2),
    "log_softmax": lambda x: F.log_softmax(4 * x, 1),
    "layer_norm": lambda x: F.layer_norm(x, (6,), _W, _B),
    "nn.LayerNorm": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda x: F.rms_norm(x, (6,), _W),
    "group_norm": lambda x: F.group_norm(x, 2, _CHANNELS, _CHANNELS),
    "instance_norm": lambda x: F.instance_norm(x, weight=_CHANNELS, bias=_CHANNELS),
    "torch.instance_norm": lambda x: torch.instance_norm(x, _CHANNELS, None, None, None, True, 0.1, 1e-5, False),
    "local_response_norm": lambda x: F.local_response_norm(x, 3, 0.5),
    "normalize": lambda x: F.normalize(x, dim=1),
    "glu": lambda x: F.glu(x, 1),
    "attention": _attention,
    "attention with a mask": lambda x: _attention(x, attn_mask=_mask(x).double().log(), scale=0.7),
    "attention with a mask of truth values": lambda x: _attention(x, attn_mask=_mask(x)),
    "causal attention": lambda x: _attention(x, is_causal=True),
}


def _mask(x: Tensor) -> Tensor:
    count = x[0, 0].numel()
    return torch.ones(count, count, dtype=torch.bool).tril(3)


def _scored(function: Callable[[Tensor], Tensor]) -> Net:
    """A score that every entry of the result has its own part in."""

    def score(x: Tensor) -> Tensor:
        y = function(x * 1).flatten(1)
        part = torch.arange(y.shape[1]) % 7 - 2.0  # the same in every precision
        return (y * part.to(y.dtype)).sum(1, keepdim=True)

    return Net(lambda s, x: score(x))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_complete_and_has_its_gradient_as_a_limit(name):
    model, x, start = _scored(OPERATIONS[name]), rand(2, 4, 5, 6), rand(2, 4, 5, 6)
    start[:, :, 0] = x[:, :, 0]  # where nothing changes
    found, delta = saliency.deep_lift(model, x, 0, "", start, reduction=None, return_convergence_delta=True)
    scale = found.abs().flatten(1).sum(1)
    assert bool((scale > 0).all())
    assert bool((delta.abs() <= 1e-12 * scale).all())
    near = x + 1e-7 * start
    multipliers = saliency.deep_lift(model, x, 0, "", near, reduction=None, multiply_by_inputs=False)
    gradient = saliency.gradient(model, x, 0, gradient_to_saliency=lambda x: x.grad, layout="layer")
    torch.testing.assert_close(multipliers, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_the_operations_of_exported_programs_have_the_same_rules():
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Hardswish(), nn.GroupNorm(2, 4), nn.Flatten())
    mixed = nn.Sequential(*parts, nn.Linear(80, 5), nn.LayerNorm(5), nn.Softmax(1)).double()
    for model, case in ((RESIDUAL.model(), RESIDUAL), (TRANSFORMER.model(), TRANSFORMER), (mixed, RESIDUAL)):
        x = case.input()
        program, start = torch.export.export(model, (x,)).module(), rand(*x.shape)
        close(saliency.deep_lift(program, x, 1, "", start), saliency.deep_lift(model, x, 1, "", start))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quotients_of_half_precision_are_those_of_float32(dtype):
    x, start = rand(2, 4, 5, 6).to(dtype), rand(2, 4, 5, 6).to(dtype)
    for name in ("sigmoid", "gelu", "softmax", "layer_norm", "overlapping max pooling", "gate", "x / y"):
        function = OPERATIONS[name] if name != "layer_norm" else lambda x: F.layer_norm(x, (6,))
        found = saliency.deep_lift(_scored(function), x, 0, "", start, reduction=None)
        expected = saliency.deep_lift(_scored(function), x.float(), 0, "", start.float(), reduction=None)
        assert found.dtype == dtype
        error = float((found.float() - expected).abs().max() / expected.abs().max())
        assert error < 5 * torch.finfo(dtype).eps, (name, error)


# --- where it is complete, and what options do ----------------------------------------------------------------------


@pytest.mark.parametrize("case", [IN_PLACE, RESIDUAL, TRANSFORMER], ids=lambda case: case.name)
def test_every_layer_that_all_paths_cross_is_complete(case):
    model, x = case.model(), case.input()
    start, layers = rand(*x.shape), ["", *{"residual": ["relu", "stem"]}.get(case.name, case.layers[:1])]
    options = {"reduction": None, "return_convergence_delta": True}
    found, deltas = saliency.deep_lift(model, x, [[1, 3], [0, 2]], layers, start, **options)
    for attribution, delta in zip(found, deltas, strict=True):
        scale = attribution.abs().flatten(2).sum(2)
        assert bool((delta.abs() <= 1e-12 * scale).all())
        assert float(attribution.flatten(2).sum(2).abs().max()) > 1e-3 * float(scale.max())


def test_what_a_model_draws_is_the_same_for_input_and_baseline():
    model, x, start = STOCHASTIC.model(), STOCHASTIC.input(), rand(2, 3, 11, 14)
    torch.manual_seed(4)
    found = saliency.deep_lift(model, x, 1, "", start, reduction=None)
    scores = []
    for each in (x, start):
        torch.manual_seed(4)
        scores.append(model(each)[:, 1].detach())
    close(found.flatten(1).sum(1), scores[0] - scores[1])


def test_several_inputs_move_together():
    model, (x, y) = TWO_INPUTS.model(), TWO_INPUTS.input()
    starts = rand(*x.shape), rand(*y.shape)
    found, delta = saliency.deep_lift(model, (x, y), 1, "", starts, reduction=None, return_convergence_delta=True)
    assert [each.shape for each in found] == [x.shape, y.shape]
    change = (model(x, y) - model(*starts))[:, 1].detach()
    close(sum(each.flatten(1).sum(1) for each in found), change)
    close(delta, torch.zeros(2).double())


def test_a_function_of_the_output_is_given_the_output_of_the_input():
    model, x = IN_PLACE.model(), IN_PLACE.input()
    labels, seen = torch.tensor([1, 2]), []

    def target(output: Tensor) -> Tensor:
        seen.append(len(output))
        return output[torch.arange(2), labels]

    close(saliency.deep_lift(model, x, target), saliency.deep_lift(model, x, [1, 2]))
    assert set(seen) == {2}


def test_what_a_target_makes_of_the_output_is_compared_too():
    """The change of a probability, not of its tangent, is shared out."""
    weight, x, start = rand(3, 4), rand(2, 4), rand(1, 4)
    model = Net(lambda s, x: torch.tanh(x @ weight.T))
    maps, delta = saliency.deep_lift(
        model, x, saliency.targets.probability(1), "", start, reduction=None, return_convergence_delta=True
    )
    of_start, of_x = (model(z).softmax(1)[:, 1] for z in (start, x))
    close(maps.sum(1), of_x - of_start)
    close(delta, torch.zeros(2, dtype=torch.float64))


def test_probes_hold_the_multipliers():
    model, x, start = IN_PLACE.model(), IN_PLACE.input(), rand(2, 3, 11, 14)
    found, probes = saliency.deep_lift(model, x, 1, "", start, debug=True)
    close(found, saliency.deep_lift(model, x, 1, "", start))
    for layer in ("", "features.0", "features"):
        options = {"reduction": None, "multiply_by_inputs": False}
        close(probes[layer].data[0].grad, saliency.deep_lift(model, x, 1, layer, start, **options))


@pytest.mark.parametrize("method", [saliency.deep_lift, saliency.deep_lift_shap])
def test_an_attribution_of_ones_own(method):
    model, x, start = IN_PLACE.model(), IN_PLACE.input(), rand(2, 3, 11, 14)
    options = {"baselines": start, "reduction": None}
    for layer in ("", "features.0"):
        plain = method(model, x, 1, layer, **options)
        multipliers = method(model, x, 1, layer, multiply_by_inputs=False, **options)
        for function, expected in ((lambda m, x, s: (m[0] * (x[0] - s[0]),), plain), (lambda m: m, multipliers)):
            close(method(model, x, 1, layer, custom_attribution_func=function, **options), expected)


class _Branching(nn.Module):
    """Runs another operation where the image is dark."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.relu() if float(x.detach().mean()) > 0 else x.tanh()).flatten(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shared": True}, "shared is not possible"),
        ({"debug": True, "internal_batch_size": 1}, "debug=True is not possible"),
        ({"get_backward_gradient": None}, "get_backward_gradient=None is not possible"),
        ({"baselines": torch.zeros(3, 2)}, "baselines=.* is not a"),
        ({"baselines": "black"}, "baselines='black' is not a"),
        ({"custom_attribution_func": 3}, "custom_attribution_func=3 is not a function"),
        ({"custom_attribution_func": lambda m: m, "multiply_by_inputs": False}, "multiply_by_inputs=False"),
        ({"internal_batch_size": 0}, "internal_batch_size=0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.partition("=")[0],
)
@pytest.mark.parametrize("method", [saliency.deep_lift, saliency.deep_lift_shap])
def test_a_wrong_argument_is_one_clear_error_before_the_forward_pass(method, options, words):
    model, x = IN_PLACE.model(), IN_PLACE.input()
    if options.get("shared"):
        options = {"shared": saliency.shared_forward(model, x)}
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *args: forwards.append(1))
    with pytest.raises(ValueError, match=f"^{words}.*expected"):
        method(model, x, 1, **options)
    assert forwards == []


def test_distributions_of_several_inputs_are_of_one_number():
    with pytest.raises(ValueError, match=r"^baselines=\[2, 3\] .*expected"):
        saliency.deep_lift_shap(TWO_INPUTS.model(), TWO_INPUTS.input(), 1, "", (rand(2, 3, 11, 14), rand(3, 4)))


def test_a_model_that_runs_other_operations_on_the_baselines_is_an_error():
    with pytest.raises(ValueError, match=r"^baselines=.*ran relu; expected"):
        saliency.deep_lift(_Branching(), torch.ones(1, 3, 4, 4), 1)


def test_an_attribution_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"^custom_attribution_func=.*; expected"):
        saliency.deep_lift(IN_PLACE.model(), IN_PLACE.input(), 1, custom_attribution_func=lambda m: (m[0].sum(),))


@pytest.mark.parametrize(
    "path", [None, saliency.noise(3), saliency.line(at_layer=True)], ids=["none", "noise", "layer's"]
)
def test_the_context_needs_a_path_of_the_input_that_begins_somewhere(path):
    model, x = IN_PLACE.model(), IN_PLACE.input()
    for builder in (saliency.DeepLiftContext, lambda: saliency.DeepLiftContext()):
        with pytest.raises(ValueError, match=r"^context_builder=.* is not possible without baselines; expected"):
            saliency.saliency(model, x, 1, "features", context_builder=builder, path=path)


def test_the_context_on_a_path_of_ones_own():
    """Multipliers stand in for gradients: any reduction applies."""
    model, x = IN_PLACE.model(), IN_PLACE.input()
    line, context = saliency.line(0.0, 1, "riemann_right", times="displacement"), saliency.DeepLiftContext
    for layer in ("", "features.0"):
        found = saliency.linear_approx(model, x, 1, layer, path=line, context_builder=context)
        close(found, saliency.deep_lift(model, x, 1, layer))
    assert saliency.grad_cam(model, x, 1, "features", path=saliency.line(n_steps=1), context_builder=context).max() > 0


def test_products_that_are_linear_in_the_input_keep_nothing():
    kept: list[Any] = []

    class Context(saliency.DeepLiftContext):
        def keep(self, op: Any, graph: bool) -> Tensor:
            kept.append(op.function)
            return super().keep(op, graph)

    model, x = IN_PLACE.model(), IN_PLACE.input()
    path = saliency.line(n_steps=1)
    saliency.saliency(model, x, 1, path=path, context_builder=Context)
    assert set(kept) <= {function for function in DEEP_LIFT if "relu" in function.__name__}
    assert kept
