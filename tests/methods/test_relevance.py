"""LRP: every rule against its formula in loops, where operations stand, and where the score goes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency import RelevanceContext, completeness, lrp, rules
from saliency.engine.choices import Attributing
from saliency.rules import linear
from tests.cases import NOTICES, ChannelsLast, InPlace, Net, Residual, VisionTransformer

pytestmark = NOTICES

GENERATOR = torch.Generator().manual_seed(0)
EPS = 1e-3  # large, so that it shows


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def relevance(model: nn.Module, x: Tensor, table: object, target: Tensor | None = None, layer: str = "") -> Tensor:
    """The relevance of an input whose results have that of a target times themselves."""
    return lrp(model, x, target, layer, table, reduction=None)


def stab(z: float, eps: float = EPS) -> float:
    return z + (eps if z >= 0 else -eps)


# Relevance of each input, of the matrix w (outputs, inputs), the biases b, the input x and the relevance r.
Loop = Callable[[list[list[float]], list[float], list[float], list[float]], list[float]]


def epsilon_loop(w, b, x, r):
    found = [0.0] * len(x)
    for j in range(len(r)):
        z = b[j] + sum(w[j][i] * x[i] for i in range(len(x)))
        for i in range(len(x)):
            found[i] += w[j][i] * x[i] / stab(z) * r[j]
    return found


def alpha_beta_loop(alpha, beta, w, b, x, r):
    found = [0.0] * len(x)
    for j in range(len(r)):
        products = [w[j][i] * x[i] for i in range(len(x))]
        above = max(b[j], 0) + sum(z for z in products if z > 0)
        below = min(b[j], 0) + sum(z for z in products if z < 0)
        for i, z in enumerate(products):
            found[i] += alpha * max(z, 0) / stab(above) * r[j]
            found[i] -= beta * min(z, 0) / (below - EPS) * r[j]
    return found


def gamma_loop(gamma, w, b, x, r):
    found = [0.0] * len(x)
    for j in range(len(r)):
        products = [w[j][i] * x[i] for i in range(len(x))]
        sign = 1 if b[j] + sum(products) > 0 else -1
        more = [z * (1 + gamma) if z * sign > 0 else z for z in products]
        total = (b[j] * (1 + gamma) if b[j] * sign > 0 else b[j]) + sum(more)
        for i, z in enumerate(more):
            found[i] += z / stab(total) * r[j]
    return found


def by_weight_loop(function, w, b, x, r):
    found = [0.0] * len(x)
    for j in range(len(r)):
        total = sum(function(weight) for weight in w[j])
        for i in range(len(x)):
            found[i] += function(w[j][i]) / stab(total) * r[j]
    return found


def z_box_loop(low, high, w, b, x, r):
    found = [0.0] * len(x)
    for j in range(len(r)):
        parts = [w[j][i] * x[i] - max(w[j][i], 0) * low - min(w[j][i], 0) * high for i in range(len(x))]
        for i, part in enumerate(parts):
            found[i] += part / stab(sum(parts)) * r[j]
    return found


RULES: dict[str, tuple[object, Loop]] = {
    "epsilon": (rules.epsilon(EPS), epsilon_loop),
    "z_plus": (rules.z_plus(EPS), partial(alpha_beta_loop, 1, 0)),
    "alpha_beta": (rules.alpha_beta(2, 1, EPS), partial(alpha_beta_loop, 2, 1)),
    "gamma": (rules.gamma(0.3, EPS), partial(gamma_loop, 0.3)),
    "w_square": (rules.w_square(EPS), partial(by_weight_loop, lambda weight: weight**2)),
    "flat": (rules.flat(EPS), partial(by_weight_loop, lambda weight: float(weight != 0))),
    "z_box": (rules.z_box(-3, 4, EPS), partial(z_box_loop, -3, 4)),
}
LINEAR = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear, more axes": (nn.Linear(6, 4, bias=False), (2, 6)),
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2), (2, 7)),
    "conv2d": (nn.Conv2d(2, 3, 3, padding=1, stride=2), (2, 4, 5)),
    "conv2d, grouped": (nn.Conv2d(4, 4, 2, groups=2), (4, 3, 3)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 2, 3, 2)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 2, 2)),
    "norm": (nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), (2, 3, 3)),
    "norm of rows": (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), (6,)),
    "norm behind a dropout": (nn.Sequential(nn.Conv1d(2, 2, 1), nn.Dropout(), nn.BatchNorm1d(2)), (2, 3)),
}


def drawn(model: nn.Module) -> nn.Module:
    """With weights, biases and statistics of both signs."""
    with torch.no_grad():
        for parameter in model.double().eval().parameters():
            parameter.copy_(rand(*parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(rand(len(module.running_mean)))
                module.running_var.copy_(rand(len(module.running_var)).abs() + 0.5)
    return model


@pytest.mark.parametrize("sign", ["mixed", "positive"])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_in_loops(rule, name, sign):
    """A batch norm behind it belongs to it; of inputs known to be positive, half the work gives the same."""
    layer, shape = LINEAR[name]
    layer, row, loop = drawn(layer), *RULES[rule]
    x = rand(1, *shape)
    x = x.abs() if sign == "positive" else x
    model = nn.Sequential(nn.ReLU(), layer) if sign == "positive" else nn.Sequential(layer)
    output, zero = layer(x), layer(torch.zeros_like(x)).flatten()
    target = rand(*output.shape)
    units = torch.eye(x.numel(), dtype=torch.float64).view(-1, *shape)
    w = torch.stack([layer(unit[None]).flatten() - zero for unit in units], 1).tolist()
    expected = loop(w, zero.tolist(), x.flatten().tolist(), (output * target).flatten().tolist())
    table = rules.relevance_rules(row, row)
    # An attribution of the layer's own input does not go through ReLU.
    found = relevance(model, x, table, target, "0" if sign == "positive" and isinstance(row, Attributing) else "")
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def convolutions(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the rules convolve."""
    calls: list[object] = []
    own = linear.with_parameters
    monkeypatch.setattr(linear, "with_parameters", lambda *args: calls.append(args) or own(*args))
    lrp(model, x, 0, "", "epsilon_plus")
    return len(calls)


