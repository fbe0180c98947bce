"""Localisation: does the map find the object? Every function gives one result per case."""

import math

import torch
from torch import Tensor


def saliency_points(saliency: Tensor) -> Tensor:
    """The (x, y) pixel where each (N, 1, H, W) map is largest, as an (N, 2) LongTensor; the first one of equals.

    Raises ``ValueError`` for another shape and for a map that holds NaN.

    >>> saliency_points(torch.tensor([[[[0.0, 3.0], [1.0, 2.0]]]]))
    tensor([[1, 0]])
    """
    if saliency.ndim != 4 or saliency.shape[1] != 1 or not saliency[:1].numel():
        raise ValueError(f"saliency={tuple(saliency.shape)} is no batch of maps; a tensor (N, 1, H, W) is accepted.")
    if not saliency.isfinite().all():
        raise ValueError("saliency=NaN or infinity has no largest place; finite maps are accepted.")
    index = saliency.flatten(1).argmax(1)
    width = saliency.shape[3]
    return torch.stack((index % width, index.div(width, rounding_mode="floor")), 1)


def points_hit(points: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    r"""Does the closed disc of radius ``tolerance`` pixels around each point touch the object?

    .. math:: h_n = [\min_{u: m_{nu} = 1} \|u - p_n\| \le \mathrm{tolerance}]

    ``points`` is (N, 2) as (x, y), ``masks`` (N, H, W) bool with at least one pixel each; the result is (N,) bool.
    Raises ``ValueError`` for a mask without a pixel: an image without the class is no case.

    >>> mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    >>> mask[0, 0, 20] = True
    >>> points_hit(torch.tensor([[5, 0]]), mask), points_hit(torch.tensor([[4, 0]]), mask)
    (tensor([True]), tensor([False]))
    """
    if masks.ndim != 3 or masks.dtype != torch.bool or points.shape != (len(masks), 2):
        raise ValueError(
            f"masks={tuple(masks.shape)} of {masks.dtype} do not fit points of shape {tuple(points.shape)}; "
            "bool masks (N, H, W) and points (N, 2) are accepted."
        )
    empty = ~masks.flatten(1).any(1)
    if empty.any():
        raise ValueError(f"masks={empty.nonzero().flatten().tolist()} hold no pixel; masks of an object are accepted.")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance!r} is no radius in pixels; a number >= 0 is accepted.")
    height, width = masks.shape[1:]
    x = torch.arange(width, device=masks.device)
    y = torch.arange(height, device=masks.device)
    squared = (x - points[:, :1])[:, None, :] ** 2 + (y - points[:, 1:])[:, :, None] ** 2
    return (masks & (squared <= tolerance**2)).flatten(1).any(1)


def pointing_game(saliency: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    """The pointing game: is the map's maximum on the object, or at most ``tolerance`` pixels away from it?

    ``saliency`` is (N, 1, H, W) at the size of the ``masks``, (N, H, W) bool; the result is (N,) bool, a hit or a
    miss per case. The mean over the cases of a class is its accuracy; a class without cases has none.
    Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018.
    Raises ``ValueError`` for shapes that differ, an empty mask and NaN.

    >>> pointing_game(torch.eye(4).view(1, 1, 4, 4), torch.eye(4).bool()[None], tolerance=0)
    tensor([True])
    """
    if saliency.ndim != 4 or saliency.shape[2:] != masks.shape[1:]:
        raise ValueError(
            f"saliency={tuple(saliency.shape)} is not at the masks' size {tuple(masks.shape[1:])}; "
            "a map resized to the image is accepted."
        )
    return points_hit(saliency_points(saliency), masks, tolerance)


def boxes_to_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The union of (K, 4) boxes x0, y0, x1, y1, half-open in pixels, as a bool mask of ``size`` = (height, width).

    >>> boxes_to_mask(torch.tensor([[1, 0, 3, 1]]), (2, 3)).int()
    tensor([[0, 1, 1],
            [0, 0, 0]], dtype=torch.int32)
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes={tuple(boxes.shape)} are no boxes; a tensor (K, 4) is accepted.")
    height, width = size
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x >= boxes[:, 0:1]) & (x < boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).any(0)
