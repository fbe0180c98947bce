"""The search for masks: gradient ascent on a reward, with a growing weight on the area, for many masks at once."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import check_count, check_flag, check_seed, is_number, shown
from saliency.engine.interrupts import interruptible
from saliency.engine.state import on_device, rows_at
from saliency.methods.extremal.perturbation import MaskGenerator, Perturbation, check_grid, check_perturbation

PRESERVE_VARIANT = "preserve"
DELETE_VARIANT = "delete"
DUAL_VARIANT = "dual"
VARIANTS = (PRESERVE_VARIANT, DELETE_VARIANT, DUAL_VARIANT)

# reward(tensors, rows) -> (len(rows),): perturbed tensors of these rows of the search, two of each for 'dual'
Reward: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_LEARNING_RATE, _MOMENTUM = 0.01, 0.9
_AREA_WEIGHT, _AREA_GROWTH = 300, 1.0035
_CHECK_EVERY = 10  # iterations between two checks of convergence, each of which waits for the device


class Search(NamedTuple):
    """The options of the search."""

    perturbation: str
    max_iter: int
    num_levels: int
    step: int
    sigma: float
    jitter: bool
    variant: str
    seed: int | None
    tolerance: float

    def check(self) -> None:
        """Raise ``ValueError`` for invalid options."""
        check_perturbation("perturbation", self.perturbation, self.num_levels)
        check_grid(self.step, self.sigma)
        check_flag("jitter", self.jitter)
        check_variant(self.variant)
        check_count("max_iter", self.max_iter)
        if self.seed is not None:
            check_seed(self.seed)
        if not is_number(self.tolerance) or self.tolerance < 0:
            raise ValueError(f"tolerance={shown(self.tolerance)} is not a valid tolerance; expected a number >= 0.")

    def flips(self) -> list[bool]:
        """Whether the perturbed tensors are flipped, per iteration: every second, or at random with a seed."""
        if not self.jitter or self.seed is None:
            return [self.jitter and t % 2 == 0 for t in range(self.max_iter)]
        generator = torch.Generator().manual_seed(int(self.seed))
        drawn = torch.rand(self.max_iter, generator=generator, device="cpu", dtype=torch.float32) < 0.5
        flips: list[bool] = drawn.tolist()
        return flips


def check_variant(variant: object) -> None:
    """Raise ``ValueError`` for an unknown variant."""
    if not (isinstance(variant, str) and variant in VARIANTS):
        raise ValueError(f"variant={shown(variant)} is not a variant; expected one of {', '.join(VARIANTS)}.")


class _Rows(NamedTuple):
    """The rows that have not converged."""

    number: Tensor
    image: Tensor
    reference: Tensor  # the sorted mask of the requested area
    parameters: Tensor
    velocity: Tensor
    moved: Tensor  # the largest step of a parameter since the last check

    def take(self, index: Tensor) -> "_Rows":
        return _Rows(*(rows_at(tensor, index) for tensor in self))


def _start(images: Sequence[int], areas: Sequence[float], generator: MaskGenerator, like: Tensor) -> _Rows:
    positions = math.prod(generator.shape_out)
    low = torch.tensor([int(positions * (1 - area)) for area in areas], device=like.device)
    parameters = like.new_ones(len(areas), 1, *generator.shape_in)
    return _Rows(
        torch.arange(len(areas), device="cpu"),
        torch.tensor(images, device="cpu"),
        (torch.arange(positions, device=like.device) >= low[:, None]).to(like.dtype),
        parameters,
        torch.zeros_like(parameters),
        like.new_zeros(len(areas)),
    )


def find_masks(
    x: Tensor,
    images: Sequence[int],
    areas: Sequence[float],
    reward: Reward,
    search: Search,
    report: Callable[[int, Tensor], object] | None = None,
    watched: Callable[[], list[Tensor]] = list,
) -> tuple[Tensor, Tensor]:
    """Masks (R, 1, h, w) for tensors (N, C, h, w), and energies (R, 2, ``max_iter``): reward and area term.

    Row r has the image ``images[r]`` and the area ``areas[r]``. ``report(iteration, energies)`` is given the (R, 2)
    energies. The tensors that ``watched()`` returns after an evaluation receive their gradient. In float32 or
    wider.
    """
    like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
    generator = MaskGenerator(x.shape[2:], search.step, search.sigma).to(like)
    pyramid = Perturbation(x.to(like), search.num_levels, type=search.perturbation)
    rows = _start(images, areas, generator, like)
    masks = like.new_empty(len(areas), 1, *x.shape[2:])
    energies = like.new_empty(len(areas), 2, search.max_iter)
    for t, flip in enumerate(search.flips()):
        rows.parameters.requires_grad_()
        with torch.enable_grad():
            mask, full = generator.generate(rows.parameters)
            perturbed = _perturb(pyramid, mask, rows.image, search.variant).to(x.dtype)
            rewards = reward(perturbed.flip(-1) if flip else perturbed, rows.number)
            sorted_mask = full.flatten(1).sort(dim=1)[0]  # as in TorchRay: the order of ties steers the start
            area = (sorted_mask - rows.reference).square().mean(1) * -(_AREA_WEIGHT * _AREA_GROWTH**t)
            gradient = _differentiate((rewards + area).sum(), rows.parameters, watched())
        at = on_device(rows.number, x.device)
        energies[at, :, t] = torch.stack([rewards, area], 1).detach()
        if report is not None:
            with interruptible():
                report(t, energies[:, :, t].clone())
        masks[at] = mask.detach()
        rows = _climb(rows, gradient, first=t == 0)
        if search.tolerance and (t + 1) % _CHECK_EVERY == 0:
            rows = _let_go(rows, energies, t, search.tolerance)
            if not len(rows.number):
                break
    return masks, energies


def _perturb(pyramid: Perturbation, mask: Tensor, images: Tensor, variant: str) -> Tensor:
    if variant == DUAL_VARIANT:
        return pyramid.apply(torch.cat([mask, 1 - mask]), images.repeat(2))
    return pyramid.apply(mask if variant == PRESERVE_VARIANT else 1 - mask, images)


def _differentiate(energy: Tensor, parameters: Tensor, watched: list[Tensor]) -> Tensor:
    with interruptible():
        gradient, *others = torch.autograd.grad(energy, [parameters, *watched], allow_unused=True)
    for x, dx in zip(watched, others, strict=True):
        x.grad = dx
    return gradient


def _climb(rows: _Rows, gradient: Tensor, first: bool) -> _Rows:
    """One step of gradient ascent with momentum; dampening starts at the second step, as in ``torch.optim.SGD``."""
    velocity = gradient if first else _MOMENTUM * rows.velocity + (1 - _MOMENTUM) * gradient
    before = rows.parameters.detach()
    parameters = (before + _LEARNING_RATE * velocity).clamp(0, 1)
    moved = torch.maximum(rows.moved, (parameters - before).abs().flatten(1).amax(1))
    return rows._replace(parameters=parameters, velocity=velocity, moved=moved)


def _let_go(rows: _Rows, energies: Tensor, t: int, tolerance: float) -> _Rows:
    """The rows that still move; converged rows keep their last energy."""
    calm = (rows.moved < tolerance).cpu()
    done = rows.number[calm].to(energies.device)
    energies[done, :, t + 1 :] = energies[done, :, t : t + 1]
    return rows._replace(moved=torch.zeros_like(rows.moved)).take((~calm).nonzero().flatten())