@pytest.mark.parametrize(
    ("between", "work"),
    [
        (lambda x: F.relu(x), 1),
        (lambda x: F.max_pool2d(x.relu_(), 2), 1),
        (lambda x: torch.cat([F.avg_pool2d(x.relu(), 3, 1, 1), x.sigmoid()], 1)[:, 1:4], 1),
        (lambda x: x.relu() + F.relu6(x) * x.sigmoid(), 1),
        (lambda x: x.relu() - x.sigmoid(), 2),
        (lambda x: x.relu() - 1, 2),
        (lambda x: torch.add(x.relu(), x.relu(), alpha=-1), 2),
        (lambda x: torch.cat([x.relu(), x], 1)[:, :3], 2),
        (lambda x: F.silu(x), 2),
        (lambda x: -2 * x.relu(), 2),
    ],
)
def test_inputs_that_are_never_negative_are_known_from_the_graph(between, work, monkeypatch):
    model = Net(lambda s, x: s.b(between(s.a(x))).mean((2, 3)), a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, 2, 2))
    x = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert convolutions(model, x, monkeypatch) == 2 + work  # the first layer's input may be negative


def test_identity_in_loops():
    layer, x, target = drawn(nn.Conv2d(2, 2, 3, padding=1)), rand(1, 2, 4, 4), rand(1, 2, 4, 4)
    table = rules.relevance_rules(rules.identity(), rules.identity())
    torch.testing.assert_close(relevance(layer, x, table, target), layer(x) * target)
    x[0, 0, 0] = torch.tensor([0, -0.0, 1e-320, -1e-300])  # what goes to an input of 0, or as good as 0, is lost
    expected = layer(x) * target
    expected[0, 0, 0] = 0
    torch.testing.assert_close(relevance(layer, x, table, target), expected)
    with pytest.raises(ValueError, match=r"identity\(\) is not possible for a layer from"):
        relevance(drawn(nn.Linear(3, 2)), rand(1, 3), table, rand(1, 2))


