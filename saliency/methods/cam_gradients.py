"""CAMs with another gradient: of a difference of scores, of a Shapley value, or averaged over noisy inputs."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine import folds, paths
from saliency.engine.call import Input, check_inputs
from saliency.engine.checks import check_count, check_maps_type, is_number, shown
from saliency.engine.contexts import RuleContext
from saliency.engine.driver import saliency
from saliency.engine.interrupts import interruptible
from saliency.engine.layers import Layers
from saliency.engine.maps import Reduction, gradient_of, positive_sum, safe_divide
from saliency.engine.operations import Instead
from saliency.engine.paths import Path
from saliency.engine.record import ContextBuilder
from saliency.engine.sending import Sought
from saliency.engine.signatures import BackwardOptions, MapOptions, Maps, PassOptions, PathOptions, typed
from saliency.engine.targets import Target, Targets, get_backward_gradient, target_error
from saliency.methods.cam import grad_cam, reduced, reducing, sum_positions
from saliency.rules.unfused import attend


class ContrastOptions(MapOptions, PassOptions, total=False):
    """Options of a method that supplies the gradient of the output itself."""

    context_builder: ContextBuilder
    path: Path | None


def get_finer_gradient(pred_y: Tensor, y: object, gamma: float = 0.6, num_references: int = 3) -> Tensor:
    r"""The gradient of a score minus that of the most similar classes, :math:`y_c - \frac{\gamma}{T} \sum_t y_{d_t}`.

    ``pred_y`` is (N, C, ...), ``y`` any target except a function. The T classes, or as many as there are, are those
    whose scores are closest to the target's. For dense outputs, scores are compared at the positions of the target.

    >>> get_finer_gradient(torch.tensor([[5.0, 4.0, 1.0, 0.0]]), 0, gamma=0.5, num_references=2)
    tensor([[ 1.0000, -0.2500, -0.2500,  0.0000]])
    """
    check_maps_type("pred_y", pred_y)
    own = get_backward_gradient(pred_y, y)
    count = min(num_references, pred_y.shape[1] - 1 if pred_y.ndim > 1 else 0)
    if not count:
        raise target_error(y, f"of an output of shape {tuple(pred_y.shape)} has no other class to compare with")
    where = own.sum(1, keepdim=True)
    scores = (pred_y.detach() * where).flatten(2).sum(2) if pred_y.ndim > 2 else pred_y.detach()
    score = (pred_y.detach() * own).flatten(1).sum(1, keepdim=True)
    explained = own.ne(0).view(*scores.shape, -1).any(2)
    nearest = (scores - score).abs().masked_fill(explained, torch.inf).topk(count, largest=False).indices
    others = torch.zeros_like(scores).scatter(1, nearest, gamma / count)
    return own - where * others.view(*others.shape, *[1] * (own.ndim - 2))


@typed
def finer_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    gamma: float = 0.6,
    num_references: int = 3,
    reduction: Reduction = positive_sum,
    **options: Unpack[ContrastOptions],
) -> Maps:
    r"""Finer-CAM: Grad-CAM of what distinguishes a class from those most similar to it.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v dx_{ncv}\}, \quad
              dx = \frac{\partial}{\partial x} \Bigl(f_c - \frac{\gamma}{T} \sum_{t=1}^T f_{d_t}\Bigr)

    with the ``num_references`` classes :math:`d_t` whose scores are closest to that of the class. (N, 1, h, w),
    non-negative. ``get_backward_gradient=get_finer_gradient`` makes any other CAM a finer one. The target must be a
    class, not a function. Zhang et al., Finer-CAM, CVPR 2025. Options and errors: see :func:`saliency`.
    """
    check_count("num_references", num_references)
    if not is_number(gamma):
        raise ValueError(f"gamma={shown(gamma)} is not a weight; expected a number.")
    if Targets(target, len(check_inputs(input)[0])).of_functions:
        raise target_error(target, "is a function of the output; it has no other classes to compare with")
    finer = partial(get_finer_gradient, gamma=float(gamma), num_references=num_references)
    return grad_cam(model, input, target, saliency_layer, reduction, get_backward_gradient=finer, **options)


class ShapleyContext(RuleContext):
    r"""Send back :math:`dx - \frac{1}{2} H x`, with the score's Hessian H with respect to a layer's activation x.

    By an expansion at x, this is the gradient halfway between 0 and x. Each layer has its own Hessian.
    """

    carries = "relevance"

    def __init__(self) -> None:
        super().__init__(
            {F.scaled_dot_product_attention: Instead(lambda function, *args, **kwargs: attend(*args, **kwargs))}
        )

    def __enter__(self) -> "ShapleyContext":
        super().__enter__()
        self.ran += 1  # without attention, nothing to replace and nothing to warn of
        return self

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """The gradients, each minus half of the Hessian-vector product with the activation."""
        found: list[Tensor | None] = []
        with interruptible(), torch._C.DisableTorchFunction():
            for x in (x for x in tensors if isinstance(x, Tensor)):
                (dx,) = torch.autograd.grad(scores, x, gradient, create_graph=True, allow_unused=True)
                product = None  # where the gradient is constant
                if dx is not None and dx.requires_grad:
                    (product,) = torch.autograd.grad(dx, x, x.detach(), retain_graph=True, allow_unused=True)
                found.append(None if dx is None else dx.detach() - (0 if product is None else product / 2))
        return found


@typed
def shapley_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = positive_sum,
    context_builder: ContextBuilder = ShapleyContext,
    **options: Unpack[BackwardOptions],
) -> Maps:
    r"""ShapleyCAM: channels weighted by their mean gradient, minus a second-order correction.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \, \frac{1}{|V|} \sum_v (dx - \tfrac{1}{2} H x)_{ncv}\}

    with the score's Hessian H with respect to the activation: the Shapley values of a second-order expansion. Where
    the score is piecewise linear, as a logit of a ReLU network is, H is 0 and the map is Grad-CAM's. The paper
    explains ``lambda output: (output + output.log_softmax(1))[:, c]``, which has curvature. Other CAMs accept
    ``context_builder=ShapleyContext``. (N, 1, h, w), non-negative. Cai, CAMs as Shapley Value-based Explainers,
    2025. Options and errors: see :func:`saliency`.
    """
    return grad_cam(model, input, target, saliency_layer, reduction, context_builder=context_builder, **options)


def _grad_cam_plus_plus_of_means(x: Tensor, reduction: Reduction = positive_sum) -> Tensor:
    """Grad-CAM++ from the means of the gradient's powers."""
    first = gradient_of(x)
    second = gradient_of(first)
    third = gradient_of(second)
    alpha = safe_divide(second, 2 * second + sum_positions(x) * third)
    return reduced(x * sum_positions(alpha * first.relu()), reduction)


