"""Sanity checks, with maps that follow the parameters, or the class, in a known way."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import saliency
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.randomisation import parameter_groups, parameter_randomisation, random_logit

INPUT, TARGET = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1])


class Scale(nn.Module):
    """Parameters of its own, and no way to reset them."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.arange(1.0, 5.0))

    def forward(self, x):
        return x * self.factor[:, None, None]


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Scale(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def explain(model, input, target):
    return saliency.gradient(model, input, target)


def weights(name):
    """Maps that are the parameters of a layer, for every image."""
    return lambda model, input, target: (
        model.get_parameter(name).detach().reshape(1, 1, 1, -1).repeat(len(input), 1, 1, 1)
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("cascading", [True, False])
def test_a_map_that_ignores_the_model_does_not_change(cascading):
    def edges(model, input, target):
        return input.diff(dim=3).abs().sum(1, keepdim=True)

    maps = edges(None, INPUT, TARGET)
    result = parameter_randomisation(network(), edges, INPUT, TARGET, maps, cascading)
    assert result.tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize(("name", "step"), [("6.weight", 0), ("3.factor", 1), ("0.weight", 3)])
def test_a_map_of_one_layer_changes_when_that_layer_does(name, step, cascading):
    model = network()
    result = parameter_randomisation(
        model, weights(name), INPUT, TARGET, weights(name)(model, INPUT, TARGET), cascading, seed=1
    )
    assert result.shape == (3, 4)
    for column in range(4):
        randomised = column >= step if cascading else column == step
        assert (result[:, column] < 0.9).all() if randomised else (result[:, column] == 1).all()


def seen_states(model, **options):
    """The state of every network that is explained."""
    states = []

    def record(network, input, target):
        states.append(state(network))
        return torch.rand(len(input), 1, 2, 2)

    parameter_randomisation(model, record, INPUT, TARGET, torch.rand(3, 1, 2, 2), **options)
    return states


def changed(states, model):
    """The modules whose state differs from the model's."""
    before = state(model)
    return [
        {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        for after in states
    ]


def test_which_layers_are_randomised():
    model = network()
    assert parameter_groups(model) == [("6",), ("3",), ("1",), ("0",)]
    # A new batch norm has a weight of 1 and a bias of 0, as the network's: its statistics change.
    assert changed(seen_states(model), model) == [{"6"}, {"6", "3"}, {"6", "3", "1"}, {"6", "3", "1", "0"}]
    assert changed(seen_states(model, cascading=False), model) == [{"6"}, {"3"}, {"1"}, {"0"}]
    assert changed(seen_states(model, steps=2), model) == [{"6", "3"}, {"6", "3", "1", "0"}]
    assert changed(seen_states(model, layers=["0", "6"]), model) == [{"0"}, {"0", "6"}]
    assert changed(seen_states(model, layers=["0", "6"], cascading=False), model) == [{"0"}, {"6"}]


def test_a_layer_has_the_same_random_values_in_every_step_and_kind():
    model = network()
    last, *_ = reversed(seen_states(model, seed=3))
    for found in (seen_states(model, seed=3, cascading=False), seen_states(model, seed=3, layers=["0", "1", "3", "6"])):
        for after, names in zip(found, changed(found, model), strict=True):
            assert all(torch.equal(value, last[name]) for name, value in after.items() if name.split(".")[0] in names)
    assert not same(last, seen_states(model, seed=4)[-1])


def test_values_are_reset_or_shuffled():
    model = network()
    after = seen_states(model)[-1]
    assert torch.equal(after["1.running_mean"], torch.zeros(4))
    assert torch.equal(after["1.running_var"], torch.ones(4))
    assert sorted(after["3.factor"].tolist()) == [1, 2, 3, 4]
    bound = 27**-0.5  # of the uniform distribution of a convolution over 3 channels and 3 x 3 pixels
    assert bound * 0.8 < after["0.weight"].abs().max() <= bound


def test_groups_of_a_real_network():
    from torchvision.models import resnet18

    model = resnet18(weights=None)
    assert parameter_groups(model)[:3] == [("fc",), ("layer4.1.bn2",), ("layer4.1.conv2",)]
    assert len(parameter_groups(model)) == 41  # 20 convolutions with a batch norm each, and the last layer
    assert [len(group) for group in parameter_groups(model, steps=5)] == [8, 8, 8, 8, 9]
    assert sum(parameter_groups(model, steps=5), ()) == sum(parameter_groups(model), ())
    assert parameter_groups(model, steps=100) == parameter_groups(model)
    assert parameter_groups(model, ["fc", "layer4.1"]) == [
        ("fc",),
        ("layer4.1.conv1", "layer4.1.bn1", "layer4.1.conv2", "layer4.1.bn2"),
    ]
    assert parameter_groups(nn.DataParallel(model)) == parameter_groups(model)


@pytest.mark.parametrize("cascading", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_of_a_network_change_and_the_network_does_not(mode, cascading):
    model = network().train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    before, training = state(model), [module.training for module in model.modules()]
    maps, random = explain(model, INPUT, TARGET), torch.get_rng_state()
    with mode():
        result = parameter_randomisation(model, explain, INPUT, TARGET, maps, cascading)
    assert result.shape == (3, 4)
    assert not result.requires_grad
    assert (result < 0.999).all()
    assert torch.equal(torch.get_rng_state(), random)
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 6
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_default_device_does_not_matter():
    torch.manual_seed(0)
    model, input, target = nn.Sequential(nn.Bilinear(1, 4, 3), Scale()), torch.rand(2, 1, 2, 2), torch.tensor([0, 2])

    def explain(model, input, target):
        return model[0].weight.detach()[target].view(-1, 1, 2, 2)

    def measure():
        arguments = (model, explain, input, target, explain(model, input, target))
        return random_logit(*arguments, classes=3), parameter_randomisation(*arguments)

    expected = measure()
    with torch.device("meta"):
        found = measure()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_network_made_with_the_seed_does_not_get_its_own_values_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    assert changed(seen_states(model, seed=0), model) == [{"1"}, {"0", "1"}]


def test_the_seed_decides():
    model = network()
    maps = explain(model, INPUT, TARGET)
    first, again, other = (
        parameter_randomisation(model, explain, INPUT, TARGET, maps, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_is_untouched_where_the_method_fails():
    model = network()
    before, random = state(model), torch.get_rng_state()

    def fail(model, input, target):
        raise RuntimeError("no map")

    with pytest.raises(RuntimeError, match="no map"):
        parameter_randomisation(model, fail, INPUT, TARGET, INPUT[:, :1])
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_similarity_is_a_choice():
    def negative(model, input, target):
        return -input[:, :1]

    maps = INPUT[:, :1]
    for similarity, expected in [(rank_correlation, -1.0), (partial(rank_correlation, absolute=True), 1.0)]:
        result = parameter_randomisation(network(), negative, INPUT, TARGET, maps, steps=1, similarity=similarity)
        assert result.tolist() == [[expected]] * 3


def test_wrapped_and_half_precision_networks():
    model = network()
    maps = explain(model, INPUT, TARGET)
    expected = parameter_randomisation(model, explain, INPUT, TARGET, maps)
    assert torch.equal(parameter_randomisation(nn.DataParallel(model), explain, INPUT, TARGET, maps), expected)
    half, input = copy.deepcopy(model).bfloat16(), INPUT.bfloat16()
    result = parameter_randomisation(half, explain, input, TARGET, explain(half, input, TARGET))
    assert result.dtype == torch.float32


def classes_seen(target, classes, **options):
    """The classes that are explained instead."""
    seen = []

    def record(model, input, target):
        seen.append(target)
        return input[:, :1]

    input = torch.rand(len(target), 1, 2, 2)
    random_logit(nn.Flatten(), record, input, torch.tensor(target), input, classes, **options)
    return seen[0].tolist()


def test_another_class_is_explained():
    target = list(range(7)) * 3
    for seed in range(5):
        other = classes_seen(target, 7, seed=seed)
        assert all(0 <= value < 7 for value in other)
        assert all(value != before for value, before in zip(other, target, strict=True))
        assert other == other[:7] * 3  # the same one in every batch
    assert {classes_seen([3], 7, seed=seed)[0] for seed in range(60)} == {0, 1, 2, 4, 5, 6}
    assert classes_seen([0, 1, 1], 2) == [1, 0, 0]


def test_the_number_of_classes_is_that_of_the_outputs():
    target = list(range(4)) * 5
    assert classes_seen(target, None, seed=2) == classes_seen(target, 4, seed=2)


def test_maps_of_a_linear_network():
    # The gradient of a class is its row of weights.
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data.copy_(rows)

    def gradient(model, input, target):
        return model[1].weight.detach()[target].view(-1, 1, 2, 2)

    input, target = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    maps = rows.view(2, 1, 2, 2)
    assert random_logit(model, gradient, input, target, maps).tolist() == [-1, -1]
    model[1].weight.data[1] = rows[0] * 10
    assert random_logit(model, gradient, input, target, maps[:1].expand(2, 1, 2, 2)).tolist() == [1, 1]


def test_what_does_not_fit_is_refused():
    model, maps = network(), torch.rand(3, 1, 12, 12)
    run = partial(parameter_randomisation, model, explain, INPUT, TARGET, maps)
    logit = partial(random_logit, model, explain, INPUT)
    for call, message in [
        (partial(run, layers=["7"]), r"layers='7' is not a layer of the model \(did you mean"),
        (partial(run, layers=["2"]), "hold no parameters"),
        (partial(run, layers=[]), "hold no parameters"),
        (partial(run, steps=0), "steps=0"),
        (partial(run, seed=-1), "seed=-1"),
        (partial(logit, TARGET, maps, classes=1), "classes=1"),
        (partial(logit, TARGET, maps, classes=2), r"target=\[0, 2, 1\]"),
        (partial(logit, TARGET[:2], maps), r"target=\[0, 2\]"),
        (partial(logit, TARGET, maps, seed=0.5), "seed=0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