# What else an operation may be, with the relevance that its arguments get of results y with relevance r, by definition:
# the gradient of another function, in which what counts as a constant is detached.
def _normalised(x: Tensor, dims: tuple[int, ...], centre: bool = True) -> Tensor:
    centred = x - x.mean(dims, keepdim=True) if centre else x
    variance = centred.pow(2).mean(dims, keepdim=True)
    return centred / (variance + 1e-5).sqrt().detach()


WEIGHT, BIAS = rand(4), rand(4)
MATRIX = rand(4, 4)
_SAME: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer norm": (lambda x: F.layer_norm(x, (4,), WEIGHT, BIAS), lambda x: _normalised(x, (-1,)) * WEIGHT + BIAS),
    "layer norm by hand": (
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(),
        lambda x: _normalised(x, (-1,)),
    ),
    "layer norm by rsqrt": (
        lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + 1e-5) * WEIGHT,
        lambda x: _normalised(x, (-1,)) * WEIGHT,
    ),
    "RMS norm": (lambda x: F.rms_norm(x, (4,), WEIGHT, 1e-5), lambda x: _normalised(x, (-1,), False) * WEIGHT),
    "group norm": (
        lambda x: F.group_norm(x, 2, WEIGHT, BIAS),
        lambda x: _normalised(x.view(2, 2, 2, 4), (2, 3)).view_as(x) * WEIGHT[:, None] + BIAS[:, None],
    ),
    "instance norm": (lambda x: F.instance_norm(x, weight=WEIGHT), lambda x: _normalised(x, (2,)) * WEIGHT[:, None]),
    "normalize": (lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
    "gelu": (F.gelu, lambda x: x * (F.gelu(x) / x).detach()),
    "in place": (lambda x: F.hardswish(x * 1, True), lambda x: x * (F.hardswish(x) / x).detach()),
    "tanh": (torch.tanh, lambda x: x * (x.tanh() / x).detach()),
    "sigmoid": (torch.sigmoid, lambda x: x * (x.sigmoid() / x).detach()),
    "softmax": (lambda x: x.softmax(-1), lambda x: x * (x.softmax(-1) / x).detach()),
    "square": (lambda x: x**2, lambda x: x * x.detach()),
    "GELU by hand": (
        lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        lambda x: (
            x * 0.25 * (1 + torch.erf(x / 2**0.5)).detach()
            + x.detach() * 0.25 * (1 + x * (torch.erf(x / 2**0.5) / x).detach())
        ),
    ),
    "SiLU by hand": (lambda x: x * x.sigmoid(), lambda x: x * x.sigmoid().detach()),
    "GLU": (lambda x: F.glu(x, 1), lambda x: x[:, :2] * x[:, 2:].sigmoid().detach()),
    "gate": (
        lambda x: x * F.hardsigmoid(x.mean(-1, keepdim=True) @ MATRIX[:1]).expand_as(x),
        lambda x: x * F.hardsigmoid(x.mean(-1, keepdim=True) @ MATRIX[:1]).detach(),
    ),
    "product": (lambda x: x * x.flip(1), lambda x: 0.5 * (x * x.flip(1).detach() + x.detach() * x.flip(1))),
    "product with a constant": (lambda x: WEIGHT * x, lambda x: x * WEIGHT),
    "matrix product": (lambda x: x @ x.mT, lambda x: 0.5 * (x @ x.mT.detach() + x.detach() @ x.mT)),
    "matrix": (lambda x: x @ MATRIX, lambda x: x @ MATRIX),
    "einsum": (
        lambda x: torch.einsum("bij,bkj->bik", x, x),
        lambda x: 0.5 * (x @ x.mT.detach() + x.detach() @ x.mT),
    ),
    "addcmul": (
        lambda x: torch.addcmul(x, x, x.flip(1)),
        lambda x: x + 0.5 * (x * x.flip(1).detach() + x.detach() * x.flip(1)),
    ),
    "quotient": (lambda x: x / (1 + x.abs()), lambda x: x / (1 + x.abs()).detach()),
    "max pooling": (lambda x: F.max_pool1d(x, 2), lambda x: F.max_pool1d(x, 2)),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x.flip(2), x * 2),
        lambda x: ((x @ x.flip(2).mT) / 2).softmax(-1).detach() @ (x * 2),
    ),
    "attention by name": (
        lambda x: F.scaled_dot_product_attention(query=x, key=x, value=x * 2, scale=1),
        lambda x: (x @ x.mT).softmax(-1).detach() @ (x * 2),
    ),
    "attention by hand": (
        lambda x: F.dropout(F.linear(F.softmax(x @ x.mT, -1), MATRIX), 0.5, False).transpose(1, 2) @ x,
        lambda x: F.linear(F.softmax(x @ x.mT, -1), MATRIX).detach().mT @ x,
    ),
}


