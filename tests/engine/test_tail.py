"""The tail gives what the network on copies of the image gives, and runs the front once."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from saliency.engine.call import make_call
from saliency.engine.site import make_site
from saliency.engine.state import evaluating
from saliency.engine.tail import Tail, grid_index, put_grid, replacing_input, replacing_layer
from saliency.engine.targets import score_of
from tests import cases
from tests.cases import MODEL_CASES

NETS = {
    "resnet18": (["conv1", "layer1.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer3", "layer4.1.bn2"], 0),
    "densenet121": (
        ["features.pool0", "features.denseblock2.denselayer3.conv1", "features.transition3", "features"],
        0,
    ),
    "googlenet": (["conv2", "inception3b.branch2.0", "inception4a", "inception5b.branch4.1.conv"], 0),
    "mobilenet_v2": (["features.3.conv.0", "features.7", "features.18"], 0),
    "vit_b_16": (["encoder.layers.encoder_layer_9.ln_1", "encoder.layers.encoder_layer_10", "conv_proj"], 1),
    "swin_t": (["features.3.1", "features.5.5.mlp", "norm"], 0),
}
OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 32},
}


def activations_near(x: Tensor) -> Tensor:
    noise = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    return (x + 0.3 * noise).requires_grad_()


def copies(site, call, activations):
    """The plain evaluation: the network on as many copies of the input, its layer replaced."""
    tail = Tail(site, call)
    tail.expands = True
    return tail(activations)


def compare(model, layer, call, target):
    """Is the tail the plain evaluation? And did it need copies?"""
    site = make_site(call, layer)
    with evaluating(model), torch.enable_grad():
        tail = Tail(site, call)
        activations = activations_near(tail.activation)
        results = []
        for evaluate in (tail, lambda x: copies(site, call, x)):
            scores = score_of(evaluate(activations), target, 3)
            (gradient,) = torch.autograd.grad(scores.square().sum(), activations)
            results.append((scores.detach(), gradient))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10 * float(plain.abs().max()))
    assert results[0][1].abs().max() > 0
    return tail.expands


@pytest.mark.parametrize("name", NETS)
def test_networks(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=4, **OPTIONS.get(name, {})).eval()
        if name == "vit_b_16":
            model.heads.head.weight.data.normal_()
    call = make_call(model, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double())
    layers, expanded = NETS[name]
    assert sum(compare(model.double(), layer, call, 1) for layer in layers) == expanded


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
def test_models_of_the_table(case):
    if not case.batched:
        pytest.skip("draws random numbers")
    model, input = case.model(), case.input()
    call = make_call(model, input, **case.options(torch.float64))
    call = call.rows(torch.tensor([0]))
    for layer in case.layers:
        target = case.target if not isinstance(case.target, list) else case.target[0]
        compare(model, layer, call, target)


class Join(nn.Module):
    """A front and a layer that meet in the ways that have to broadcast."""

    def __init__(self, join) -> None:
        super().__init__()
        self.front = nn.Conv2d(2, 3, 1)
        self.layer = nn.Conv2d(2, 3, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.front(x), self.layer(x)).flatten(1)


def _thrown_away(a, b):
    a.add_(b)
    return a * a


def _iadd(a, b):
    a += b
    a *= b
    return a


def _other_way(a, b):
    b += a
    return b


def _size_of_the_front(a, b):
    return (a + b).reshape(len(a), -1)


def _only_front(a, b):
    return a.relu_()


def _add_to_a_view(a, b):
    a[:, :1].add_(b[:, :1])
    return (a * b).flatten(1)


def _add_behind_a_view(a, b):
    view = a.flatten(2)
    a.add_(b)
    return view.mean(2) + b.mean((2, 3))


def _gather(a, b):
    index = a.flatten(2).mean(1).argsort(1)[:, :4]
    tokens = b.flatten(2).mT
    chosen = tokens.gather(1, index[..., None].expand(-1, -1, 3))
    return torch.cat([tokens[:, :1], chosen], 1).flatten(1)


def _mean_over_rows(a, b):
    means = b.reshape(len(a), 3, -1).mean(2)
    return torch.cat([means, b.amax((2, 3))], 1)


def _assert_shapes(a, b):
    assert a.shape == b.shape
    return a + b


JOINS = {
    "cat": (lambda a, b: torch.cat([a, b], 1), False),
    "cat, last dimension": (lambda a, b: torch.cat((a, b), dim=-1), False),
    "stack": (lambda a, b: torch.stack([a, b], 2), False),
    "concat": (lambda a, b: torch.concat([a, b, a], 1), False),
    "sum": (lambda a, b: a + b, False),
    "add_, result thrown away": (_thrown_away, False),
    "+= and *=": (_iadd, False),
    "+= the front": (_other_way, False),
    "mul_": (lambda a, b: a.mul_(b), False),
    "sub_": (lambda a, b: a.sub_(b), True),
    "reshape to the rows of the front": (_size_of_the_front, True),
    "add_ to a view of the front": (_add_to_a_view, True),
    "add_ behind a view of the front": (_add_behind_a_view, True),
    "gather by an index of the front": (_gather, True),
    "mean over the rows of the front": (_mean_over_rows, True),
    "an assertion": (_assert_shapes, True),
}


@pytest.mark.parametrize("name", JOINS)
def test_the_front_broadcasts_or_is_copied(name):
    join, expands = JOINS[name]
    model = Join(join).double()
    call = make_call(model, torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert compare(model, "layer", call, lambda output: output.square().sum(1)) == expands


def test_the_front_runs_on_one_image_and_records_nothing():
    model = Join(JOINS["+= and *="][0])
    seen = []
    model.front.register_forward_hook(lambda module, args, output: seen.append((len(output), output.requires_grad)))
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model), torch.enable_grad():
        tail = Tail(make_site(call, "layer"), call)
        for _ in range(3):
            assert len(tail(tail.activation.expand(4, -1, -1, -1).clone().requires_grad_())) == 4
        assert torch.is_grad_enabled()
    trial = [(1, False), (2, False), (1, False)]  # the activation, then on two rows the plain way and this one
    assert seen == trial + [(1, False)] * 3


def test_the_way_that_fails_is_tried_once():
    calls = []

    def join(a, b):
        calls.append(len(b))
        return _size_of_the_front(a, b)

    model = Join(join)
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        tail(torch.randn(5, 3, 3, 4))
        tail(torch.randn(5, 3, 3, 4))
    assert calls == [1, 2, 2, 5, 5]
    assert tail.expands


def test_an_output_of_the_front_alone_repeats():
    class Auxiliary(Join):
        def forward(self, x):
            return {"out": self.layer(x).flatten(1), "aux": self.front(x).flatten(1)}

    model = Auxiliary(None)
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        output = tail(torch.randn(5, 3, 3, 4))
    assert not tail.expands
    assert output["aux"].shape == output["out"].shape == (5, 36)


def test_the_callers_activations_and_input_stay():
    model = cases.RESIDUAL.model()
    call = make_call(model, cases.RESIDUAL.input()).rows(torch.tensor([0]))
    kept = [tensor.clone() for tensor in call.inputs]
    with evaluating(model), torch.enable_grad():
        tail = Tail(make_site(call, "norm"), call)
        activations = activations_near(tail.activation)
        before = activations.detach().clone()
        tail(activations)
    assert torch.equal(activations, before)
    assert all(map(torch.equal, kept, call.inputs))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_real_error_is_raised():
    model = Join(lambda a, b: a @ torch.zeros(1, 1))
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model), pytest.raises(RuntimeError):
        Tail(make_site(call, "layer"), call)


def test_a_layer_without_rows_of_images():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(0), nn.Unflatten(0, (1, -1)))
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with (
        evaluating(model),
        pytest.raises(ValueError, match=r"saliency_layer='1' makes \(36,\), no batch of 1 image; .*"),
    ):
        Tail(make_site(call, "1"), call)


def test_of_a_layer_used_twice_the_last_call_counts():
    model = cases.TWICE.model()
    call = make_call(model, cases.TWICE.input()).rows(torch.tensor([0]))
    with evaluating(model):
        tail = Tail(make_site(call, "conv"), call)
        activations = torch.cat([tail.activation, tail.activation + 1])
        torch.testing.assert_close(tail(activations), model.classifier(activations.tanh().mean((2, 3))))
        torch.testing.assert_close(tail(activations)[:1], model(*call.inputs))


def test_the_input_side_of_a_layer():
    model = cases.FUNCTIONAL.model()
    call = make_call(model, cases.FUNCTIONAL.input()).rows(torch.tensor([0]))
    site = make_site(call, "conv2", attribute_to_layer_input=True)
    with evaluating(model):
        tail = Tail(site, call)
        output = tail(torch.cat([tail.activation, tail.activation * 2]))
        expected = model.classifier(torch.relu(model.conv2(tail.activation * 2)).mean((2, 3)))
        torch.testing.assert_close(output[:1], model(*call.inputs))
        torch.testing.assert_close(output[1:], expected)


class TestGrid:
    def test_tokens_there_and_back(self):
        x = torch.randn(1, 7, 5)
        index = grid_index(x, (32, 48), None, None)
        assert index.shape == (5, 2, 3)
        for c in range(5):
            for i in range(2):
                for j in range(3):
                    assert x.flatten()[index[c, i, j]] == x[0, 1 + 3 * i + j, c]
        grids = torch.randn(4, 5, 2, 3)
        placed = put_grid(x, index, grids)
        assert torch.equal(placed[:, 0], x[:, 0].expand(4, -1))
        assert torch.equal(placed[:, 1:], grids.flatten(2).mT)

    def test_channels_last_there_and_back(self):
        x, grids = torch.randn(1, 4, 5, 9), torch.randn(3, 9, 4, 5)
        index = grid_index(x, (32, 40), None, None)
        assert torch.equal(x.flatten()[index], x[0].permute(2, 0, 1))
        assert torch.equal(put_grid(x, index, grids), grids.permute(0, 2, 3, 1))

    def test_channels_first_there_and_back(self):
        x, grids = torch.randn(1, 7, 4, 5), torch.randn(3, 7, 4, 5)
        assert torch.equal(put_grid(x, grid_index(x, (32, 40), None, None), grids), grids)

    def test_gradients_reach_the_grids(self):
        x = torch.randn(1, 7, 5, dtype=torch.float64)
        index = grid_index(x, (32, 48), None, None)
        grids = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda grids: put_grid(x, index, grids), (grids,))

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            ("layer", r"layout='layer' makes no grid \(1, C, h, w\) of an activation \(1, 7, 5\); .* is accepted\."),
            (lambda x: x[:, 1:].mT.unflatten(2, (2, 3)) / 2, "computes with an activation; .* is accepted"),
            (lambda x: x[:, [1, 1]].mT.unflatten(2, (1, 2)), "computes with an activation"),
        ],
    )
    def test_errors(self, layout, message):
        with pytest.raises(ValueError, match=message):
            grid_index(torch.randn(1, 7, 5), (32, 48), layout, None)


def test_replacing_the_input_takes_the_other_arguments_along():
    case = cases.TWO_INPUTS
    model, (x, y) = case.model(), case.input()
    images = torch.tensor([1, 0, 1])
    perturbed = torch.randn(3, *x.shape[1:], dtype=x.dtype)
    with evaluating(model):
        found, evaluate = replacing_input(make_call(model, (x, y)), 0)
        ((where, output),) = evaluate(perturbed, images)
        assert torch.equal(found, x)
        assert where.tolist() == [0, 1, 2]
        assert torch.equal(output, model(perturbed, y[images]))


def test_replacing_a_layer_of_several_images():
    case = cases.TRANSFORMER
    model, x = case.model(), case.input()
    images = torch.tensor([1, 0, 1])
    call = make_call(model, x)
    with evaluating(model):
        grids, evaluate = replacing_layer(call, make_site(call, "blocks.0"), (12, 15), None)
        assert grids.shape == (2, 6, 4, 5)
        for where, output in evaluate(grids[images], images):
            torch.testing.assert_close(output, model(x[images[where]]))
