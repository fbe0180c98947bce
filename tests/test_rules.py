"""The rules of excitation backprop against the paper's formula, operation by operation, as explicit matrices."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import ExcitationBackpropContext, RuleContext, rules

GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def send_back(function: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor) -> Tensor:
    """What an operation sends to its input inside the context; the operation's values must be its own."""
    leaf = x.clone().requires_grad_()
    with ExcitationBackpropContext():
        y = function(leaf * 1)
        (found,) = torch.autograd.grad(y, leaf, relevance)
    torch.testing.assert_close(y.detach(), function(x.clone()).detach(), rtol=0, atol=0)
    return found


def matrix(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine function, (outputs, inputs), column by column: its values at the unit vectors."""
    zero = torch.zeros(shape, dtype=torch.float64)
    columns = []
    for i in range(zero.numel()):
        unit = zero.clone()
        unit.view(-1)[i] = 1
        columns.append((function(unit) - function(zero)).detach().flatten())
    return torch.stack(columns, 1)


def by_hand(weight: Tensor, x: Tensor, relevance: Tensor) -> Tensor:
    """p_j = sum_i w+_ij x+_j / (sum_k w+_ik x+_k) p_i, where the denominator is not 0."""
    weight, active, p = weight.clamp(min=0), x.flatten().clamp(min=0), relevance.flatten()
    total = weight @ active
    shares = weight * active / torch.where(total > 0, total, torch.inf)[:, None]
    return (shares * p[:, None]).sum(0).view_as(x)


LINEAR, BIAS = rand(4, 6), rand(4)
CONV = [None, rand(4, 3, 3), rand(4, 3, 3, 2), rand(4, 3, 2, 2, 2)]
GROUPED = rand(6, 1, 3, 3)
TRANSPOSED = [None, rand(3, 4, 3), rand(3, 4, 3, 2), rand(3, 4, 2, 2, 2)]

# An input's shape, and an affine function of it in every spelling.
WEIGHTED = {
    "F.linear": ((2, 6), lambda x: F.linear(x, LINEAR)),
    "F.linear, bias": ((2, 6), lambda x: F.linear(x, LINEAR, BIAS)),
    "F.linear, keywords": ((2, 6), lambda x: F.linear(input=x, weight=LINEAR, bias=BIAS)),
    "F.linear, more dimensions": ((2, 3, 6), lambda x: F.linear(x, LINEAR, bias=BIAS)),
    "F.conv1d": ((2, 3, 7), lambda x: F.conv1d(x, CONV[1], BIAS, 2, 1)),
    "F.conv2d": ((1, 3, 5, 4), lambda x: F.conv2d(x, CONV[2])),
    "F.conv2d, positions": ((1, 3, 5, 4), lambda x: F.conv2d(x, CONV[2], BIAS, 2, 1, 1, 1)),
    "F.conv2d, keywords": ((1, 3, 7, 6), lambda x: F.conv2d(input=x, weight=CONV[2], bias=BIAS, dilation=2, padding=1)),
    "F.conv2d, same": ((1, 3, 4, 4), lambda x: F.conv2d(x, CONV[2][..., :1], padding="same")),
    "F.conv2d, no batch": ((3, 5, 4), lambda x: F.conv2d(x, CONV[2], BIAS)),
    "torch.conv2d": ((1, 3, 5, 4), lambda x: torch.conv2d(x, CONV[2], BIAS)),
    "F.conv2d, depthwise": ((1, 6, 4, 4), lambda x: F.conv2d(x, GROUPED, padding=1, groups=6)),
    "F.conv3d": ((1, 3, 3, 3, 3), lambda x: F.conv3d(x, CONV[3], BIAS)),
    "F.conv_transpose1d": ((2, 3, 4), lambda x: F.conv_transpose1d(x, TRANSPOSED[1], BIAS, stride=2)),
    "F.conv_transpose2d": ((1, 3, 3, 4), lambda x: F.conv_transpose2d(x, TRANSPOSED[2], BIAS, 2, 1, 1)),
    "F.conv_transpose3d": ((1, 3, 2, 2, 3), lambda x: F.conv_transpose3d(x, TRANSPOSED[3], BIAS)),
}
MEANS = {
    "F.avg_pool1d": ((2, 3, 7), lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "F.avg_pool2d": ((1, 3, 6, 5), lambda x: F.avg_pool2d(x, 2)),
    "F.avg_pool2d, keywords": (
        (1, 3, 6, 5),
        lambda x: F.avg_pool2d(input=x, kernel_size=3, stride=2, padding=1, count_include_pad=False),
    ),
    "F.avg_pool3d": ((1, 2, 4, 3, 3), lambda x: F.avg_pool3d(x, 2, 1)),
    "F.adaptive_avg_pool1d": ((2, 3, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    "F.adaptive_avg_pool2d": ((2, 3, 4, 5), lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
    "F.adaptive_avg_pool2d, keywords": ((2, 3, 4, 5), lambda x: F.adaptive_avg_pool2d(input=x, output_size=1)),
    "F.adaptive_avg_pool2d, larger": ((1, 2, 2, 2), lambda x: F.adaptive_avg_pool2d(x, 3)),
    "F.adaptive_avg_pool3d": ((1, 2, 3, 2, 3), lambda x: F.adaptive_avg_pool3d(x, 2)),
    "torch.mean": ((2, 3, 3, 2), lambda x: torch.mean(x, (2, 3))),
    "torch.mean, of everything": ((2, 3), lambda x: torch.mean(x)),
    "torch.mean, keywords": ((2, 3, 3, 2), lambda x: torch.mean(input=x, dim=1, keepdim=True)),
    "x.mean()": ((2, 3), lambda x: x.mean()),
    "x.mean((2, 3))": ((2, 3, 3, 2), lambda x: x.mean((2, 3))),
    "x.mean(-1)": ((2, 3, 3, 2), lambda x: x.mean(-1)),
    "x.mean(dim=...)": ((2, 3, 3, 2), lambda x: x.mean(dim=[2, 3], keepdim=True)),
}
AFFINE = WEIGHTED | MEANS


@pytest.mark.parametrize("sign", ["active", "mixed"])
@pytest.mark.parametrize("name", AFFINE)
def test_the_formula_as_a_matrix(name, sign):
    shape, function = AFFINE[name]
    x = rand(*shape).abs() if sign == "active" else rand(*shape)
    relevance = rand(*function(x).shape).abs()
    expected = by_hand(matrix(function, shape), x, relevance)
    torch.testing.assert_close(send_back(function, x, relevance), expected, rtol=1e-11, atol=1e-13)
    assert expected.sum() <= relevance.sum() * (1 + 1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_inputs_without_a_gradient_pass_through(name):
    shape, function = AFFINE[name]
    x = rand(*shape)
    with ExcitationBackpropContext():
        inside = function(x)
        with torch.no_grad():
            silent = function(x.clone().requires_grad_())
    assert not inside.requires_grad
    assert not silent.requires_grad
    assert torch.equal(inside, function(x))


def test_the_weights_get_nothing():
    weight, bias, x = (rand(*shape).requires_grad_() for shape in ((4, 6), (4,), (2, 6)))
    with ExcitationBackpropContext():
        F.linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert bias.grad is None
    assert x.grad is not None


# A sum of two terms, and the factor of the second.
SUMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "x + y": (lambda x, y: x + y, 1),
    "x += y": (lambda x, y: x.__iadd__(y), 1),
    "x.__add__(y)": (lambda x, y: x.__add__(y), 1),
    "torch.add": (lambda x, y: torch.add(x, y), 1),
    "torch.add, keywords": (lambda x, y: torch.add(input=x, other=y, alpha=0.5), 0.5),
    "x.add": (lambda x, y: x.add(y), 1),
    "x.add, alpha": (lambda x, y: x.add(y, alpha=2), 2),
    "x.add, keywords": (lambda x, y: x.add(other=y, alpha=2), 2),
    "x.add_": (lambda x, y: x.add_(y), 1),
    "x.add_, alpha": (lambda x, y: x.add_(y, alpha=3), 3),
    "x.add_, thrown away": (lambda x, y: (x.add_(y), x)[1], 1),
}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1), (5,)], ids=str)
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_shared_out_by_its_terms(name, shape):
    """p_x = x / (x + a y) p, p_y = a y / (x + a y) p, added up over what a term is broadcast to."""
    function, alpha = SUMS[name]
    x, y, relevance = rand(2, 3, 4, 5).abs(), rand(*shape).abs(), rand(2, 3, 4, 5)
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    with ExcitationBackpropContext():
        total = function(leaves[0] * 1, leaves[1] * 1)
        found = torch.autograd.grad(total, leaves, relevance)
    torch.testing.assert_close(total.detach(), x + alpha * y)
    torch.testing.assert_close(found[0], x / (x + alpha * y) * relevance)
    torch.testing.assert_close(found[1], (alpha * y / (x + alpha * y) * relevance).sum_to_size(shape))
    torch.testing.assert_close(found[0].sum() + found[1].sum(), relevance.sum())


def test_a_sum_that_is_0_loses_its_share_and_a_negative_term_gets_a_negative_one():
    x, y = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([0.0, 2, 3], [0.0, -2, -1]))
    with ExcitationBackpropContext():
        (x + y).backward(torch.ones(3, dtype=torch.float64))
    assert x.grad.tolist() == [0, 0, 1.5]
    assert y.grad.tolist() == [0, 0, -0.5]


@pytest.mark.parametrize(
    "function", [lambda x, y: x + y, lambda x, y: x.add_(y), lambda x, y: torch.add(x, y, alpha=2)]
)
def test_a_term_in_front_of_the_layer_has_its_share_too(function):
    """The other term has no gradient: it lies in front of the layer. What is its own is not given to the first."""
    x, y, relevance = rand(3).abs(), rand(3).abs(), rand(3)
    total = function(x.clone(), y.clone())
    torch.testing.assert_close(send_back(lambda x: function(x, y.clone()), x, relevance), x / total * relevance)
    leaf = y.clone().requires_grad_()
    with ExcitationBackpropContext():
        function(x.clone(), leaf * 1).backward(relevance)
    torch.testing.assert_close(leaf.grad, (total - x) / total * relevance)


PARAMETER = nn.Parameter(rand(3, 1, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 2,
        lambda x: 2 + x,
        lambda x: x + PARAMETER,
        lambda x: PARAMETER + x,
        lambda x: x.add(PARAMETER, alpha=2),
        lambda x: x.add_(PARAMETER),
        lambda x: torch.add(x, 0.5),
        lambda x: torch.add(2, x),
        lambda x: x.add_(1.5),
        lambda x: x.__iadd__(1),
    ],
)
def test_a_number_or_a_parameter_is_a_bias(function):
    x, relevance = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    assert torch.equal(send_back(function, x, relevance), relevance)


@pytest.mark.parametrize(
    "shape_it",
    [
        lambda p: p.view(1, 3, 1, 1),
        lambda p: p[None],
        lambda p: p.unsqueeze(0),
        lambda p: p.expand(2, 3, 4, 5),
        lambda p: p[:3],
    ],
)
def test_so_is_a_view_of_a_parameter(shape_it):
    x, relevance = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    assert torch.equal(send_back(lambda x: x + shape_it(PARAMETER), x, relevance), relevance)


def test_integers_have_no_rule():
    with ExcitationBackpropContext():
        assert (torch.ones(2, dtype=torch.long) + torch.ones(2, dtype=torch.long)).tolist() == [2, 2]
        assert (torch.ones(2, 3) + torch.ones(2, 3, dtype=torch.long)).dtype == torch.float32


def test_part_of_a_tensor_as_a_term():
    """What an in-place sum does to a view is seen by the whole tensor."""

    def function(x: Tensor) -> Tensor:
        x[:, 1:] += x[:, :1]
        return x

    x, relevance = rand(2, 3).abs(), rand(2, 3)
    first, rest = x[:, :1], x[:, 1:]
    part = relevance[:, 1:] / (rest + first)
    expected = torch.cat([relevance[:, :1] + (part * first).sum(1, keepdim=True), part * rest], 1)
    torch.testing.assert_close(send_back(function, x, relevance), expected)


OVERWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "pool": lambda x: F.avg_pool1d(x[:, None], 2)[:, 0],
    "adaptive pool": lambda x: F.adaptive_avg_pool1d(x[:, None], 2)[:, 0],
    "sum": lambda x: x + x.detach().flip(1),
    "in-place sum": lambda x: (x * 1).add_(x),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_an_input_overwritten_later(name):
    """Autograd keeps no input of these: a model may go on to overwrite it."""
    operation = OVERWRITTEN[name]

    def function(x: Tensor, overwrite: bool) -> Tensor:
        result = operation(x)
        return torch.cat([result, x.zero_() if overwrite else x * 0], 1)

    x = rand(2, 6).abs()
    relevance = rand(*function(x.clone(), True).shape)
    relevance[:, -6:] = 0  # only the operation itself
    expected = send_back(partial(function, overwrite=False), x, relevance)
    torch.testing.assert_close(send_back(partial(function, overwrite=True), x, relevance), expected)
    assert expected.abs().max() > 0


def test_the_input_of_frozen_weights_overwritten_later():
    """Without a gradient of the weights, autograd keeps no input of a linear layer: its input may be overwritten."""
    layer = nn.Linear(3, 3).double().requires_grad_(False)

    def function(x: Tensor) -> Tensor:
        y = layer(x)
        x.mul_(0)
        return y

    x, relevance = rand(2, 3).abs(), rand(2, 3).abs()
    leaf = x.clone().requires_grad_()
    function(leaf * 1).backward(relevance)  # it is legal
    torch.testing.assert_close(send_back(function, x, relevance), by_hand(matrix(layer, (2, 3)), x, relevance))


NORM = {"running_mean": rand(3), "running_var": rand(3).abs(), "weight": rand(3), "bias": rand(3)}
UNCHANGED = {
    "F.batch_norm": lambda x: F.batch_norm(x, *NORM.values()),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, NORM["weight"], NORM["bias"], NORM["running_mean"], NORM["running_var"], False, 0.1, 1e-5, False
    ),
    "nn.BatchNorm2d": nn.BatchNorm2d(3).double().eval(),
    "nn.InstanceNorm2d": nn.InstanceNorm2d(3, affine=True).double(),
    "F.group_norm": lambda x: F.group_norm(x, 3, NORM["weight"]),
    "nn.GroupNorm": nn.GroupNorm(1, 3).double(),
    "nn.LayerNorm": nn.LayerNorm((3, 4, 5)).double(),
    "F.layer_norm": lambda x: F.layer_norm(input=x, normalized_shape=(5,)),
    "nn.LocalResponseNorm": nn.LocalResponseNorm(2),
    "nn.RMSNorm": nn.RMSNorm(5).double(),
    "torch.sigmoid": torch.sigmoid,
    "x.sigmoid_()": lambda x: x.sigmoid_(),
    "nn.Sigmoid": nn.Sigmoid(),
    "nn.LogSigmoid": nn.LogSigmoid(),
    "nn.Hardsigmoid": nn.Hardsigmoid(inplace=True),
    "torch.tanh": torch.tanh,
    "x.tanh_()": lambda x: x.tanh_(),
    "nn.Tanh": nn.Tanh(),
    "nn.Softplus": nn.Softplus(),
    "nn.Softsign": nn.Softsign(),
    "F.softmax": lambda x: F.softmax(x, 1),
    "x.softmax": lambda x: x.softmax(dim=1),
    "torch.softmax": lambda x: torch.softmax(x, 1),
    "nn.LogSoftmax": nn.LogSoftmax(1),
    "nn.Softmax2d": nn.Softmax2d(),
    "nn.ReLU6": nn.ReLU6(inplace=True),
    "nn.Hardtanh": nn.Hardtanh(-0.5, 0.5, inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(0.1, inplace=True),
    "F.leaky_relu": lambda x: F.leaky_relu(input=x, negative_slope=0.2),
    "nn.PReLU": nn.PReLU(3).double(),
    "nn.RReLU": nn.RReLU().eval(),
    "nn.ELU": nn.ELU(inplace=True),
    "nn.CELU": nn.CELU(),
    "nn.SELU": nn.SELU(inplace=True),
    "nn.GELU": nn.GELU("tanh"),
    "nn.SiLU": nn.SiLU(inplace=True),
    "nn.Hardswish": nn.Hardswish(),
    "nn.Mish": nn.Mish(),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_normalisations_and_other_activations_pass_on(name):
    x, relevance = rand(2, 3, 4, 5) * 3, rand(2, 3, 4, 5)
    assert torch.equal(send_back(UNCHANGED[name], x, relevance), relevance)


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        lambda x: x.relu_(),
        lambda x: x.clamp(min=0),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: torch.cat([x, x.flip(1)], 1),
        lambda x: x.flatten(1),
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.dropout(x, 0.5, False),
    ],
)
def test_what_has_no_rule_keeps_its_gradient(function):
    """ReLU passes p where it is active, max pooling to the maximum, a concatenation to its parts: their gradient."""
    x = rand(2, 3, 4, 5)
    relevance = rand(*function(x.clone()).shape)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf * 1), leaf, relevance)
    assert torch.equal(send_back(function, x, relevance), expected)


class TestShares:
    def test_they_sum_to_what_is_shared_out(self):
        weight, x, relevance = rand(4, 6).abs(), rand(2, 6).abs(), rand(2, 4)
        (found,) = rules.shares(lambda x: x @ weight.T, [x], relevance)
        torch.testing.assert_close(found.sum(1), relevance.sum(1))
        torch.testing.assert_close(found, by_hand(matrix(lambda x: x @ weight.T, (2, 6)), x, relevance))

    def test_of_several_inputs(self):
        x, y = torch.tensor([3.0]), torch.tensor([1.0])
        found = rules.shares(lambda x, y: x + 2 * y, [x, y], torch.tensor([10.0]))
        assert [share.item() for share in found] == pytest.approx([6, 4])

    def test_a_result_of_0_loses_its_share(self):
        (found,) = rules.shares(lambda x: x * 2, [torch.tensor([0.0, 1.0])], torch.tensor([5.0, 7.0]))
        assert found.tolist() == [0, 7]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6])
    def test_half_precision_is_computed_in_float32(self, scale, dtype):
        x, weight = (rand(2, 64).abs() * scale).to(dtype), rand(8, 64).to(dtype)
        relevance = rand(2, 8).abs().to(dtype)
        with ExcitationBackpropContext():
            leaf = x.clone().requires_grad_()
            F.linear(leaf, weight).backward(relevance)
        assert leaf.grad.dtype == dtype
        expected = by_hand(matrix(lambda x: x @ weight.double().T, (2, 64)), x.double(), relevance.double())
        tolerance = torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=tolerance, atol=tolerance * 1e-3)

    @pytest.mark.parametrize("tiny", [1e-30, 1e-33, 1e-36, 1e-37, 1e-39, 1e-42])
    def test_tiny_activations_give_finite_shares(self, tiny):
        """A quotient reaches the largest floats; a large weight must not carry it beyond."""
        with ExcitationBackpropContext():
            leaf = torch.tensor([[tiny, tiny * 1e-5, 0.0]], requires_grad=True)
            F.linear(leaf, torch.tensor([[1.0, 1e3, 1e-3]])).backward(torch.ones(1, 1))
        assert leaf.grad.isfinite().all(), leaf.grad
        if tiny > 1e-34:
            assert leaf.grad.sum().item() == pytest.approx(1, abs=1e-3)

    def test_large_activations(self):
        with ExcitationBackpropContext():
            leaf = torch.tensor([[1e30, 3e30]], requires_grad=True)
            F.linear(leaf, torch.tensor([[1e3, 1e3]])).backward(torch.ones(1, 1))
        assert leaf.grad[0].tolist() == pytest.approx([0.25, 0.75])


def test_the_table_takes_another_part_of_the_weights():
    """With the absolute value of the weights, all of them excite."""
    x, weight, relevance = rand(2, 6).abs(), rand(4, 6), rand(2, 4).abs()
    leaf = x.clone().requires_grad_()
    with RuleContext(rules.excitation_rules(torch.abs)):
        F.linear(leaf * 1, weight).backward(relevance)
    expected = by_hand(matrix(lambda x: x @ weight.abs().T, (2, 6)), x, relevance)
    torch.testing.assert_close(leaf.grad, expected)


def test_the_excitatory_part_of_weights_of_any_size_dtype_and_layout():
    positive = rules.PositivePart()
    for weight in (rand(2, 3), rand(40, 3), rand(3), rand(4, 3).float(), rand(3, 4).T, rand(2, 3, 3, 3)[:, :, ::2]):
        before = weight.clone()
        assert torch.equal(positive(weight), weight.clamp(min=0))
        assert torch.equal(weight, before)