def check(function, same, others) -> None:
    x, table = rand(2, 4, 4), rules.relevance_rules(rules.epsilon(0), rules.epsilon(0), others=others)
    model = Net(lambda s, x: function(x))
    output, leaf = model(x), x.clone().requires_grad_()
    target = rand(*output.shape)
    (expected,) = torch.autograd.grad(same(leaf), leaf, target)
    torch.testing.assert_close(same(x), output)
    torch.testing.assert_close(relevance(model, x, table, target), x * expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", _SAME)
def test_other_operations_by_definition(name):
    check(*_SAME[name], rules.CP)


@pytest.mark.parametrize("by_hand", [True, False])
def test_attn_lrp_by_definition(by_hand):
    """Of a product each factor gets half; softmax has its own gradient."""

    def attend(x: Tensor) -> Tensor:
        if by_hand:
            return F.softmax((x @ x.flip(1).mT) / 2, -1) @ (x * 2)
        return F.scaled_dot_product_attention(x, x.flip(1), x * 2)

    def same(x: Tensor) -> Tensor:
        scores = 0.5 * (x @ x.flip(1).mT.detach() + x.detach() @ x.flip(1).mT) / 2
        attention, value = scores.softmax(-1), x * 2
        return 0.5 * (attention @ value.detach() + attention.detach() @ value)

    check(attend, same, rules.ATTN_LRP)


def test_next_to_0_an_activation_has_its_own_derivative_and_what_is_lost_is_entered():
    x = torch.tensor([[0.0, -1e-300, 2.0]], dtype=torch.float64)
    found = relevance(Net(lambda s, x: x.sigmoid()), x, "epsilon_plus", torch.ones(1, 3, dtype=torch.float64))
    assert found[0, :2].abs().max() < 1e-299
    parts = completeness(Net(lambda s, x: x.sigmoid()), x, torch.ones(1, 3, dtype=torch.float64))
    assert parts.lost == pytest.approx(1.0)
    assert parts.attribution == pytest.approx(float(x[0, 2].sigmoid()))


def test_a_norm_is_not_merged_where_its_input_has_another_reader():
    """Then the convolution shares out what it gave by itself."""
    conv, norm, x = drawn(nn.Conv2d(2, 3, 2)), drawn(nn.BatchNorm2d(3)), rand(1, 2, 3, 3)
    both = Net(lambda s, x: torch.cat([s.norm(y := s.conv(x)), y], 1), conv=conv, norm=norm)
    target = rand(*both(x).shape)
    table = rules.epsilon_plus(EPS)
    y = conv(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(torch.cat([norm(y), y], 1), y, target)
    torch.testing.assert_close(relevance(both, x, table, target), relevance(conv, x, table, g))


def with_gates() -> nn.Module:
    """The block of a mobile network: a gate by squeeze and excitation, group and batch norm, a shared layer."""
    parts = {
        "conv": nn.Conv2d(3, 4, 3, bias=False), "norm": nn.BatchNorm2d(4), "down": nn.Conv2d(4, 2, 1),
        "up": nn.Conv2d(2, 4, 1), "group": nn.GroupNorm(2, 4), "mix": nn.Conv2d(4, 4, 3, padding=1, groups=2),
        "head": nn.Linear(4, 4),
    }  # fmt: skip

    def forward(s, x):
        x = F.hardswish(s.norm(s.conv(x)), True)
        x = x * s.up(s.down(x.mean((2, 3), keepdim=True)).relu_()).sigmoid()
        x = x + 0.1 * s.mix(F.silu(s.group(s.mix(x))))
        return s.head(torch.cat([x, torch.ones_like(x)], 3).mean((2, 3))).tanh()

    return drawn(Net(forward, **parts))


NETWORKS = {
    "in place": (lambda: drawn(InPlace()), ("features.0", "features.1", "features.3")),
    "residual": (lambda: drawn(Residual()), ("stem", "relu", "classifier")),
    "gates": (with_gates, ("conv", "norm", "head")),
    "transformer": (lambda: drawn(VisionTransformer()), ("blocks.0", "blocks.1", "norm")),
    "channels last": (lambda: drawn(ChannelsLast()), ("patches", "norm", "head")),
}
PRESETS = {
    **{name: name for name in ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "cp")},
    "epsilon_alpha2_beta1_flat": rules.epsilon_alpha2_beta1_flat(1e-12),
    "epsilon_gamma_box": rules.epsilon_gamma_box([-4, -4, -4], torch.full((3, 1, 1), 4.0)),
    "w_square and gamma": rules.relevance_rules(
        rules.gamma(0.5), rules.alpha_beta(3, 2), first=rules.w_square(), last=rules.z_plus()
    ),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_score_is_attributions_biases_and_what_is_lost(name, preset):
    build, cuts = NETWORKS[name]
    model, x = build(), rand(2, 3, 15, 12)
    for layer in ("", *cuts):
        parts = completeness(model, x, [1, 2], layer, PRESETS[preset])
        terms = lrp(model, x, [1, 2], layer, PRESETS[preset], reduction=None).abs().sum()
        score = float(model(x)[[0, 1], [1, 2]].detach().sum())
        assert parts.score == pytest.approx(score, rel=1e-9)
        assert abs(parts.rest) < 1e-9 * max(abs(score), float(terms) + abs(parts.bias) + abs(parts.lost))


def test_attn_lrp_does_not_conserve_and_says_so():
    parts = completeness(drawn(VisionTransformer()), rand(1, 3, 15, 12), 1, "", "attn_lrp")
    assert abs(parts.rest) > 1e-4 * abs(parts.score)


def test_the_delta_is_what_is_missing_of_each_score():
    model, x, targets = drawn(InPlace()), rand(2, 3, 9, 8), torch.tensor([[0, 3], [1, 2]])
    scores = model(x).detach().gather(1, targets)
    found, delta = lrp(model, x, targets, "", "epsilon_plus", reduction=None, return_convergence_delta=True)
    torch.testing.assert_close(delta, scores - found.flatten(2).sum(2))
    maps, deltas = lrp(model, x, [0, 1], ["", "features.3"], "epsilon_plus", return_convergence_delta=True)
    for each, missed in zip(maps, deltas, strict=True):
        torch.testing.assert_close(missed, scores[:, 0] - each.flatten(1).sum(1))


@pytest.mark.parametrize("bias", [True, False])
def test_without_biases_nothing_is_missing(bias):
    model, x = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)).double(), rand(3, 4)
    _, delta = lrp(model, x, [0, 1, 2], "", rules.cp(epsilon=0), return_convergence_delta=True)
    assert (delta.abs().max() < 1e-12) == (not bias)


