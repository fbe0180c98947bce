"""What every method makes of f(x) = sum_cu w_cu x_cu + b, explained at its input: the definition's own answer.

Each answer is the method's formula with w in the gradient's place, maps by the method's own reduction.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import METHODS
from saliency.rules import epsilon_plus
from tests.cases import NOTICES

CLASS = 2
WITHOUT = {
    "extremal_perturbation": "the result of a search, over masks that are smooth",
    "cam": "nothing is pooled",
    **{name: "for networks that have attention" for name, method in METHODS.items() if method.needs_attention},
}
KERNEL = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
MASKS = torch.rand(5, 1, 6, 3, generator=torch.Generator().manual_seed(2)).double()


class Linear(NamedTuple):
    """Weights (1, C, h, w) of the class and its bias, an input (N, C, h, w) and the baselines (1, C, h, w).

    ``others`` are the weights of the other three classes, summed.
    """

    w: Tensor
    b: Tensor
    others: Tensor
    x: Tensor
    start: Tensor

    def score(self, x: Tensor) -> Tensor:
        return (self.w * x).sum((1, 2, 3)) + self.b


def make() -> tuple[nn.Module, Linear]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    weight, bias = model[1].weight.detach()[CLASS], model[1].bias.detach()[CLASS]
    x, start = torch.randn(2, 2, 6, 3).double(), torch.randn(1, 2, 6, 3).double()
    others = model[1].weight.detach().sum(0) - weight
    return model, Linear(weight.view(1, 2, 6, 3), bias, others.view(1, 2, 6, 3), x, start)


def summed(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def largest(x: Tensor) -> Tensor:
    return x.abs().amax(1, keepdim=True)


def moved(of: Linear) -> Tensor:
    """w (x - x'): of a line the gradient is the same everywhere."""
    return summed(of.w * (of.x - of.start))


def cam(weights: Tensor, of: Linear) -> Tensor:
    return summed(weights * of.x).relu()


def per_channel(x: Tensor) -> Tensor:
    return x.sum((2, 3), keepdim=True)


def plus_plus(of: Linear) -> Tensor:
    alpha = of.w**2 / (2 * of.w**2 + of.w**3 * per_channel(of.x))
    return cam(per_channel(alpha * of.w.relu()), of)


def component(x: Tensor, k: Tensor | None = None) -> Tensor:
    """The first singular vector of the positions' channels, times its value; or that of a matrix between positions."""
    found = []
    for n, rows in enumerate(x.flatten(2).mT):
        u, values, _ = torch.linalg.svd(rows if k is None else k[n])
        one = u[:, 0] * (values[0] if k is None else values[0].sqrt())
        found.append(one * (one @ rows.square().sum(1)).sign())
    return torch.stack(found).view(-1, 1, *x.shape[2:])


def centred(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)


def sigmoid_kernel(of: Linear) -> Tensor:
    rows = centred(of.x).flatten(2).mT
    k, centre = torch.tanh(rows @ rows.mT / 2 + 1), torch.eye(18, dtype=of.x.dtype) - 1 / 18
    return component(centred(of.x), centre @ k @ centre)


def far_above(of: Linear) -> Tensor:
    mean, deviation = of.x.mean((2, 3), keepdim=True), of.x.std((2, 3), keepdim=True, correction=0)
    return summed(mean * (of.x > mean + deviation))


def scaled(x: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low)


def won(w: Tensor, x: Tensor) -> Tensor:
    share = w.relu() * x.relu()
    return share / share.sum((1, 2, 3), keepdim=True)


def masked(of: Linear, factor: float) -> Tensor:
    """Softmax over the channels of the score behind each, scaled to [0, 1], times a factor."""
    masks = scaled(of.x)
    scores = [of.score(of.x * factor * masks[:, c : c + 1]) for c in range(of.x.shape[1])]
    return cam(torch.stack(scores, 1).softmax(1)[..., None, None], of)


def seen(of: Linear) -> Tensor:
    return F.conv2d(summed(of.w * of.x), KERNEL[None, None], padding=1) + of.b


def rise(of: Linear) -> Tensor:
    return torch.stack([of.score(of.x * mask)[:, None, None, None] * mask for mask in MASKS]).mean(0)


EXPECTED = {
    "gradient": lambda of: largest(of.w),
    "deconvnet": lambda of: largest(of.w),
    "guided_backprop": lambda of: largest(of.w),
    "smooth_gradient": lambda of: largest(of.w),
    "guided_grad_cam": lambda of: largest(of.w * cam(per_channel(of.w) / 18, of)),
    "gradient_x_activation": lambda of: summed(of.w * of.x),
    "linear_approx": lambda of: summed(of.w * of.x),
    "lrp": lambda of: summed(of.w * of.x),
    "activation": lambda of: summed(of.x),
    "excitation_backprop": lambda of: summed(won(of.w, of.x)),
    "contrastive_excitation_backprop": lambda of: summed(won(of.w, of.x) - won(-of.w, of.x)).relu(),
    "grad_cam": lambda of: cam(per_channel(of.w) / 18, of),
    "grad_cam_plus_plus": plus_plus,
    "layer_cam": lambda of: cam(of.w.relu(), of),
    "xgrad_cam": lambda of: cam(per_channel(of.w * of.x) / per_channel(of.x), of),
    "hires_cam": lambda of: cam(of.w, of),
    "eigen_cam": lambda of: component(of.x),
    "eigen_grad_cam": lambda of: component(centred(of.w * of.x)),
    "kpca_cam": sigmoid_kernel,
    "fem": far_above,
    "finer_cam": lambda of: cam(per_channel(of.w - 0.6 / 3 * of.others) / 18, of),
    "shapley_cam": lambda of: cam(per_channel(of.w) / 18, of),
    "smooth_grad_cam_plus_plus": plus_plus,
    "refine_cam": lambda of: plus_plus(of) / plus_plus(of).amax((2, 3), keepdim=True),
    "full_grad": lambda of: summed(scaled((of.w * of.x).abs())),
    "integrated_gradients": moved,
    "internal_influence": lambda of: summed(of.w),
    "conductance": moved,
    "gradient_shap": moved,
    "expected_gradients": moved,
    "deep_lift": moved,
    "deep_lift_shap": moved,
    "feature_ablation": moved,
    "occlusion": moved,
    "feature_permutation": lambda of: summed(of.w * (of.x - of.x.flip(0))),  # of two samples: the other's
    "score_cam": lambda of: masked(of, 1),
    "ss_cam": lambda of: masked(of, 1),
    "is_cam": lambda of: masked(of, (1 + 2 + 3) / 3 / 3),  # f is linear: the mean of the scores, that of the mean mask
    "ablation_cam": lambda of: cam(per_channel(of.w * of.x) / of.score(of.x).view(-1, 1, 1, 1), of),
    "recipro_cam": seen,
    "rise": rise,
}


def options(name: str, of: Linear) -> dict[str, object]:
    differ = ("gradient_shap", "expected_gradients", "deep_lift", "deep_lift_shap", "feature_ablation")
    if name in ("integrated_gradients", "internal_influence", *differ):
        return {"baselines": of.start}
    return {
        "conductance": {"baselines": of.start, "method": "riemann_trapezoid"},  # from the one end to the other
        "occlusion": {"baselines": of.start, "sliding_window_shapes": 1, "strides": 1},
        "fem": {"k": 1},
        "lrp": {"rules": epsilon_plus(epsilon=0)},
        "ss_cam": {"std": 0, "num_samples": 3},
        "is_cam": {"num_samples": 3},
        "rise": {"filter_masks": MASKS, "scores": "raw"},
    }.get(name, {})


def test_every_method_is_here():
    assert EXPECTED.keys() | WITHOUT.keys() == METHODS.keys()
    assert not EXPECTED.keys() & WITHOUT.keys()


@NOTICES  # a linear model has no activation whose rule could run
@pytest.mark.parametrize("name", EXPECTED)
def test_the_answer_is_exact(name):
    model, of = make()
    layer = {} if name == "rise" else {"saliency_layer": ""}
    found = METHODS[name].function(model, of.x, CLASS, **layer, **options(name, of))
    expected = EXPECTED[name](of).expand(2, -1, -1, -1)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
