"""Localisation: does the map find the object? Every function gives one result per case."""

import math
import reprlib
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saliency.engine.checks import check_maps_type, check_tensor, check_type, is_number, is_positive_int, shown
from saliency.engine.maps import safe_divide
from saliency.evaluation.metrics.components import sweep

Thresholds: TypeAlias = Sequence[float] | Tensor
THRESHOLDS = tuple(step / 100 for step in range(100))  # those of the WSOL protocol


def saliency_points(saliency: Tensor) -> Tensor:
    """The (x, y) pixel where each (N, 1, H, W) map is largest, as an (N, 2) LongTensor; the first one of equals.

    Raises ``ValueError`` for another shape and for a map that holds NaN.

    >>> saliency_points(torch.tensor([[[[0.0, 3.0], [1.0, 2.0]]]]))
    tensor([[1, 0]])
    """
    _check_maps(saliency)
    index = saliency.flatten(1).argmax(1)
    width = saliency.shape[3]
    return torch.stack((index % width, index.div(width, rounding_mode="floor")), 1)


def points_hit(points: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    r"""Does the closed disc of radius ``tolerance`` pixels around each point touch the object?

    .. math:: h_n = [\min_{u: m_{nu} = 1} \|u - p_n\| \le \mathrm{tolerance}]

    ``points`` is (N, 2) as (x, y), ``masks`` (N, H, W) bool with at least one pixel each; the result is (N,) bool.
    Raises ``ValueError`` for a mask without a pixel: an image without the class is not a case.

    >>> mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    >>> mask[0, 0, 20] = True
    >>> points_hit(torch.tensor([[5, 0]]), mask), points_hit(torch.tensor([[4, 0]]), mask)
    (tensor([True]), tensor([False]))
    """
    check_tensor("points", points)
    check_tensor("masks", masks)
    if masks.ndim != 3 or masks.dtype != torch.bool or points.shape != (len(masks), 2):
        raise ValueError(
            f"masks={tuple(masks.shape)} of {masks.dtype} do not fit points of shape {tuple(points.shape)}; "
            "expected bool masks (N, H, W) and points (N, 2)."
        )
    _check_not_empty(masks)
    height, width = masks.shape[1:]
    reach = _squared_reach(tolerance, masks)
    x = torch.arange(width, device=masks.device)
    y = torch.arange(height, device=masks.device)
    squared = (x - points[:, :1])[:, None, :] ** 2 + (y - points[:, 1:])[:, :, None] ** 2
    return (masks & (squared <= reach)).flatten(1).any(1)


def _squared_reach(tolerance: object, masks: Tensor) -> int:
    """The largest squared distance of two pixels within the tolerance; beyond the image it makes no difference."""
    if not is_number(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance={shown(tolerance)} is not a radius in pixels; expected a number >= 0.")
    return int(min(tolerance, sum(masks.shape[1:])) ** 2)


def _dilated(masks: Tensor, reach: int) -> Tensor:
    """The pixels (N, H, W) within a distance of the root of ``reach`` from a pixel of the mask."""
    height, width = masks.shape[1:]
    before = F.pad(masks.cumsum(2), (1, 0))  # how many of the row's pixels stand before each, all of them at the end
    x = torch.arange(width, device=masks.device)
    near = torch.zeros_like(masks)
    for dy in range(min(height - 1, math.isqrt(reach)) + 1):
        dx = math.isqrt(reach - dy * dy)
        row = before[..., (x + dx + 1).clamp(max=width)] > before[..., (x - dx).clamp(min=0)]
        near[:, dy:] |= row[:, : height - dy]
        near[:, : height - dy] |= row[:, dy:]
    return near


def pointing_game(saliency: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    r"""The pointing game: is the map's maximum on the object, or at most ``tolerance`` pixels away from it?

    .. math:: h_n = \frac{|\{u \in U_n : d(u, m_n) \le \mathrm{tolerance}\}|}{|U_n|}, \quad
              U_n = \arg\max_u s_{nu}

    ``saliency`` is (N, 1, H, W) at the size of the ``masks``, (N, H, W) bool; the result is (N,): 1 for a hit, 0 for
    a miss, and where several pixels are largest the chance that one of them, drawn at random, hits. A constant map has
    that of a random pixel. The mean over the cases of a class is its accuracy; a class without cases has none.
    Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018.
    Raises ``ValueError`` for shapes that differ, an empty mask and NaN.

    >>> pointing_game(torch.tensor([[[[0.0, 2.0, 2.0]]]]), torch.tensor([[[True, False, False]]]), tolerance=1)
    tensor([0.5000])
    """
    _check_size(saliency, masks)
    hits = points_hit(saliency_points(saliency), masks, tolerance).float()
    largest = (saliency == saliency.amax((2, 3), keepdim=True))[:, 0]
    several = largest.sum((1, 2)) > 1
    if several.any():
        largest, near = largest[several], _dilated(masks[several], _squared_reach(tolerance, masks))
        hits[several] = (largest & near).sum((1, 2)) / largest.sum((1, 2))
    return hits


def energy_pointing_game(saliency: Tensor, masks: Tensor) -> Tensor:
    r"""The share of the map's energy that is on the object, (N,) in [0, 1].

    .. math:: e_n = \frac{\sum_u m_{nu} \max(0, s_{nu})}{\sum_u \max(0, s_{nu})}

    ``saliency`` is (N, 1, H, W) at the size of the ``masks``, (N, H, W) bool. Negative values have no energy. A map
    without a positive value scores 0: it has nothing on the object.
    Wang et al., Score-CAM, CVPR workshop 2020. Raises ``ValueError`` as :func:`pointing_game`.

    >>> energy_pointing_game(torch.tensor([[[[3.0, 1.0, -5.0]]]]), torch.tensor([[[True, False, False]]]))
    tensor([0.7500])
    """
    _check_maps_and_masks(saliency, masks)
    energy = _wide(saliency[:, 0]).relu()
    energy = safe_divide(energy, energy.amax((1, 2), keepdim=True))  # so that no sum overflows
    return safe_divide((energy * masks).sum((1, 2)), energy.sum((1, 2)))


def mask_iou(saliency: Tensor, masks: Tensor, thresholds: Thresholds = THRESHOLDS) -> Tensor:
    r"""Intersection over union (N, T) of the object and the part of the map that reaches each threshold.

    .. math:: \frac{|\{u: s_{nu} \ge \tau_t\} \cap m_n|}{|\{u: s_{nu} \ge \tau_t\} \cup m_n|}

    Each map (N, 1, H, W) is shifted and scaled to [0, 1]; a constant one becomes 0. ``masks`` is (N, H, W) bool.
    Raises ``ValueError`` as :func:`pointing_game`, and for ``thresholds`` that are not numbers from 0 to 1.

    >>> mask_iou(torch.tensor([[[[0.0, 1.0, 4.0]]]]), torch.tensor([[[False, True, True]]]), [0, 0.1, 0.9])
    tensor([[0.6667, 1.0000, 0.5000]])
    """
    _check_maps_and_masks(saliency, masks)
    levels, order = _levels(saliency, thresholds)
    cells = len(order) + 1
    place = levels + cells * torch.arange(len(levels), device=levels.device)[:, None, None]
    # A threshold is reached by the pixels of its level and of all higher ones.
    predicted, common = (
        pixels.bincount(minlength=len(levels) * cells).view(-1, cells).flip(1).cumsum(1).flip(1)[:, 1:]
        for pixels in (place.flatten(), place[masks])
    )
    ious = common.to(_wide(saliency).dtype) / (predicted + masks.sum((1, 2))[:, None] - common)
    return torch.empty_like(ious).index_copy_(1, order, ious)


def box_iou(
    saliency: Tensor, boxes: Sequence[Tensor], thresholds: Thresholds = THRESHOLDS, components: str = "largest"
) -> Tensor:
    r"""Intersection over union (N, T) of an object's box and the box around the map above each threshold.

    Each map (N, 1, H, W) is shifted and scaled to [0, 1]; a constant one becomes 0. Of its 8-connected parts with
    :math:`s \ge \tau`, the one with most pixels counts (MaxBoxAcc; of equal ones the better), or with
    ``components='all'`` the best (MaxBoxAccV2). ``boxes`` holds for each map the (K, 4) boxes x0, y0, x1, y1 of all
    objects, half-open in pixels; the best of them counts. Where nothing reaches the threshold it is 0.
    Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020; V2: TPAMI 2022.
    Raises ``ValueError`` for a map without a box, ``thresholds`` that are not numbers from 0 to 1, NaN.

    >>> box_iou(torch.tensor([[[[0.0, 1.0, 4.0, 0.0, 3.0]]]]), [torch.tensor([[1, 0, 4, 1]])], [0.0, 0.2, 0.9])
    tensor([[0.6000, 0.6667, 0.3333]])
    """
    _check_maps(saliency)
    _check_boxes(saliency, boxes)
    if not isinstance(components, str) or components not in ("largest", "all"):
        raise ValueError(f"components={shown(components)} is unknown; expected 'largest' or 'all'.")
    levels, order = _levels(saliency, thresholds)
    ious = _wide(saliency).new_zeros(len(order), len(saliency))
    truth = pad_sequence([box.to(ious) for box in boxes], batch_first=True)  # a box without a pixel has IoU 0
    for column, found in zip(order.flip(0).tolist(), sweep(levels, len(order)), strict=True):
        best = _overlap(found.box, truth[found.case])
        if components == "largest":
            most = torch.zeros_like(levels[:, 0, 0]).scatter_reduce(0, found.case, found.area, "amax")
            best = torch.where(found.area == most[found.case], best, 0)
        ious[column].scatter_reduce_(0, found.case, best, "amax")
    return ious.T.contiguous()


def max_box_accuracy(ious: Tensor, delta: float | Sequence[float] = 0.5) -> Tensor:
    r"""MaxBoxAcc: the share of cases with an IoU of at least ``delta``, at the threshold that is best for all of them.

    .. math:: \max_t \frac 1N |\{n: \mathrm{IoU}_{nt} \ge \delta\}|

    ``ious`` is (N, T), from :func:`box_iou`. Of several ``delta`` the mean: MaxBoxAccV2 is
    ``max_box_accuracy(box_iou(..., components='all'), (0.3, 0.5, 0.7))``. The result is a number in [0, 1].
    Choe et al., CVPR 2020. Raises ``ValueError`` for ``ious`` of another shape or without a case.

    >>> max_box_accuracy(torch.tensor([[0.6, 0.1], [0.4, 0.5], [0.7, 0.3]]))
    tensor(0.6667)
    """
    check_maps_type("ious", ious)
    if not ious.isfinite().all():
        raise ValueError("ious=NaN or infinity is not an overlap; expected finite numbers.")
    if ious.ndim != 2 or not ious.numel():
        raise ValueError(f"ious={tuple(ious.shape)} is not a table of cases; expected a tensor (N, T).")
    deltas = tuple(delta) if isinstance(delta, Sequence) else (delta,)
    if not deltas or not all(is_number(value) and 0 < value <= 1 for value in deltas):
        raise ValueError(f"delta={shown(delta)} is not an IoU; expected numbers in (0, 1].")
    return torch.stack([(ious >= value).to(_wide(ious).dtype).mean(0).max() for value in deltas]).mean()


def boxes_to_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The union of (K, 4) boxes x0, y0, x1, y1, half-open in pixels, as a bool mask of ``size`` = (height, width).

    >>> boxes_to_mask(torch.tensor([[1, 0, 3, 1]]), (2, 3)).int()
    tensor([[0, 1, 1],
            [0, 0, 0]], dtype=torch.int32)
    """
    check_maps_type("boxes", boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes={tuple(boxes.shape)} are not boxes; expected a tensor (K, 4).")
    if not boxes.isfinite().all():
        raise ValueError("boxes=NaN or infinity is not a position; expected finite numbers.")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(map(is_positive_int, size)):
        raise ValueError(f"size={shown(size)} is not a size of an image; expected (height, width).")
    height, width = size
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x >= boxes[:, 0:1]) & (x < boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def _wide(saliency: Tensor) -> Tensor:
    """In float32 or more: half precision cannot count the pixels of an image."""
    return saliency.detach().to(torch.promote_types(saliency.dtype, torch.float32))


def _levels(saliency: Tensor, thresholds: Thresholds) -> tuple[Tensor, Tensor]:
    """How many thresholds each pixel reaches, (N, H, W), and where each stood before they were sorted, (T,)."""
    values = _wide(saliency[:, 0])
    try:
        edges = torch.as_tensor(thresholds, dtype=values.dtype, device=values.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        edges = values.new_empty(0)
    if edges.ndim != 1 or not edges.numel() or not ((edges >= 0) & (edges <= 1)).all():
        given = reprlib.repr(thresholds) if isinstance(thresholds, Sequence) else shown(thresholds)
        raise ValueError(f"thresholds={given} are not fractions of the maximum; expected numbers from 0 to 1.")
    values = values - values.amin((1, 2), keepdim=True)
    edges, order = edges.sort()
    share = safe_divide(values, values.amax((1, 2), keepdim=True))
    return torch.searchsorted(edges, share.contiguous(), right=True), order


def _overlap(box: Tensor, truth: Tensor) -> Tensor:
    """The best IoU (R,) of a box (R, 4) with one of (R, K, 4)."""
    box = box.to(truth.dtype)[:, None]
    near = torch.maximum(box[..., :2], truth[..., :2])
    far = torch.minimum(box[..., 2:], truth[..., 2:])
    common = (far - near).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(-1) for each in (box, truth)]
    return (common / (areas[0] + areas[1] - common)).amax(1)


def _check_maps(saliency: Tensor) -> None:
    check_maps_type("saliency", saliency)
    if saliency.ndim != 4 or saliency.shape[1] != 1 or not saliency[:1].numel():
        raise ValueError(f"saliency={tuple(saliency.shape)} is not a batch of maps; expected a tensor (N, 1, H, W).")
    if not saliency.isfinite().all():
        raise ValueError("saliency=NaN or infinity has no maximum; expected finite maps.")


def _check_size(saliency: Tensor, masks: Tensor) -> None:
    check_tensor("saliency", saliency)
    check_tensor("masks", masks)
    if saliency.ndim != 4 or saliency.shape[2:] != masks.shape[1:]:
        raise ValueError(
            f"saliency={tuple(saliency.shape)} is not at the masks' size {tuple(masks.shape[1:])}; "
            "expected a map resized to the image."
        )


def _check_not_empty(masks: Tensor) -> None:
    empty = ~masks.flatten(1).any(1)
    if empty.any():
        raise ValueError(f"masks={empty.nonzero().flatten().tolist()} hold no pixel; expected masks of an object.")


def _check_maps_and_masks(saliency: Tensor, masks: Tensor) -> None:
    _check_size(saliency, masks)
    _check_maps(saliency)
    if masks.dtype != torch.bool or len(masks) != len(saliency):
        raise ValueError(f"masks={tuple(masks.shape)} of {masks.dtype} are not masks; expected bool (N, H, W).")
    _check_not_empty(masks)


def _check_boxes(saliency: Tensor, boxes: Sequence[Tensor]) -> None:
    check_type("boxes", boxes, (Sequence, Tensor), "a tensor (K, 4) for each map")
    for box in boxes if not isinstance(boxes, Tensor) or boxes.ndim == 3 else [None]:
        check_tensor("boxes", box)
        if not box.isfinite().all():
            raise ValueError("boxes=NaN or infinity is not a position; expected finite numbers.")
    shapes = [tuple(box.shape) for box in boxes]
    if len(shapes) != len(saliency) or any(len(shape) != 2 or shape[1] != 4 or not shape[0] for shape in shapes):
        raise ValueError(f"boxes={shapes} do not fit {len(saliency)} maps; expected (K, 4) with K >= 1 for each.")