class TestWhere:
    """Rules by layer and by position."""

    model = drawn(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3)))
    x = rand(2, 4)

    def by_hand(self, *each) -> Tensor:
        """From layer to layer, with a rule for each."""
        layers = [self.model[0], self.model[2][0], self.model[3]]
        inputs = [self.x, layers[0](self.x).relu()]
        inputs.append(layers[1](inputs[1]).relu())
        gradient = torch.eye(3, dtype=torch.float64)[[1, 2]]
        for layer, x, rule in reversed(list(zip(layers, inputs, each, strict=True))):
            part = nn.Sequential(nn.ReLU(), layer) if layer is not layers[0] else nn.Sequential(layer)
            found = relevance(part, x.detach(), rules.relevance_rules(rule, rule), gradient)
            gradient = torch.where(x == 0, 0, found / torch.where(x == 0, 1, x)).detach()
        return self.x * gradient

    @pytest.mark.parametrize(
        ("chosen", "each"),
        [
            ({}, "eee"),
            ({"first": "g"}, "gee"),
            ({"last": "g"}, "eeg"),
            ({"first": "g", "last": "a"}, "gea"),
            ({"layers": {"2": "a"}}, "eae"),
            ({"layers": {"?.0": "a"}}, "eae"),
            ({"layers": {"[02]*": "a"}}, "aae"),
            ({"layers": {"3": "a", "*": "g"}, "last": "e", "first": "e"}, "gga"),
        ],
    )
    def test_rules_of_layers_come_before_positions_and_those_before_kinds(self, chosen, each):
        own = {"e": rules.epsilon(EPS), "g": rules.gamma(0.5, EPS), "a": rules.alpha_beta(2, 1, EPS)}
        given = {
            name: {layer: own[rule] for layer, rule in of.items()} if isinstance(of, dict) else own[of]
            for name, of in chosen.items()
        }
        table = rules.relevance_rules(own["e"], own["e"], **given)
        found = lrp(self.model, self.x, [1, 2], "", table, reduction=None)
        torch.testing.assert_close(found, self.by_hand(*(own[rule] for rule in each)))

    def test_the_first_is_the_first_of_the_network_at_any_layer(self):
        table = rules.relevance_rules(rules.epsilon(), rules.epsilon(), first=rules.flat())
        at_layer = lrp(self.model, self.x, 1, "1", table, reduction=None)
        torch.testing.assert_close(at_layer, lrp(self.model, self.x, 1, "1", "epsilon_plus", reduction=None))

    def test_a_branch_of_constants_has_no_first_layer(self):
        """A network of positions, as in Swin, runs first but does not look at the image."""
        places = torch.ones(1, 4, dtype=torch.float64)
        model = Net(lambda s, x: s.b(x + s.c(s.a(places))), **{n: nn.Linear(4, 4).double() for n in "abc"})
        same = Net(lambda s, x: s.b(x + s.c(s.a(places)).detach()), **dict(model.named_children()))
        found, expected = (
            lrp(m, self.x, 1, "b", "epsilon_plus_flat", attribute_to_layer_input=True) for m in (model, same)
        )
        torch.testing.assert_close(found, expected)

    def test_a_name_that_is_none(self):
        table = rules.relevance_rules(rules.epsilon(), rules.epsilon(), layers={"7": rules.flat()})
        with pytest.raises(ValueError, match="layers='7' has a rule, but no layer with weights"):
            lrp(self.model, self.x, 1, "", table)


