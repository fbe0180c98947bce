"""Contexts: a rule reaches an operation in all its spellings, and nothing else; it goes when its context does."""

import threading
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.testing import assert_close

import saliency
from saliency import (
    DeConvNetContext,
    GuidedBackpropContext,
    NullContext,
    Patch,
    ReLUContext,
    RuleContext,
    rules,
)
from saliency.engine.contexts import relu_rules
from saliency.engine.operations import Operation, Rule
from tests.cases import NOTICES, RELU_SPELLINGS

pytestmark = NOTICES

X = [-2.0, -0.0, 0.0, 3.0, 5.0]
DY = [7.0, 2.0, -4.0, 6.0, -8.0]


class Tenfold(torch.autograd.Function):
    """A ReLU of one's own: both directions can be told from the real one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clamp(min=0) + 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 10


def run(relu, context, x=X, dy=DY) -> tuple[list[float], list[float]]:
    """Values and input gradient of a function inside a context."""
    leaf = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    with context:
        y = relu(leaf * 1)
        (gradient,) = torch.autograd.grad(y, leaf, torch.tensor([dy], dtype=torch.float64))
    return y[0].tolist(), gradient[0].tolist()


@pytest.mark.parametrize("spelling", RELU_SPELLINGS)
class TestSpellings:
    def test_plain(self, spelling):
        """All of them are ReLU, with derivative 0 at 0; a threshold at 0 lets a clamp's boundary through."""
        values, gradient = run(RELU_SPELLINGS[spelling], NullContext())
        assert values == [0, 0, 0, 3, 5]
        assert gradient[3:] == [6, -8]
        assert gradient[0] == 0

    def test_guided(self, spelling):
        """dy passes where dy > 0 and x > 0."""
        values, gradient = run(RELU_SPELLINGS[spelling], GuidedBackpropContext())
        assert values == [0, 0, 0, 3, 5]
        assert gradient == [0, 0, 0, 6, 0]

    def test_deconvnet(self, spelling):
        """dy passes where dy > 0."""
        values, gradient = run(RELU_SPELLINGS[spelling], DeConvNetContext())
        assert values == [0, 0, 0, 3, 5]
        assert gradient == [7, 2, 0, 6, 0]

    def test_a_function_of_the_users_own(self, spelling):
        values, gradient = run(RELU_SPELLINGS[spelling], ReLUContext(Tenfold))
        assert values == [1, 1, 1, 4, 6]
        assert gradient == [70, 20, -40, 60, -80]

    def test_views(self, spelling):
        """Half of a tensor is rectified; what an in-place call does to it is seen by the whole."""

        def half(x: Tensor) -> Tensor:
            y = RELU_SPELLINGS[spelling](x[:, 2:])
            return x * 1 if "inplace=True" in spelling or "_" in spelling else torch.cat([x[:, :2], y], 1)

        if spelling in ("F.relu(x, True)", "bound before, in place"):
            pytest.skip("in place, and not to be told by the name")
        if "clamp_min(" in spelling:
            pytest.skip("not in place, in spite of its name")
        assert run(half, GuidedBackpropContext()) == ([-2, 0, 0, 3, 5], [7, 2, 0, 6, 0])
        assert run(half, DeConvNetContext()) == ([-2, 0, 0, 3, 5], [7, 2, 0, 6, 0])
        assert run(half, ReLUContext(Tenfold)) == ([-2, 0, 1, 4, 6], [7, 2, -40, 60, -80])


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.clamp(min=0, max=4),
        lambda x: x.clamp(max=0),
        lambda x: torch.clamp(x, -1),
        lambda x: torch.clamp(x, -1, 0),
        lambda x: x.clamp_min(0.5),
        lambda x: x.clip(0, 4),
        lambda x: F.threshold(x, 0, 1),
        lambda x: F.threshold(x, 1, 0),
        lambda x: x.abs(),
        torch.sigmoid,
        torch.tanh,
    ],
)
def test_what_is_no_relu_is_left_alone(other):
    expected = run(other, NullContext())
    for context in (GuidedBackpropContext(), DeConvNetContext(), ReLUContext(Tenfold)):
        assert run(other, context) == expected


