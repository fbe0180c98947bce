"""A shared forward pass gives every method what a forward pass of its own gives."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from saliency import METHODS, ReLUContext, guided_grad_cam, saliency, shared_forward
from saliency.engine.contexts import RuleContext
from tests.cases import GENERAL, MODEL_CASES, NOTICES
from tests.test_contract import explain, needs, skip_if_not_made_for

pytestmark = NOTICES

OWN_PATHS = {name for name, method in METHODS.items() if "path" in method.sets}
SHARING = [case for case in GENERAL if METHODS[case.name].engine is saliency and case.name not in OWN_PATHS]


class CountConvolutions(TorchDispatchMode):
    """How many images went through a convolution forward, and back."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forward += func is torch.ops.aten.convolution.default
        self.backward += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


class Chain(nn.Module):
    """Three convolutions; ``between`` does something to what the first one made, after the second one."""

    def __init__(self, between=lambda x, y: (x, y)):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.between = between

    def forward(self, input, unused=None):
        x = torch.relu(self.a(input))
        x, y = self.between(x, torch.relu(self.b(x)))
        return self.c(x + y).flatten(1)


def chain(**options):
    torch.manual_seed(0)
    return Chain(**options).double().eval(), torch.randn(3, 2, 5, 6, dtype=torch.float64)


def own_and_shared(model, input, methods, layers, **options):
    """Maps of each method at each layer: one with a forward pass of its own, one with the shared pass."""
    shared = shared_forward(model, input, layers)
    for name, layer in itertools.product(methods, layers):
        function = METHODS[name].function
        yield function(model, input, 1, layer, **options), function(model, input, 1, layer, shared=shared, **options)


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("method", SHARING, ids=lambda case: case.name)
def test_every_method_gives_the_same_map_at_every_layer(method, case):
    skip_if_not_made_for(method, case)
    if not isinstance(case.target, int):
        needs(method, "functions")
    model, input = case.model(), case.input()
    shared = shared_forward(model, input, ["", *case.layers], **case.options(torch.float64))
    for layer in case.layers if "any layer" not in method.lacks else case.layers[1:]:
        for _ in range(2):
            own, with_others = (explain(method, case, model, input, layer=layer, **o) for o in ({}, {"shared": shared}))
            torch.testing.assert_close(with_others, own, rtol=1e-12, atol=1e-14)


def test_the_forward_pass_and_equal_backward_passes_run_once():
    model, input = chain()
    with CountConvolutions() as count:
        shared = shared_forward(model, input, ["", "b"])
        assert (count.forward, count.backward) == (3, 0)
        for method in ("gradient", "linear_approx", "gradient_x_activation"):
            METHODS[method].function(model, input, [0, 1, 2], "", shared=shared)
        assert (count.forward, count.backward) == (3, 3)
        METHODS["grad_cam"].function(model, input, [0, 1, 2], "b", shared=shared)
        assert (count.forward, count.backward) == (3, 4)
        METHODS["gradient"].function(model, input, [2, 1, 0], "", shared=shared)
        METHODS["guided_backprop"].function(model, input, [0, 1, 2], "", shared=shared)
        METHODS["deconvnet"].function(model, input, [0, 1, 2], "", shared=shared)
        assert (count.forward, count.backward) == (3, 13)
        guided_grad_cam(model, input, [0, 1, 2], "b", shared=shared)
        assert (count.forward, count.backward) == (3, 13)


@pytest.mark.parametrize("name", ["excitation_backprop", "contrastive_excitation_backprop"])
def test_rules_that_are_no_derivative_need_no_forward_pass_of_the_model(name):
    model, input = chain()
    shared = shared_forward(model, input, ["", "b"])
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    METHODS[name].function(model, input, 1, "b", shared=shared)
    assert calls == []
    METHODS[name].function(model, input, 1, "b")
    assert calls == [1]


@pytest.mark.parametrize(
    "between",
    [
        lambda x, y: (x.mul_(2), y),  # overwrites what the front has made
        lambda x, y: (x, F.relu(x.add_(1)) + y),
        lambda x, y: (F.relu(x, inplace=True), y),
        lambda x, y: (x.add_(1).relu_(), y.clamp(min=0)),
    ],
)
def test_results_that_are_overwritten_later_are_not_used_again(between):
    def fresh(x, y):
        return between(x.clone(), y)

    for change in (between, fresh):
        model, input = chain(between=change)
        for own, shared in own_and_shared(model, input, ["excitation_backprop", "grad_cam"], ["b"]):
            torch.testing.assert_close(shared, own, rtol=1e-12, atol=1e-14)


def test_the_input_of_an_activation_may_be_overwritten():
    def between(x, y):
        z = F.hardtanh(x)
        return x.mul_(3), y + z.detach().sin()

    model, input = chain(between=between)
    for own, shared in own_and_shared(model, input, ["guided_backprop", "gradient"], ["b"]):
        torch.testing.assert_close(shared, own)


