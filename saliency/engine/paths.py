"""Paths: the points at which gradients are taken.

A path has T steps, each a point and a weight. ``line(0.0, n_steps=2, method="riemann_trapezoid")`` for an input x is
the points 0 and x, each of weight 1/2: the gradient at the input becomes (f'(0) + f'(x)) / 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import check_count, check_seed, is_number, shown
from saliency.engine.folds import MEAN, SHAP, Fold
from saliency.engine.state import make_generator, on_device, rows_at

Baselines: TypeAlias = "float | Tensor | Sequence[float | Tensor] | None"

METHODS = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid")


class Rows(NamedTuple):
    """Points of paths, and the start and end of each point's path: one tensor (B, ...) for each input that moves."""

    points: list[Tensor]
    starts: list[Tensor]
    ends: list[Tensor]


# walk(samples, steps) -> the points of these samples at these steps, both LongTensors (B,); called in order
Walk: TypeAlias = Callable[[Tensor, Tensor], Rows]


@dataclass(frozen=True)
class Path:
    """The points at which gradients are taken: T steps with their ``weights``, and the ``fold`` over them.

    ``begin(ends, starts)`` returns the walk to tensors ``ends`` (N, ...), from ``starts`` if the path has
    ``baselines``. ``at_layer``: the path is one of the layer's activation, not of the input. ``times``: gradients are
    multiplied by the ``'activation'``, by its ``'displacement'`` from the start, or by ``'nothing'``. ``spans`` is the
    number of different pairs of start and end: each step has its own, or with 1 all have the same, or with ``None``
    there are none.
    """

    begin: Callable[[Sequence[Tensor], Sequence[Tensor] | None], Walk]
    weights: Tensor
    fold: Fold = MEAN
    at_layer: bool = False
    times: str = "activation"
    baselines: Baselines = 0.0
    spans: int | None = None

    @property
    def is_one_pass(self) -> bool:
        """Does the attribution take a single pass of the model, if all samples are in it?"""
        return len(self.weights) == 1 and self.fold.attribution and not self.at_layer

    @property
    def displaces(self) -> bool:
        """Are gradients multiplied by a displacement? Then they have to be derivatives."""
        return self.times == "displacement" or self.fold.moves or self.fold.overlap == 1

    def unscaled(self) -> "Path":
        """The path of a method that does not multiply by the inputs."""
        return replace(self, times="nothing", fold=replace(self.fold, moves=False))


def quadrature(n_steps: int, method: str) -> tuple[Tensor, Tensor]:
    r"""Nodes in [0, 1] and weights that sum to 1, in float64 on the CPU: :math:`\int_0^1 f \approx \sum_t w_t f(a_t)`.

    Gauss-Legendre nodes are the eigenvalues of the Jacobi matrix of the Legendre polynomials (Golub and Welsch).

    >>> quadrature(3, "riemann_trapezoid")[1].tolist()
    [0.25, 0.5, 0.25]
    """
    check_count("n_steps", n_steps)
    if not (isinstance(method, str) and method in METHODS):
        raise ValueError(f"method={shown(method)} is not a quadrature; expected one of {', '.join(METHODS)}.")
    at = torch.arange(n_steps, dtype=torch.float64, device="cpu")
    if method == "gausslegendre":
        k = at[1:]
        off = torch.diag(k / (4 * k**2 - 1).sqrt(), 1)
        nodes, vectors = torch.linalg.eigh(off + off.T)
        return (nodes + 1) / 2, vectors[0].square()
    if method == "riemann_trapezoid":
        if n_steps < 2:
            raise ValueError(f"n_steps={n_steps!r} is not enough for riemann_trapezoid; expected an int >= 2.")
        ends = (at == 0) | (at == n_steps - 1)
        return at / (n_steps - 1), torch.where(ends, 0.5, 1.0).double() / (n_steps - 1)
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
    return (at + shift) / n_steps, torch.full_like(at, 1 / n_steps)