ACTIVATIONS = {
    "relu6": (F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True)),
    "hardtanh": (F.hardtanh, F.hardtanh_, nn.Hardtanh(), nn.Hardtanh(inplace=True)),
    "leaky_relu": (partial(F.leaky_relu, negative_slope=0.2), lambda x: F.leaky_relu_(x, 0.2), nn.LeakyReLU(0.2)),
    "elu": (F.elu, F.elu_, nn.ELU(inplace=True)),
    "celu": (F.celu, torch.celu, torch.celu_, nn.CELU()),
    "selu": (F.selu, torch.selu, torch.selu_, nn.SELU()),
    "gelu": (F.gelu, nn.GELU()),
    "gelu tanh": (partial(F.gelu, approximate="tanh"), nn.GELU("tanh")),
    "silu": (F.silu, nn.SiLU(), nn.SiLU(inplace=True)),
    "mish": (F.mish, nn.Mish(), nn.Mish(inplace=True)),
    "hardswish": (F.hardswish, nn.Hardswish(), nn.Hardswish(inplace=True)),
    "prelu": (nn.PReLU().double(), lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype))),
    "rrelu": (F.rrelu, nn.RReLU().eval(), lambda x: F.rrelu_(x)),
}


@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, group in ACTIVATIONS.items() for i in range(len(group))]
)
def test_other_activations_by_their_own_derivative(name, index):
    """Guided: f'(x) max(0, dy); DeConvNet: max(0, dy)."""
    function, reference = ACTIVATIONS[name][index], ACTIVATIONS[name][0]
    x = [-4.0, -0.7, 0.3, 2.0, 9.0, -0.7, 0.3]
    dy = [7.0, 2.0, 4.0, 6.0, 8.0, -3.0, -5.0]
    values, derivative = run(reference, NullContext(), x, [1.0] * 7)
    positive = [max(0.0, d) for d in dy]
    found = run(function, GuidedBackpropContext(), x, dy)
    assert found[0] == pytest.approx(values)
    assert found[1] == pytest.approx([f * d for f, d in zip(derivative, positive, strict=True)])
    found = run(function, DeConvNetContext(), x, dy)
    assert found[0] == pytest.approx(values)
    assert found[1] == pytest.approx(positive)


def _network(inplace: bool) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace), nn.Linear(3, 3), nn.ReLU(inplace), nn.Linear(3, 2))
    return model.double()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("rule", ["gradient", "guided_backprop", "deconvnet"])