@typed
def smooth_grad_cam_plus_plus(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    n_samples: int = 25,
    stdevs: float | Sequence[float] = 0.15,
    seed: int = 0,
    reduction: Reduction = positive_sum,
    **options: Unpack[PathOptions],
) -> Maps:
    r"""Smooth Grad-CAM++: Grad-CAM++ with gradients averaged over noisy copies of the input.

    .. math:: s_{n1u} = \max\{0, \sum_c x_{ncu} \sum_v \alpha_{ncv} \max(0, \overline{dx}_{ncv})\}, \quad
              \alpha = \frac{\overline{dx^2}}{2 \overline{dx^2} + \overline{dx^3} \sum_w x_{ncw}}

    with means over ``n_samples`` inputs :math:`x + \epsilon_t`, and the activation of the clean input. The paper
    prints the first power in the numerator, which does not reduce to Grad-CAM++ without noise. ``stdevs`` is in the
    input's units. (N, 1, h, w), non-negative. Omeiza et al., Smooth Grad-CAM++, 2019. Options and errors: see
    :func:`saliency` and :func:`~saliency.engine.paths.noise`.
    """
    noise = paths.noise(n_samples, stdevs, seed, fold=folds.MOMENTS)
    to_map = reducing(_grad_cam_plus_plus_of_means, reduction)
    return saliency(model, input, target, saliency_layer, gradient_to_saliency=to_map, path=noise, **options)
