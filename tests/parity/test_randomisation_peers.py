"""Rank correlation beside SciPy, and the sanity checks beside Quantus."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import saliency
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.randomisation import parameter_groups, parameter_randomisation, random_logit

stats = pytest.importorskip("scipy.stats")
quantus = pytest.importorskip("quantus")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::UserWarning:quantus")]

QUIET = {"disable_warnings": True, "display_progressbar": False, "normalise": False, "abs": False}


@pytest.mark.parametrize("size", [(3, 5), (56, 56), (224, 224)])
@pytest.mark.parametrize("values", [3, 50, 10**6])
def test_rank_correlation(size, values):
    a, b = torch.randint(-values, values, (2, 3, 1, *size)).double()
    b += a * torch.tensor([0, 0.5, -2]).view(3, 1, 1, 1)
    theirs = [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(theirs, dtype=a.dtype), rtol=1e-12, atol=1e-12)
    single = rank_correlation(a.float(), b.float())
    torch.testing.assert_close(single, torch.tensor(theirs, dtype=torch.float32), rtol=0, atol=2e-6)


def test_scipy_has_no_number_for_a_constant_map():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        assert np.isnan(stats.spearmanr([1, 1, 1], [1, 2, 3]).statistic)


class Preset(nn.Linear):
    """A layer that resets to values of its own, whatever the random state."""

    def reset_parameters(self):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 2, parameter.numel()).cos().view_as(parameter))


def network(classes=4, layer=Preset):
    model = nn.Sequential(nn.Flatten(), layer(48, 12), nn.Tanh(), layer(12, 8), nn.Tanh(), layer(8, classes)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def explain(model, input, target):
    return saliency.gradient(model, input, target)


def quantus_explain(model, inputs, targets, **_):
    maps = explain(model, torch.as_tensor(inputs), torch.as_tensor(targets))
    return maps.numpy()


def quantus_scores(metric, model, input, target, maps):
    return metric(
        model=copy.deepcopy(model),
        x_batch=input.numpy(),
        y_batch=target.numpy(),
        a_batch=maps.numpy(),
        explain_func=quantus_explain,
        channel_first=True,
        softmax=False,
        device="cpu",
    )


def case(classes=4):
    input, target = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randint(0, classes, (5,))
    model = network(classes)
    return model, input, target, explain(model, input, target)


@pytest.mark.parametrize(("cascading", "order"), [(True, "top_down"), (False, "independent")])
def test_parameter_randomisation(cascading, order):
    model, input, target, maps = case()
    ours = parameter_randomisation(model, explain, input, target, maps, cascading)
    metric = quantus.MPRT(layer_order=order, **QUIET)
    scores = quantus_scores(metric, model, input, target, maps)
    theirs = torch.tensor([scores[name] for (name,) in parameter_groups(model)], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs.T)


def test_random_logit_of_two_classes():
    model, input, target, maps = case(classes=2)
    metric = quantus.RandomLogit(num_classes=2, similarity_func=quantus.similarity_func.correlation_spearman, **QUIET)
    theirs = torch.tensor(np.array(quantus_scores(metric, model, input, target, maps)))
    torch.testing.assert_close(random_logit(model, explain, input, target, maps), theirs)


def randomised(model, order="top_down"):
    """The names that Quantus randomises, and the state of the network after the last."""
    network = quantus.helpers.model.pytorch_model.PyTorchModel(copy.deepcopy(model))
    layers = [
        (name, {key: value.clone() for key, value in layer.state_dict().items()})
        for name, layer in network.get_random_layer_generator(order=order)
    ]
    return [name for name, _ in layers], layers[-1][1]


def test_it_leaves_out_parameters_that_no_layer_resets():
    model = VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)
    names, after = randomised(model)
    assert torch.equal(after["encoder.pos_embedding"], model.encoder.pos_embedding)
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert torch.equal(after[f"{attention}.in_proj_weight"], model.get_parameter(f"{attention}.in_proj_weight"))
    ours = {name for (name,) in parameter_groups(model)}
    assert ours - set(names) == {"", "encoder", attention}  # the class token is the network's own


def test_it_gives_layers_of_one_shape_the_same_values_and_moves_the_global_generator():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = torch.get_rng_state()
    _, after = randomised(model)
    assert torch.equal(after["0.weight"], after["1.weight"])
    assert not torch.equal(torch.get_rng_state(), before)
    ours = []

    def record(model, input, target):
        ours.append({key: value.clone() for key, value in model.state_dict().items()})
        return input

    before = torch.get_rng_state()
    parameter_randomisation(model, record, torch.eye(4), torch.arange(4), torch.eye(4))
    assert not torch.equal(ours[-1]["0.weight"], ours[-1]["1.weight"])
    assert torch.equal(torch.get_rng_state(), before)
