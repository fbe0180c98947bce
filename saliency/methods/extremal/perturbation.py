"""Perturbations of a tensor, graded by a mask, and smooth masks generated from a coarse grid of parameters."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from saliency.engine.checks import describe, is_int, is_number, shown
from saliency.engine.maps import imsmooth
from saliency.engine.state import full_precision

BLUR_PERTURBATION = "blur"
FADE_PERTURBATION = "fade"
PERTURBATIONS = (BLUR_PERTURBATION, FADE_PERTURBATION)
POOLING_METHODS = ("softmax", "sum", "sigmoid")

_COLDNESS = 20
_CPU_BLOCK = 2**18  # elements of a block of phases: small enough for a CPU's cache, large on other devices
_DEVICE_BLOCK = 2**24


class Perturbation:
    r"""A pyramid of increasingly perturbed images, from which a mask selects a level at every position.

    .. math:: y_l = g_{\sigma_l} \ast x, \; \sigma_l = \sigma_{\max} \left(1 - \tfrac{l}{L-1}\right)
              \quad \text{or} \quad y_l = \tfrac{l}{L-1} \, x

    for ``type='blur'`` (a Gaussian, zeros around the image) or ``'fade'``. ``input`` is (N, C, H, W), ``pyramid``
    (N * L, C, H, W) holds the L = ``num_levels`` levels of each image in turn; the last is the image itself.
    Raises ``ValueError`` for invalid arguments. Fong et al., ICCV 2019.

    >>> Perturbation(torch.ones(1, 1, 2, 2), num_levels=3, type='fade').apply(torch.full((1, 1, 2, 2), 0.25))[0, 0]
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]])
    """

    def __init__(
        self,
        input: Tensor,
        num_levels: int = 8,
        max_blur: float = 20,
        type: str = BLUR_PERTURBATION,  # noqa: A002 - TorchRay's name
    ) -> None:
        if not isinstance(input, Tensor) or not 3 <= input.ndim <= 5 or not input.is_floating_point():
            raise ValueError(
                f"input={describe(input)} is not a batch of images; expected a floating-point tensor (N, C, H, W), "
                "with one to three spatial axes."
            )
        check_perturbation("type", type, num_levels)
        if not is_number(max_blur) or max_blur <= 0:
            raise ValueError(f"max_blur={shown(max_blur)} is not a standard deviation; expected a number > 0.")
        self.type = type
        self.num_levels = num_levels
        last = num_levels - 1
        with torch.no_grad():
            if type == BLUR_PERTURBATION:
                levels = [imsmooth(input, max_blur * (last - level) / last) for level in range(num_levels)]
            else:
                levels = [input * (level / last) for level in range(num_levels)]
            self.pyramid = torch.stack(levels, 1).flatten(0, 1)

    def apply(self, mask: Tensor, images: Tensor | None = None) -> Tensor:
        """The perturbed images (B, C, H, W) of masks (B, 1, H, W) in [0, 1]: 1 keeps, 0 perturbs most.

        Levels are interpolated linearly. ``images`` is the image index of every mask, a LongTensor (B,); by
        default, an equal number of consecutive masks belongs to each image.
        """
        if images is None:
            count = len(self.pyramid) // self.num_levels
            if len(mask) % count:
                raise ValueError(
                    f"mask={tuple(mask.shape)} is not divisible among {count} images; expected a multiple "
                    "of their number."
                )
            images = torch.arange(count, device=mask.device).repeat_interleave(len(mask) // count)
        level = mask * (self.num_levels - 1)
        below = level.detach().nan_to_num().floor()  # NaN has no level, and stays NaN
        first = (images.to(mask.device) * self.num_levels).view(-1, *[1] * (mask.ndim - 1))
        size = (-1, self.pyramid.shape[1], *[-1] * (mask.ndim - 2))
        lower = self.pyramid.gather(0, (first + below.long()).expand(size))
        upper = self.pyramid.gather(0, (first + (below.long() + 1).clamp(max=self.num_levels - 1)).expand(size))
        return torch.lerp(lower, upper, level - below)

    def to(self, dev: torch.device | torch.dtype | Tensor | str) -> "Perturbation":
        """Move the pyramid to a device or dtype, as ``Tensor.to`` does; returns itself."""
        self.pyramid = self.pyramid.to(dev)
        return self


def check_perturbation(argument: str, type: object, num_levels: object) -> None:  # noqa: A002 - as above
    """Raise ``ValueError`` for an unknown perturbation or fewer than two levels."""
    if not (isinstance(type, str) and type in PERTURBATIONS):
        raise ValueError(f"{argument}={shown(type)} is not a perturbation; expected one of {', '.join(PERTURBATIONS)}.")
    if not is_int(num_levels) or num_levels < 2:
        raise ValueError(f"num_levels={shown(num_levels)} is not a number of levels; expected an int >= 2.")


def check_grid(step: object, sigma: object) -> None:
    """Raise ``ValueError`` for an invalid step or sigma of mask parameters."""
    if not is_number(step) or int(step) != step or step < 1:
        raise ValueError(f"step={shown(step)} is not a number of positions; expected an int >= 1.")
    if not is_number(sigma) or sigma <= 0:
        raise ValueError(f"sigma={shown(sigma)} is not a number of positions; expected a number > 0.")


class MaskGenerator:
    r"""Smooth masks from a coarse grid of parameters, one cell every ``step`` positions.

    .. math:: m_u = \operatorname{pool}_i \, k(\|u - u_i\| / \sigma) \, \bar m_i, \quad
              k(d) = e^{-2 \max(0, d - 1/2)^2}, \quad
              \operatorname{pool}_i z_i = \frac{\sum_i z_i e^{20 z_i}}{\sum_i e^{20 z_i}}

    over the window of cells around u: a smooth maximum. ``pooling_method`` ``'sum'`` sums instead, and
    ``'sigmoid'`` is :math:`1 / (1 + e^{3 - 20 \sum_i z_i})`. ``clamp`` keeps masks in [0, 1]. The mask of ``shape``
    is the centre of one of ``shape_out`` with a margin of ``sigma``; parameters have ``shape_in``. Fong et al.,
    ICCV 2019.

    >>> generator = MaskGenerator((14, 21), step=7, sigma=7)
    >>> generator.generate(torch.ones(2, 1, *generator.shape_in))[0].shape
    torch.Size([2, 1, 14, 21])
    """

    def __init__(
        self, shape: Sequence[int], step: int, sigma: float, clamp: bool = True, pooling_method: str = "softmax"
    ) -> None:
        check_grid(step, sigma)
        if not (isinstance(pooling_method, str) and pooling_method in POOLING_METHODS):
            raise ValueError(
                f"pooling_method={shown(pooling_method)} is not a method; expected one of {', '.join(POOLING_METHODS)}."
            )
        self.shape, self.step, self.sigma = tuple(shape), int(step), sigma
        self.clamp, self.pooling_method = clamp, pooling_method
        self.margin = sigma
        self.padding = 1 + math.ceil(2 * sigma / step)
        self.radius = 1 + math.ceil(sigma / step)
        self.shape_in = tuple(math.ceil(side / step) for side in self.shape)
        # Where sigma is not a multiple of step, TorchRay's grid may end before the image does.
        reach = [math.ceil((round(sigma) + side - 1) / step) + 1 for side in self.shape]
        inner = [side + 2 * (self.padding - self.radius) for side in self.shape_in]
        self.shape_mid = tuple(map(max, inner, reach))
        self.shape_up = tuple(self.step * side for side in self.shape_mid)
        self.shape_out = tuple(side - self.step + 1 for side in self.shape_up)
        self.weight = self._kernel(torch.float32)

    def _kernel(self, dtype: torch.dtype) -> Tensor:
        """Weights (step ** axes, window ** axes) by the phase of a position in its own cell and by the other cell."""
        phase = torch.arange(self.step, dtype=dtype, device="cpu")[:, None]
        cell = torch.arange(2 * self.radius + 1, device="cpu") - self.padding
        squared = (phase - (self.margin + self.step * cell)) ** 2
        axes, total = len(self.shape), torch.zeros((), device="cpu")
        for axis in range(axes):
            before, after = [1] * axis, [1] * (axes - axis - 1)
            total = total + squared.view(*before, self.step, *after, *before, len(cell), *after)
        distance = torch.sqrt(total) / self.sigma
        weight = torch.exp(-2 * (distance - 0.5).clamp(min=0) ** 2)
        return weight.view(self.step**axes, len(cell) ** axes)

    def generate(self, mask_in: Tensor) -> tuple[Tensor, Tensor]:
        """The masks ``(B, 1, *shape)``, and with their margin ``(…, *shape_out)``, of parameters ``(…, *shape_in)``."""
        if mask_in.shape[1:] != (1, *self.shape_in):
            raise ValueError(f"mask_in={tuple(mask_in.shape)} does not fit; expected (B, 1, *{self.shape_in}).")
        dtype = torch.promote_types(mask_in.dtype, torch.float32)
        window = 2 * self.radius + 1
        after = [
            mid + window - 1 - side - self.padding for mid, side in zip(self.shape_mid, self.shape_in, strict=True)
        ]
        with full_precision(mask_in.device):
            padded = F.pad(mask_in.to(dtype), [side for end in after[::-1] for side in (self.padding, end)])
            full = self._shuffle(self._pool(_windows(padded, window), self.weight.to(padded)))
        full = _part(full, 0, self.shape_out).to(mask_in.dtype)
        full = full.clamp(0, 1) if self.clamp else full
        return _part(full, round(self.margin), self.shape), full

    def _shuffle(self, pooled: Tensor) -> Tensor:
        """Positions (B, phases, cells) in spatial order: the phases of a cell side by side, along every axis."""
        axes = len(self.shape)
        grid = pooled.view(-1, *[self.step] * axes, *self.shape_mid)
        order = [axis for phase in range(1, axes + 1) for axis in (phase + axes, phase)]
        return grid.permute(0, *order).reshape(-1, 1, *self.shape_up)

    def _pool(self, cells: Tensor, weight: Tensor) -> Tensor:
        if self.pooling_method == "softmax":
            pooled: Tensor = _SmoothMaximum.apply(cells, weight)
            return pooled
        total = weight @ cells
        return total if self.pooling_method == "sum" else torch.sigmoid(_COLDNESS * total - 3)

    def to(self, dev: torch.device | torch.dtype | Tensor | str) -> "MaskGenerator":
        """Move the weights to a device or dtype, as ``Tensor.to`` does; returns itself."""
        moved = self.weight.to(dev)
        self.weight = self._kernel(torch.promote_types(moved.dtype, torch.float32)).to(moved.device)
        return self


def _part(masks: Tensor, first: int, shape: Sequence[int]) -> Tensor:
    """The part of masks (B, 1, ...) of a given shape that starts at the same position of every axis."""
    for axis, side in enumerate(shape, 2):
        masks = masks.narrow(axis, first, side)
    return masks


def _windows(padded: Tensor, window: int) -> Tensor:
    """The cells (B, window ** axes, L) around each of L positions of tensors (B, 1, ...)."""
    if padded.ndim == 4:
        return F.unfold(padded, window)
    axes = padded.ndim - 2
    around = padded[:, 0]
    for axis in range(1, axes + 1):
        around = around.unfold(axis, window, 1)
    return around.flatten(1, axes).flatten(2).mT.contiguous()


class _SmoothMaximum(torch.autograd.Function):
    r"""The smooth maximum :math:`m_p = \sum_k z e^{20 z} / \sum_k e^{20 z}, \; z = w_{pk} c_k` of (B, K, L) cells.

    .. math:: \frac{\partial m_p}{\partial c_k} = w_{pk} \frac{e^{20 z}}{\sum_j e^{20 z_j}} (1 + 20 (z - m_p))

    (B, P, L). The K * P products per position are computed in blocks, and again in the backward pass: stored, they
    would need hundreds of megabytes.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, cells: Tensor, weight: Tensor) -> Tensor:
        mask = cells.new_empty(len(cells), len(weight), cells.shape[2])
        inverse = torch.empty_like(mask)
        for block, z, y in _blocks(cells, weight):
            torch.mul(cells[:, None], weight[block, :, None], out=z)
            # TorchRay's order of operations: where masks tie, as at the start of a search, rounding decides.
            share = torch.softmax(torch.mul(z, _COLDNESS, out=y), 2)
            torch.div(share[:, :, 0], y[:, :, 0].exp(), out=inverse[:, block])
            torch.sum(share.mul_(z), 2, out=mask[:, block])
        ctx.save_for_backward(cells, weight, mask, inverse)
        return mask

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        cells, weight, mask, inverse = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = gradient * inverse
        constant = slope * (1 - _COLDNESS * mask)
        result = torch.zeros_like(cells)
        for block, y, exponential in _blocks(cells, weight):
            torch.mul(cells[:, None], _COLDNESS * weight[block, :, None], out=y)
            torch.exp(y, out=exponential)
            torch.addcmul(constant[:, block, None], slope[:, block, None], y, out=y).mul_(exponential)
            for per_phase, w in zip(y.unbind(1), weight[block], strict=True):
                result.addcmul_(per_phase, w[:, None])
        return result, None


def _blocks(cells: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of phases, each with two reused buffers (B, phases, K, L)."""
    largest = _CPU_BLOCK if cells.device.type == "cpu" else _DEVICE_BLOCK
    size = min(len(weight), max(1, largest // max(1, cells.numel())))
    first, second = (cells.new_empty(len(cells), size, *cells.shape[1:]) for _ in range(2))
    for start in range(0, len(weight), size):
        phases = min(size, len(weight) - start)
        yield slice(start, start + phases), first[:, :phases], second[:, :phases]