def test_a_model_that_does_something_else_each_time_runs_again():
    turns = itertools.count()

    class Moody(Chain):
        def forward(self, input):
            input = input.clone() if next(turns) % 2 else input.sin().asin()
            return super().forward(input)

    torch.manual_seed(0)
    model, input = Moody().double(), torch.rand(1, 2, 5, 6, dtype=torch.float64) * 0.9
    for own, shared in own_and_shared(model, input, ["excitation_backprop"], ["b"]):
        torch.testing.assert_close(shared, own)


@pytest.mark.parametrize("change", ["input", "model", "layer", "arguments"])
def test_another_call_runs_on_its_own(change):
    model, input = chain()
    shared = shared_forward(model, input, [""])
    other, x, layer, options = model, input, "", {}
    if change == "input":
        x = input + 1
    elif change == "model":
        other = Chain().double()
    elif change == "layer":
        layer = "c"
    else:
        options = {"forward_kwargs": {"unused": None}, "context_builder": Twofold}
    function = METHODS["gradient"].function
    torch.testing.assert_close(
        function(other, x, 1, layer, shared=shared, **options), function(other, x, 1, layer, **options), rtol=0, atol=0
    )


class Twofold(ReLUContext):
    """ReLU that sends twice the gradient: a context of the user's own."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient * (ctx.saved_tensors[0] > 0)

    def __init__(self):
        super().__init__(self.Function)


ALL = ["gradient", "guided_backprop", "deconvnet", "grad_cam", "excitation_backprop"]


@pytest.mark.parametrize(
    "between",
    [
        lambda x, y: ((x - 0.2).clamp(min=0).add_(1), y),  # unlike ReLU, these keep no result that may not change
        lambda x, y: ((x - 0.2).clamp_(min=0).add_(1), y),
        lambda x, y: (F.threshold(x - 0.2, 0, 0).add_(1), y),
        lambda x, y: (x, (y * 0).clamp(min=0) + y),  # where the input is 0, a clamp has the derivative 1
        lambda x, y: (F.prelu(x - 0.3, y.mean((0, 2, 3))), y),  # a slope that the layer has made
    ],
)
def test_a_clamp_a_threshold_and_a_slope_are_no_plain_relu(between):
    model, input = chain(between=between)
    for own, shared in own_and_shared(model, input, ALL, ["", "b"]):
        torch.testing.assert_close(shared, own, rtol=1e-12, atol=1e-14)


def test_a_result_of_relu_may_be_overwritten_where_the_rule_does_not_need_it():
    model, input = chain(between=lambda x, y: (F.relu(x - 0.2).mul_(2), y))
    for own, shared in own_and_shared(model, input, ["deconvnet"], ["", "b"]):
        torch.testing.assert_close(shared, own, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("side", ["buffer", "argument"])
def test_what_the_model_overwrites_in_front_of_the_layer_is_not_lost(side):
    class Overwriting(Chain):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.zeros(()))

        def forward(self, input, factor=None):
            factor = self.factor.copy_(input.sum()) if factor is None else factor.mul_(2)
            return self.c(torch.relu(self.b(torch.relu(self.a(input)))) * factor).flatten(1)

    torch.manual_seed(0)
    model, input = Overwriting().double().eval(), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    factor = {} if side == "buffer" else {"forward_kwargs": {"factor": torch.tensor(3.0, dtype=torch.float64)}}
    shared = shared_forward(model, input, ["", "b"], **factor)
    for name, layer in itertools.product(ALL, ["", "b"]):
        own, with_others = (
            METHODS[name].function(model, input, 1, layer, **factor, **o) for o in ({}, {"shared": shared})
        )
        torch.testing.assert_close(with_others, own, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", [lambda output: -F.relu(output[:, 1]), lambda output: output[:, 1].abs()])
def test_rules_hold_in_a_target_that_is_a_function(target):
    model, input = chain()
    shared = shared_forward(model, input, ["", "b"])
    for name in ALL:
        function = METHODS[name].function
        own, with_others = (function(model, input, target, "b", **o) for o in ({}, {"shared": shared}))
        torch.testing.assert_close(with_others, own, rtol=1e-12, atol=1e-14)


class OnePlus(RuleContext):
    """A context that changes the forward pass."""

    def __init__(self):
        super().__init__({torch.relu: lambda function, x: function(x) + 1})


def test_a_context_that_changes_the_forward_pass_gets_one_of_its_own():
    model, input = chain()
    options = {"context_builder": OnePlus}
    for own, shared in own_and_shared(model, input, ["gradient", "activation"], ["", "b"], **options):
        torch.testing.assert_close(shared, own, rtol=0, atol=0)


def test_what_is_overwritten_after_the_shared_pass_is_seen():
    model, input = chain()
    target = torch.zeros(3, 60, dtype=torch.float64)
    shared = shared_forward(model, input, ["", "b"])

    def doubled(output):
        return output.mul_(2)[:, 1]

    def check(target):
        for name in ("gradient", "excitation_backprop", "activation"):
            function = METHODS[name].function
            own, with_others = (function(model, input, target, "b", **o) for o in ({}, {"shared": shared}))
            torch.testing.assert_close(with_others, own, rtol=0, atol=0)

    for column in (0, 1):
        target.zero_()[:, column] = 1
        check(target)
    check(doubled)
    check(doubled)
    input.add_(1)
    check(1)
    shared = shared_forward(model, input, ["", "b"])
    with torch.no_grad():
        model.b.weight.mul_(2)
    check(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.weight.mul_(2),
        lambda c: setattr(c.weight, "data", torch.ones_like(c.weight)),
        lambda c: setattr(c, "weight", nn.Parameter(2 * c.weight.detach())),
        lambda c: c.scale.mul_(2),
        lambda c: setattr(c, "scale", torch.tensor(3.0, dtype=torch.float64)),
        lambda c: c.register_buffer("shift", torch.tensor(1.0, dtype=torch.float64)),
    ],
)
def test_a_model_whose_state_is_another_one_runs_again(change):
    class Scaled(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) * self.scale * getattr(self, "shift", 2)

    model, input = chain()
    model.c = Scaled(2, 2, 3, padding=1).double()
    model.c.register_buffer("scale", torch.ones((), dtype=torch.float64))
    shared = shared_forward(model, input, ["b"])
    function = METHODS["gradient"].function
    before = function(model, input, 1, "b", shared=shared)
    with torch.no_grad():
        change(model.c)
    own, with_others = (function(model, input, 1, "b", **o) for o in ({}, {"shared": shared}))
    assert torch.equal(with_others, own)
    assert not torch.equal(own, before)


def test_precision_belongs_to_the_shared_pass():
    torch.manual_seed(0)
    model, input = Chain().eval(), torch.randn(2, 2, 5, 6)
    shared = shared_forward(model, input, ["b"])
    with torch.autocast("cpu", torch.bfloat16):
        own, with_others = (METHODS["gradient"].function(model, input, 1, "b", **o) for o in ({}, {"shared": shared}))
    assert torch.equal(own, with_others)


def test_what_a_method_does_to_its_tensors_stays_its_own():
    model, input = chain()
    shared = shared_forward(model, input, ["", "b"])

    def spoil(x):
        if x.grad is not None:
            x.grad.zero_()
        return x.zero_().sum(1, keepdim=True)

    for layer in ("", "b"):
        saliency(model, input, 1, layer, gradient_to_saliency=spoil, shared=shared)
        saliency(model, input, 1, layer, gradient_to_saliency=spoil, get_backward_gradient=None, shared=shared)
        expected = METHODS["linear_approx"].function(model, input, 1, layer)
        assert torch.equal(METHODS["linear_approx"].function(model, input, 1, layer, shared=shared), expected)


@pytest.fixture
def _no_collector():
    """Memory must be free at once: the garbage collector counts objects, not what they hold."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", [case.name for case in SHARING if "any layer" not in case.lacks])