def test_two_layers_written_out(rule, inplace):
    """The three rules, in loops over a small network; one unit is at exactly 0."""
    model = _network(inplace)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    x = torch.randn(4, 2, dtype=torch.float64)
    weights = [model[i].weight.tolist() for i in (0, 2, 4)]
    biases = [model[i].bias.tolist() for i in (0, 2, 4)]
    for sample in range(4):
        units, before = x[sample].tolist(), []
        for weight, bias in zip(weights, biases, strict=True):
            before.append(
                [sum(w * u for w, u in zip(row, units, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
            )
            units = [max(0.0, u) for u in before[-1]]
        gradient = [0.0, 1.0]
        for layer in (2, 1, 0):
            gradient = [
                sum(g * row[i] for g, row in zip(gradient, weights[layer], strict=True))
                for i in range(len(weights[layer][0]))
            ]
            if layer:
                if rule != "gradient":
                    gradient = [max(0.0, g) for g in gradient]
                if rule != "deconvnet":
                    gradient = [g if u > 0 else 0.0 for g, u in zip(gradient, before[layer - 1], strict=True)]
        expected = max(abs(g) for g in gradient)
        found = saliency.METHODS[rule].function(model, x[sample : sample + 1], 1)
        assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# What stands before the ReLU: the first five return a view of a tensor of their own, the others one of their input.
BEFORE_RELU = {
    "linear layer of tokens": (nn.Linear(6, 6), (2, 4, 6)),
    "average pooling": (nn.AvgPool1d(2), (2, 3, 8)),
    "adaptive average pooling": (nn.AdaptiveAvgPool1d(3), (2, 3, 8)),
    "instance normalisation": (nn.InstanceNorm2d(3), (2, 3, 4, 4)),
    "einsum": (Applied(lambda x: torch.einsum("nij,jk->nik", x, torch.eye(6))), (2, 4, 6)),
    "flatten": (nn.Flatten(), (2, 3, 4, 4)),
    "dropout": (nn.Dropout(), (2, 3, 4, 4)),
    "transpose": (Applied(lambda x: x.transpose(1, 2)), (2, 3, 4, 4)),
    "slice": (Applied(lambda x: x[:, :2]), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", ["guided_backprop", "excitation_backprop", "lrp", "deep_lift", "full_grad"])
@pytest.mark.parametrize("before", BEFORE_RELU)
def test_a_view_is_overwritten(name, before):
    operation, shape = BEFORE_RELU[before]
    first = nn.Linear(shape[-1], shape[-1])  # what is overwritten depends on a layer
    last = nn.LazyLinear(3)
    plain, inplace = (nn.Sequential(first, operation, nn.ReLU(own), nn.Flatten(), last) for own in (False, True))
    x = torch.rand(shape)
    plain.eval()(x)
    of = [saliency.METHODS[name].function(model, x, 1, saliency_layer="") for model in (plain, inplace)]
    assert of[0].any()
    assert_close(of[0], of[1])


def test_an_output_with_several_uses_is_one_output():
    """The rule acts on the sum of the gradients that reach the activation, not on each of them."""

    def twice(x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y * 3 - y * 2

    for context in (GuidedBackpropContext(), DeConvNetContext()):
        assert run(twice, context, [1.0], [1.0])[1] == [1]


def test_the_innermost_context_rules():
    outer = RuleContext({torch.relu: lambda function, x: function(x) + 1, torch.tanh: lambda function, x: x})
    inner = RuleContext({torch.relu: lambda function, x: function(x) + 10})
    with outer, inner:
        assert torch.relu(torch.zeros(())).item() == 10
        assert torch.tanh(torch.ones(())).item() == 1
    with outer, inner, NullContext(), outer:
        assert torch.relu(torch.zeros(())).item() == 1


def test_a_rule_may_use_the_operation_it_replaces():
    with RuleContext({torch.relu: lambda function, x: torch.relu(x) + torch.relu(x)}):
        assert torch.relu(torch.ones(())).item() == 2


def test_a_rule_that_raises_leaves_the_context_working():
    def rule(function, x: Tensor) -> Tensor:
        if x.item() > 0:
            raise KeyError("positive")
        return x - 1

    with RuleContext({torch.relu: rule}):
        with pytest.raises(KeyError):
            torch.relu(torch.ones(()))
        assert torch.relu(torch.zeros(())).item() == -1
    assert torch.relu(torch.zeros(())).item() == 0


def _plus(number: float) -> RuleContext:
    return RuleContext({torch.relu: lambda function, x: x + number})


@pytest.mark.parametrize("order", ["abab", "abba", "abcabc", "abcbca", "abccba", "abcacb"])
def test_contexts_may_end_in_any_order(order):
    contexts = {name: _plus(number) for name, number in zip("abc", (1.0, 10.0, 100.0), strict=True)}
    values = dict(zip("abc", (1.0, 10.0, 100.0), strict=True))
    opened: list[str] = []
    for name in order:
        if name in opened:
            contexts[name].__exit__(None, None, None)
            opened.remove(name)
        else:
            contexts[name].__enter__()
            opened.append(name)
        expected = values[opened[-1]] if opened else 0
        assert torch.relu(torch.zeros(())).item() == expected
    assert _get_current_function_mode_stack() == []


def test_contexts_in_generators():
    def steps(number: float):
        with _plus(number):
            yield torch.relu(torch.zeros(())).item()
            yield torch.relu(torch.zeros(())).item()

    first, second = steps(1.0), steps(2.0)
    assert [next(first), next(second)] == [1, 2]
    assert list(first) == [2]  # the innermost of those still open
    assert torch.relu(torch.zeros(())).item() == 2
    second.close()
    assert _get_current_function_mode_stack() == []
    assert torch.relu(torch.zeros(())).item() == 0


def test_contexts_of_other_kinds_in_between():
    context = _plus(1.0)
    context.__enter__()
    device = torch.device("cpu")
    with device:
        context.__exit__(None, None, None)
        assert torch.zeros(()).device == device
        assert torch.relu(torch.zeros(())).item() == 0
    assert _get_current_function_mode_stack() == []


def test_contexts_are_local_to_their_thread():
    found = []
    with _plus(1.0):
        thread = threading.Thread(target=lambda: found.append(torch.relu(torch.zeros(())).item()))
        thread.start()
        thread.join()
        assert torch.relu(torch.zeros(())).item() == 1
    assert found == [0]


@pytest.mark.parametrize("context", [NullContext, GuidedBackpropContext, lambda: ReLUContext(Tenfold)])
def test_an_error_passes_through(context):
    with pytest.raises(KeyboardInterrupt), context():
        raise KeyboardInterrupt
    assert _get_current_function_mode_stack() == []


def test_relu_rules_hold_one_rule():
    def rule(function, *args, **kwargs):
        return "ruled"

    with RuleContext(relu_rules(rule)):
        for spelling, relu in RELU_SPELLINGS.items():
            if "thrown away" not in spelling:
                assert relu(torch.ones(2)) == "ruled", spelling
    assert rules.GUIDED.keys() == rules.DECONVNET.keys() > relu_rules(rule).keys()


@pytest.mark.parametrize("wrong", [torch.relu, nn.ReLU, nn.ReLU(), Tenfold.apply, None, "relu"])
def test_a_relu_context_takes_an_autograd_function(wrong):
    with pytest.raises(ValueError, match=r"relu_func=.*torch\.autograd\.Function.*expected"):
        ReLUContext(wrong)


def test_a_relu_context_in_the_driver():
    """TorchRay's way to make a method of one's own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    found = saliency.saliency(model, x, 1, context_builder=lambda: ReLUContext(Tenfold))
    gradient = model[2].weight[1] @ model[0].weight * 10
    torch.testing.assert_close(found.flatten(), gradient.abs().max().expand(2))


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet", "guided_grad_cam"])
def test_torchscript_is_refused(name):
    """Its operations are out of a rule's reach: better an error than the plain gradient under another name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 5, 6))
    model = nn.Sequential(part, nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(1, 3, 5, 6)
    for scripted in (model, part):
        with pytest.raises(ValueError, match=r"model=.*TorchScript.*"):
            saliency.METHODS[name].function(scripted, x, 1, "")
    assert saliency.gradient(model, x, 1).shape == (1, 1, 5, 6)
    leaf = x.clone().requires_grad_()
    model(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(saliency.gradient(model, x, 1), leaf.grad.abs().amax(1, keepdim=True))


def test_patch():
    original, seen = torch.relu, []
    patch = Patch("torch.relu", lambda x: seen.append(x) or original(x))
    try:
        assert torch.relu(torch.tensor(-1.0)).item() == 0
        assert len(seen) == 1
        assert patch.orig_callable is original
    finally:
        patch.remove()
    assert torch.relu is original
    other = Patch("torch.relu", torch.neg)
    patch.remove()  # a second time: it has nothing to put back any more
    assert torch.relu is torch.neg
    other.remove()
    assert torch.relu is original


def test_patch_of_a_method():
    original = nn.ReLU.forward
    patch = Patch("torch.nn.ReLU.forward", lambda self, x: -x)
    try:
        assert nn.ReLU()(torch.ones(())).item() == -1
    finally:
        patch.remove()
    assert nn.ReLU.forward is original


@pytest.mark.parametrize("path", ["relu", "", "torch.no_such", "no.such.module", "torch.nn.NoSuch.forward"])
def test_patch_of_nothing_is_an_error(path):
    with pytest.raises(ValueError, match=r"target=.*expected"):
        Patch(path, torch.neg)


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_table_sees_what_multi_head_attention_consists_of(need_weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    x = torch.rand(2, 5, 8, dtype=torch.float64, requires_grad=True)
    seen: list[str] = []

    def see(op: Operation, gradient: Tensor) -> None:
        seen.append(op.function.__name__)

    hidden = (F.linear, F.scaled_dot_product_attention, torch.bmm, F.softmax)
    plain = attention(x, x, x, need_weights=need_weights)[0]
    with RuleContext(dict.fromkeys(hidden, Rule(see))):
        output = attention(x, x, x, need_weights=need_weights)[0]
        (gradient,) = torch.autograd.grad(output.sum(), x)
    inside = ["bmm", "softmax", "bmm"] if need_weights else ["scaled_dot_product_attention"]
    assert seen == ["linear", *inside, "linear"]
    assert_close(output, plain)
    assert_close(gradient, torch.autograd.grad(plain.sum(), x)[0])
