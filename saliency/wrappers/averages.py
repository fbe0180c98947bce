"""Averages over noisy copies of the input."""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from saliency.engine.call import check_inputs
from saliency.engine.checks import check_seed, is_number, is_positive_int, shown
from saliency.wrappers.wrapping import Method, as_precise, check_method, refuse_probes, wide

# The terms to sum over the samples, of a map and the first sample's map; and the result, of the means of the terms.
_Terms = Callable[[Tensor, Tensor], list[Tensor]]
_POWERS: dict[str, tuple[_Terms, Callable[..., Tensor]]] = {
    "mean": (lambda s, first: [s], lambda mean: mean),
    "squared": (lambda s, first: [s.square()], lambda mean: mean),
    "variance": (lambda s, first: [s - first, (s - first).square()], lambda mean, square: square - mean.square()),
}


def smooth_grad(method: Method, n_samples: int = 25, sigma: float = 0.15, seed: int = 0, power: str = "mean") -> Method:
    r"""SmoothGrad: the method averaged over noisy copies of the input.

    .. math:: s(x) = \frac{1}{n} \sum_{i=1}^n \mathrm{method}(x + \epsilon_i), \quad
              \epsilon_i \sim N(0, \sigma^2 (\max x - \min x)^2)

    ``sigma`` is a fraction of each image's range of values. ``power`` may be ``'squared'``, the mean of the squared
    maps, or ``'variance'`` (VarGrad). The noise has its own random generator: equal seeds give equal maps, and the
    global random state is unchanged. Every sample costs one call; memory does not grow with ``n_samples``. Smilkov
    et al., SmoothGrad, 2017. Raises ``ValueError`` for fewer than one sample or a negative sigma.

    >>> smooth_grad(lambda model, x, target: x, n_samples=2, sigma=0)(None, torch.ones(1, 3), 0)
    tensor([[1., 1., 1.]])
    """
    check_method(method, "smooth_grad")
    check_seed(seed)
    if not is_positive_int(n_samples):
        raise ValueError(f"n_samples={shown(n_samples)} is not a number of samples; expected an int >= 1.")
    if not is_number(sigma) or sigma < 0:
        raise ValueError(f"sigma={shown(sigma)} is not a fraction of the input's range; expected a number >= 0.")
    if not (isinstance(power, str) and power in _POWERS):
        raise ValueError(f"power={shown(power)} is not a valid power; expected one of {', '.join(_POWERS)}.")
    terms, finish = _POWERS[power]

    @wraps(method)
    def smoothed(model: Any, input: Any, *args: Any, **options: Any) -> Any:
        refuse_probes(options)
        inputs = check_inputs(input)
        generator = torch.Generator(inputs[0].device).manual_seed(int(seed))
        first: list[Tensor] = []
        totals: list[list[Tensor]] = []
        for _ in range(n_samples):
            noisy = [_add_noise(tensor, sigma, generator) for tensor in inputs]
            result = method(model, noisy[0] if isinstance(input, Tensor) else tuple(noisy), *args, **options)
            leaves, form = tree_flatten(result)
            values = [wide(leaf) for leaf in leaves]
            first = first or values
            added = [terms(*pair) for pair in zip(values, first, strict=True)]
            totals = [list(map(torch.add, *pair)) for pair in zip(totals, added, strict=True)] if totals else added
        means = [finish(*(total / n_samples for total in of_leaf)) for of_leaf in totals]
        return tree_unflatten([as_precise(*pair) for pair in zip(means, leaves, strict=True)], form)

    return cast(Method, smoothed)


def _add_noise(tensor: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.detach()
    per_image = tuple(range(1, tensor.ndim))
    spread = sigma * (tensor.amax(per_image, keepdim=True) - tensor.amin(per_image, keepdim=True))
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
    return tensor + spread * noise