class TestFirstLayer:
    """Rules that give an attribution of a layer's own input, which no gradient is."""

    conv = drawn(nn.Conv2d(3, 4, 3))

    def test_what_falls_on_0_is_not_lost(self):
        x = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
        x[..., 2] = 1
        target = rand(1, 4, 3, 3)
        for name in ("epsilon_plus_flat", rules.epsilon_gamma_box(-1, 2)):
            found, delta = lrp(self.conv, x, target, "", name, reduction=None, return_convergence_delta=True)
            assert delta.abs() < 1e-3 * found.abs().sum()
            assert found[..., 0].abs().min() > 0

    @pytest.mark.parametrize("probed", [False, True])
    def test_it_goes_through_what_only_moves_pixels(self, probed):
        def forward(s, x):
            return s.conv(F.dropout(x.transpose(2, 3).flip(2)[:, :3].contiguous(), 0.5, False))

        x, target = rand(2, 4, 5, 5), rand(2, 4, 3, 3)
        options = {"debug": True} if probed else {}
        found = lrp(Net(forward, conv=self.conv), x, target, "", "epsilon_plus_flat", reduction=None, **options)
        found = found[0] if probed else found
        moved = relevance(self.conv, x.transpose(2, 3).flip(2)[:, :3], "epsilon_plus_flat", target)
        torch.testing.assert_close(found[:, :3], moved.flip(2).transpose(2, 3))
        assert not found[:, 3].any()

    def test_it_does_not_go_through_anything_else(self):
        model = Net(lambda s, x: s.conv(x - 0.5).mean((2, 3)), conv=self.conv)
        with pytest.raises(ValueError, match=r"precedes an operation \(conv2d\) whose rule"):
            lrp(model, rand(1, 3, 5, 5), 0, "", "epsilon_plus_flat")
        assert lrp(model, rand(1, 3, 5, 5), 0, "conv", "epsilon_plus_flat").shape == (1, 1, 3, 3)
        inside = lrp(model, rand(1, 3, 5, 5), 0, "conv", "epsilon_plus_flat", attribute_to_layer_input=True)
        assert inside.shape == (1, 1, 5, 5)

    def test_what_comes_on_other_ways_is_added(self):
        model = Net(lambda s, x: torch.cat([s.conv(x), x[:, :, 1:-1, 1:-1]], 1), conv=self.conv)
        x, target = rand(1, 3, 5, 5), rand(1, 7, 3, 3)
        expected = relevance(self.conv, x, "epsilon_plus_flat", target[:, :4]) + x * F.pad(target[:, 4:], [1] * 4)
        torch.testing.assert_close(relevance(model, x, "epsilon_plus_flat", target), expected)

    def test_it_has_no_path(self):
        with pytest.raises(ValueError, match="is not possible with flat, w_square or z_box"):
            lrp(self.conv, rand(1, 3, 5, 5), None, "", "epsilon_plus_flat", path=saliency.noise(2))


