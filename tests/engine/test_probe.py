"""Probes: the tensors of one layer in one call, with their gradients, whatever the model does to them."""

import threading
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import Probe, attach_debug_probes

Pair = namedtuple("Pair", ["first", "second"])


class Double(nn.Module):
    """Returns its argument times 2, in a container."""

    def __init__(self, pack) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor):
        return self.pack(x * 2)


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda y: y, lambda y: y),
        (lambda y: (y, None, 3), lambda y: y[0]),
        (lambda y: [y], lambda y: y[0]),
        (lambda y: {"a": y, "b": "text"}, lambda y: y["a"]),
        (lambda y: OrderedDict(a=y), lambda y: y["a"]),
        (lambda y: Pair(y, None), lambda y: y.first),
        (lambda y: ({"deep": [y]},), lambda y: y[0]["deep"][0]),
    ],
)
def test_outputs_in_containers(pack, unpack):
    layer = Double(pack)
    x = torch.tensor([1.0, -3.0])
    with Probe(layer, "output") as probe:
        result = layer(x)
    assert type(result) is type(pack(x))
    (unpack(result) ** 2).sum().backward()
    assert len(probe.data) == 1
    assert probe.data[0].tolist() == [2, -6]
    assert probe.data[0].grad.tolist() == [4, -12]


def test_several_tensors_of_which_some_are_no_floats():
    layer = Double(lambda y: (y, y.argmax(), y + 1, y > 0))
    with Probe(layer, "output") as probe:
        a, index, b, mask = layer(torch.tensor([1.0, 2.0]))
    (a[index] * 5 + b.sum()).backward()
    assert mask.tolist() == [True, True]
    assert [x.grad.tolist() for x in probe.data] == [[0, 5], [1, 1]]


def test_inputs_by_position_and_by_name():
    class Three(nn.Module):
        def forward(self, x: Tensor, *, y: Tensor, scale: float) -> Tensor:
            return x.mul_(y).mul_(scale)

    layer = Three()
    with Probe(layer, "input") as probe:
        layer(torch.tensor([2.0]), y=torch.tensor([5.0]), scale=3.0).sum().backward()
    assert [x.tolist() for x in probe.data] == [[2], [5]]
    assert [x.grad.tolist() for x in probe.data] == [[15], [6]]


@pytest.mark.parametrize("behind", [F.relu_, torch.Tensor.zero_, lambda x: x.mul_(-2), lambda x: x.add_(x)])
@pytest.mark.parametrize("grad", [True, False])
def test_what_happens_in_place_behind_the_layer_does_not_reach_the_data(behind, grad):
    layer = nn.Linear(2, 2)
    x = torch.tensor([[3.0, -1.0]], requires_grad=grad)
    expected = layer(x)
    with Probe(layer, "output") as probe:
        y = behind(layer(x))
    y.sum().backward()
    assert torch.equal(probe.data[0], expected)
    leaf = expected.detach().requires_grad_()
    behind(leaf.clone()).sum().backward()
    assert torch.equal(probe.data[0].grad, leaf.grad)


def test_an_in_place_layer_is_probed_on_both_sides():
    relu = nn.ReLU(inplace=True)
    x = torch.tensor([-1.0, 2.0])
    with Probe(relu, "input") as before, Probe(relu, "output") as after:
        (relu(x) * torch.tensor([3.0, 4.0])).sum().backward()
    assert before.data[0].tolist() == [-1, 2]
    assert before.data[0].grad.tolist() == [0, 4]
    assert after.data[0].tolist() == [0, 2]
    assert after.data[0].grad.tolist() == [3, 4]


def test_the_last_call_counts():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 3)
    with Probe(layer, "output") as probe:
        (layer(layer(torch.ones(1, 1))) ** 2).sum().backward()
    assert [x.item() for x in probe.data] == [9]
    assert probe.data[0].grad.item() == 18


def test_two_probes_on_one_layer_agree():
    layer = nn.Tanh()
    with Probe(layer, "output") as first, Probe(layer, "output") as second:
        (layer(torch.ones(3)) ** 3).sum().backward()
    assert torch.equal(first.data[0], second.data[0])
    assert torch.equal(first.data[0].grad, second.data[0].grad)


def test_a_parameter_as_output_is_neither_overwritten_nor_recorded_itself():
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self) -> Tensor:
            return self.weight

    layer = Position()
    with Probe(layer, "output") as probe:
        y = layer()
    assert torch.autograd.grad(y.sum(), probe.data)[0].tolist() == [1, 1]
    with torch.no_grad():
        y.mul_(5)
    assert layer.weight.tolist() == [1, 1]
    assert layer.weight.grad is None
    assert probe.data[0] is not layer.weight


def test_only_calls_of_its_own_thread():
    layer = nn.Tanh()
    with Probe(layer, "output", enable_grad=True) as probe, torch.no_grad():
        layer(torch.zeros(1))
        seen = []

        def other() -> None:
            with torch.no_grad():
                seen.append((layer(torch.ones(1)).requires_grad, torch.is_grad_enabled()))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [(False, False)]
    assert probe.data[0].tolist() == [0]


def test_enable_grad():
    front, layer = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad(), Probe(layer, "output", enable_grad=True) as probe:
        middle = front(torch.ones(1, 2))
        layer(middle).sum().backward()
    assert not middle.requires_grad
    assert probe.data[0].grad.tolist() == [[1, 1]]
    assert all(parameter.grad is None for parameter in (*front.parameters(), *layer.parameters()))


def test_remove():
    layer = nn.Tanh()
    probe = Probe(layer)
    layer(torch.zeros(1))
    probe.remove()
    probe.remove()
    layer(torch.ones(1))
    assert probe.data[0].tolist() == [0]
    assert not layer._forward_pre_hooks
    assert not layer._forward_pre_hooks_with_kwargs
    with pytest.raises(KeyError), Probe(layer, "output"):
        raise KeyError
    assert not layer._forward_hooks


def test_hooks_of_the_user_come_first():
    """The probe sees what the layer hands on, after the hooks that were there before it."""
    layer = nn.Tanh()
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    layer.register_forward_hook(lambda module, args, output: output + 5)
    with Probe(layer, "input") as before, Probe(layer, "output") as after:
        layer(torch.full((1,), -1.0))
    assert before.data[0].tolist() == [0]
    assert after.data[0].tolist() == [5]


@pytest.mark.parametrize("side", ["in", "", None, 1])
def test_a_wrong_side_is_an_error(side):
    layer = nn.ReLU()
    with pytest.raises(ValueError, match=rf"target={side!r} .*expected .*'input' or 'output'"):
        Probe(layer, side)
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_debug_probes_are_named_like_the_modules():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(inplace=True)))
    assert attach_debug_probes(model) is None
    expected = model[0](torch.ones(1, 2))
    probes = attach_debug_probes(model, debug=True)
    assert list(probes) == ["", "0", "1", "1.0"]
    x = torch.ones(1, 2)
    model(x).sum().backward()
    assert torch.equal(probes[""].data[0], x)
    assert torch.equal(probes["0"].data[0], expected)
    for name, probe in probes.items():
        probe.remove()
        assert probe.data[0].grad is not None, name