def test_memory_is_free_as_soon_as_the_result_is_dropped(name):
    model, input = chain()
    alive = {id(x) for x in gc.get_objects() if issubclass(type(x), torch.Tensor)}
    for method in dict.fromkeys(["gradient", name]):
        shared = shared_forward(model, input, ["", "b"])
        METHODS[method].function(model, input, [0, 1, 2], "b", shared=shared)
        del shared
    left = [x.shape for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and id(x) not in alive]
    assert left == []


def test_nothing_stays_behind():
    model, input = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shared = shared_forward(model, input, ["", "b"])
    METHODS["excitation_backprop"].function(model, input, 1, "b", shared=shared)
    assert _get_current_function_mode_stack() == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    output = weakref.ref(shared._pass.output)
    del shared
    assert output() is None


def test_a_forward_pass_that_fails_leaves_no_hook():
    model, _ = chain()
    with pytest.raises(RuntimeError):
        shared_forward(model, torch.randn(1, 5, 4, 4, dtype=torch.float64), ["", "b"])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert _get_current_function_mode_stack() == []
    with pytest.raises(ValueError, match="saliency_layer='d'"):
        shared_forward(model, torch.randn(1, 2, 4, 4), ["d"])


def test_debug_probes_need_a_forward_pass_of_their_own():
    model, input = chain()
    shared = shared_forward(model, input, [""])
    map, probes = saliency(model, input, 1, debug=True, shared=shared)
    assert torch.equal(map, saliency(model, input, 1))
    assert probes["b"].data[0].grad is not None