class TestWeightsWithoutARow:
    @pytest.mark.parametrize(
        ("name", "parts", "forward"),
        [
            ("bilinear", {"a": nn.Bilinear(4, 4, 2)}, lambda s, x: s.a(x, x)),
            ("lstm", {"a": nn.LSTM(4, 2, batch_first=True)}, lambda s, x: s.a(x[:, None])[0][:, 0]),
            ("addmm", {"a": nn.Linear(4, 4)}, lambda s, x: torch.addmm(s.a.bias, x, s.a.weight)),
        ],
    )
    def test_it_is_named(self, name, parts, forward):
        model = Net(forward, **parts)
        with pytest.raises(ValueError, match=f"rules have no row for {name} with the weights 'a\\."):
            lrp(model, torch.randn(2, 4), 1)
        shared = saliency.shared_forward(model, torch.randn(2, 4), tables=[rules.cp()])
        assert shared is not None

    def test_constants_need_none(self):
        class Embedded(nn.Module):
            def __init__(self):
                super().__init__()
                self.places, self.token, self.head = nn.Embedding(3, 4), nn.Parameter(rand(1, 1, 4)), nn.Linear(4, 2)

            def forward(self, x):
                x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places(torch.arange(3))
                return self.head(torch.where(x > 0, x, self.token)).mean(1)

        parts = completeness(Embedded().double(), rand(2, 2, 4), 1)
        assert abs(parts.rest) < 1e-12

    def test_a_table_without_linear_layers(self):
        table = {function: row for function, row in rules.cp().items() if function is not F.linear}
        with pytest.raises(ValueError, match="no row for linear with the weights 'weight'"):
            lrp(nn.Linear(2, 2), torch.ones(1, 2), 1, "", table)