def starts_of(baselines: Baselines, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The baselines of a path in the shape of its inputs: a number or a tensor of batch 1 or N for all, or one per
    input.

    >>> [start.tolist() for start in starts_of((0.5, None), [torch.ones(1, 2), torch.ones(1, 1)])]
    [[[0.5, 0.5]], [[0.0]]]
    """
    each = list(baselines) if isinstance(baselines, (tuple, list)) else [baselines] * len(inputs)
    if len(each) != len(inputs):
        raise ValueError(f"baselines={len(each)} tensors do not match; expected one for each of {len(inputs)} inputs.")
    found = []
    for baseline, x in zip(each, inputs, strict=True):
        if baseline is None or is_number(baseline):
            value = x.new_full((), float(baseline or 0))
        elif isinstance(baseline, Tensor) and baseline.shape[1:] == x.shape[1:] and len(baseline) in (1, len(x)):
            value = baseline.detach()
        else:
            raise ValueError(
                f"baselines={shown(baseline)} is not a baseline of an input of shape {tuple(x.shape)}; expected "
                "a number, or a tensor of its shape with a batch size of 1 or the input's."
            )
        found.append(on_device(value, x.device, x.dtype).expand_as(x))
    return found


def _column(values: Tensor, x: Tensor) -> Tensor:
    return on_device(values, x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))


def line(
    baselines: Baselines = None,
    n_steps: int = 50,
    method: str = "gausslegendre",
    *,
    fold: Fold = MEAN,
    at_layer: bool = False,
    times: str = "activation",
) -> Path:
    r"""The straight line from the baselines to the input: :math:`x' + \alpha_t (x - x')`.

    ``method`` is the quadrature, one of :data:`METHODS`. A fold that needs each step's successor gets one more point.
    Raises ``ValueError`` for an unknown method, or ``n_steps`` < 1.
    """
    check_count("n_steps", n_steps)
    alphas, weights = quadrature(n_steps + (fold.overlap or 0), method)

    def begin(ends: Sequence[Tensor], starts: Sequence[Tensor] | None) -> Walk:
        first = starts_of(baselines, ends) if starts is None else starts

        def walk(samples: Tensor, steps: Tensor) -> Rows:
            a, b = ([rows_at(x, samples) for x in tensors] for tensors in (first, ends))
            points = [x + _column(alphas[steps], x) * (y - x) for x, y in zip(a, b, strict=True)]
            return Rows(points, a, b)

        return walk

    return Path(begin, weights, fold, at_layer, times, baselines, spans=1)


def noise(
    n_samples: int = 25,
    stdevs: float | Sequence[float] = 0.15,
    seed: int = 0,
    *,
    fold: Fold = MEAN,
    times: str = "activation",
) -> Path:
    r"""Gaussian noise around the input: :math:`x + \epsilon_t`, with standard deviations in the input's own units.

    The noise has its own generator and depends on the step alone: it is the same for all samples and any chunks.
    """
    draw = _noise(n_samples, stdevs, seed)

    def begin(ends: Sequence[Tensor], starts: Sequence[Tensor] | None) -> Walk:
        add = draw(ends)
        return lambda samples, steps: Rows(add(samples, steps), [], [])

    return Path(begin, _equal_weights(n_samples), fold, times=times)


def between(
    baselines: Tensor | Sequence[Tensor],
    n_samples: int = 5,
    stdevs: float | Sequence[float] = 0.0,
    seed: int = 0,
    *,
    fold: Fold = SHAP,
) -> Path:
    r"""Random points between baselines and noisy inputs: :math:`\alpha_t (x + \epsilon_t) + (1 - \alpha_t) x'_t`.

    ``baselines`` holds a distribution (M, ...) for each input, of which each step draws one; :math:`\alpha` is uniform.
    As in :func:`noise`, draws depend on the step alone. Raises ``ValueError`` for an invalid distribution.
    """
    listed = _distributions(baselines)
    draw = _noise(n_samples, stdevs, seed)
    generator = torch.Generator().manual_seed(int(seed))
    alphas = torch.rand(n_samples, generator=generator, dtype=torch.float64, device="cpu")
    chosen = [torch.randint(len(b), (n_samples,), generator=generator, device="cpu") for b in listed]

    def begin(ends: Sequence[Tensor], starts: Sequence[Tensor] | None) -> Walk:
        _check_distributions(listed, ends, baselines)
        add = draw(ends)

        def walk(samples: Tensor, steps: Tensor) -> Rows:
            a = [_drawn(b, at[steps], x) for b, at, x in zip(listed, chosen, ends, strict=True)]
            b = add(samples, steps)
            points = [x + _column(alphas[steps], x) * (y - x) for x, y in zip(a, b, strict=True)]
            return Rows(points, a, b)

        return walk

    return Path(begin, _equal_weights(n_samples), fold, spans=n_samples)


def from_each(baselines: Tensor | Sequence[Tensor], *, fold: Fold = SHAP) -> Path:
    """The paths from each of M baselines to the input: ``baselines`` holds a distribution (M, ...) for each input."""
    listed = _distributions(baselines)
    counts = sorted({len(b) for b in listed})
    if len(counts) > 1:
        raise ValueError(f"baselines={counts} differ in number between inputs; expected equally many for each.")
    count = max(counts, default=1)

    def begin(ends: Sequence[Tensor], starts: Sequence[Tensor] | None) -> Walk:
        _check_distributions(listed, ends, baselines)

        def walk(samples: Tensor, steps: Tensor) -> Rows:
            b = [rows_at(x, samples) for x in ends]
            return Rows(b, [_drawn(of, steps, x) for of, x in zip(listed, ends, strict=True)], b)

        return walk

    return Path(begin, _equal_weights(count), fold, spans=count)


def _distributions(baselines: object) -> list[Tensor]:
    listed = [*baselines] if isinstance(baselines, (tuple, list)) else [baselines]
    found = [b for b in listed if isinstance(b, Tensor) and b.ndim and len(b)]
    if len(found) < len(listed):
        raise _distribution_error(baselines)
    return found


def _check_distributions(listed: Sequence[Tensor], inputs: Sequence[Tensor], baselines: object) -> None:
    if [b.shape[1:] for b in listed] != [x.shape[1:] for x in inputs]:
        raise _distribution_error(baselines)


def _distribution_error(baselines: object) -> ValueError:
    listed = baselines if isinstance(baselines, (tuple, list)) else [baselines]
    given = ", ".join(map(shown, listed)) or "()"
    return ValueError(f"baselines={given} is not a distribution of baselines; expected a tensor (M, ...) per input.")


def _drawn(distribution: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """Some entries of a distribution, on the device and in the precision of ``x``."""
    return on_device(rows_at(distribution.detach(), index), x.device, x.dtype)


def _equal_weights(count: int) -> Tensor:
    return torch.full((count,), 1 / count, dtype=torch.float64, device="cpu")


def _noise(
    n_samples: int, stdevs: float | Sequence[float], seed: int
) -> Callable[[Sequence[Tensor]], Callable[[Tensor, Tensor], list[Tensor]]]:
    """A function that adds noise to samples of the inputs, drawn step by step so that chunks do not change it."""
    check_count("n_samples", n_samples)
    check_seed(seed)
    listed: list[Any] = [*stdevs] if isinstance(stdevs, (tuple, list)) else [stdevs]
    if not listed or not all(is_number(value) and float(value) >= 0 for value in listed):
        raise ValueError(f"stdevs={shown(stdevs)} is not a standard deviation; expected one >= 0, or one per input.")

    def draw(inputs: Sequence[Tensor]) -> Callable[[Tensor, Tensor], list[Tensor]]:
        each = listed if isinstance(stdevs, (tuple, list)) else listed * len(inputs)
        if len(each) != len(inputs):
            raise ValueError(f"stdevs={shown(stdevs)} does not match; expected one for each of {len(inputs)} inputs.")
        generators = [make_generator(x.device, seed + 1 + i) for i, x in enumerate(inputs)]

        def add(samples: Tensor, steps: Tensor) -> list[Tensor]:
            noisy = []
            for i, (x, deviation) in enumerate(zip(inputs, each, strict=True)):
                drawn = []
                for step in steps.tolist() if deviation else ():
                    if step == 0:
                        generators[i] = make_generator(x.device, seed + 1 + i)
                    like = torch.empty(x.shape[1:], dtype=torch.float32, device=x.device)  # the same in any precision
                    drawn.append(like.normal_(generator=generators[i]))
                rows = rows_at(x, samples)
                noisy.append(rows + deviation * torch.stack(drawn).to(x.dtype) if deviation else rows)
            return noisy

        return add

    return draw