@pytest.mark.parametrize("name", ["residual", "gates", "transformer"])
def test_a_shared_pass_gives_the_same(name):
    build, cuts = NETWORKS[name]
    model, x, targets = build(), rand(2, 3, 15, 12), torch.tensor([[0, 3], [1, 2]])
    tables = [rules.GUIDED, rules.EXCITATION, rules.cp()]
    shared = saliency.shared_forward(model, x, ["", *cuts], tables=tables)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    with_pass = [
        lrp(model, x, targets, layer, table, return_convergence_delta=True, shared=shared)
        for table in ("epsilon_alpha2_beta1_flat", "cp", "attn_lrp")
        for layer in ("", cuts[0])
        for _ in range(2)  # what was asked before is kept
    ]
    guided = saliency.guided_backprop(model, x, targets, shared=shared)
    assert not calls
    handle.remove()
    alone = [
        lrp(model, x, targets, layer, table, return_convergence_delta=True)
        for table in ("epsilon_alpha2_beta1_flat", "cp", "attn_lrp")
        for layer in ("", cuts[0])
        for _ in range(2)
    ]
    torch.testing.assert_close(with_pass, alone, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(guided, saliency.guided_backprop(model, x, targets))


def test_the_default_depends_on_the_architecture():
    for model, name in ((drawn(Residual()), "epsilon_plus"), (drawn(VisionTransformer()), "cp")):
        x = rand(1, 3, 15, 12)
        assert rules.default_rules(model) == name
        assert torch.equal(lrp(model, x, 1), lrp(model, x, 1, "", name))


def test_the_context_serves_other_methods_and_paths():
    model, x = drawn(Residual()), rand(1, 3, 11, 9)
    builder = partial(RelevanceContext, "epsilon_plus", model)
    as_linear = saliency.linear_approx(model, x, 1, "stem", context_builder=builder)
    torch.testing.assert_close(as_linear, lrp(model, x, 1, "stem", "epsilon_plus"))
    for layer in ("", "stem"):
        one = lrp(model, x, 1, layer, "epsilon_plus", path=saliency.noise(1, 0.0))
        torch.testing.assert_close(one, lrp(model, x, 1, layer, "epsilon_plus"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": "epsilon_pluss"}, "did you mean 'epsilon_plus'"),
        ({"rules": "epsilon_gamma_box"}, r"expected saliency.rules.epsilon_gamma_box\(low, high\)"),
        ({"rules": 3}, "rules=3 is of the wrong type"),
        ({"return_convergence_delta": True, "debug": True}, "is not possible without a path"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lrp(drawn(Residual()), rand(1, 3, 9, 9), 1, **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rules.epsilon(-1), "epsilon=-1 is not a factor"),
        (lambda: rules.gamma(float("nan")), "gamma=nan is not a factor"),
        (lambda: rules.relevance_rules(rules.epsilon(), "epsilon"), "linear='epsilon' is of the wrong type"),
    ],
)
def test_bad_rules(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bounds_that_do_not_fit():
    with pytest.raises(ValueError, match=r"low=.* does not fit an input of shape"):
        lrp(drawn(nn.Conv2d(3, 2, 2)), rand(1, 3, 3, 3), (0, 0, 0), "", rules.epsilon_gamma_box([1, 2], 3))


def test_weights_that_are_standardised_when_they_are_used_are_weights():
    """As in a normaliser-free network, which takes them through a batch norm of their own."""

    def forward(net: Net, x: Tensor) -> Tensor:
        weight = net.conv.weight if fixed is None else fixed
        if fixed is None:
            gain = net.gain.weight.view(-1)
            weight = F.batch_norm(weight.reshape(1, 4, -1), None, None, gain, training=True).reshape_as(weight)
        return net.fc(F.conv2d(x, weight, net.conv.bias).relu().mean((2, 3)))

    torch.manual_seed(0)
    fixed = None
    parts = {"conv": nn.Conv2d(2, 4, 3), "gain": nn.Linear(4, 1), "fc": nn.Linear(4, 3)}
    model, input = Net(forward, **parts).double(), torch.rand(2, 2, 6, 6, dtype=torch.float64)
    found = saliency.lrp(model, input, 1, rules="epsilon_plus")
    weight = model.conv.weight.detach()
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True, correction=0)
    fixed = (weight - mean) / (variance + 1e-5).sqrt() * model.gain.weight.detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(found, saliency.lrp(model, input, 1, rules="epsilon_plus"))
