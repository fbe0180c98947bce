"""BASELINES: maps that explain nothing, for methods to be compared with."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saliency.evaluation.cases import Dataset

SIDE = 64  # of the mean map


class Baseline(NamedTuple):
    """A row of the table: ``function(model, input, target)``, a method; ``prior(dataset)`` is an option of that name.

    A method with a parameter ``map_size`` = (height, width) is asked for its map of every size, and none is enlarged.
    """

    function: Callable[..., Tensor]
    paper: str
    prior: Callable[[Dataset], Tensor] | None = None


def centre(model: Module, input: Tensor, target: Tensor, map_size: tuple[int, int] | None = None) -> Tensor:
    """The baseline that ignores the image: 1 at the centre pixel, falling with the distance to 0 at the farthest.

    >>> centre(None, torch.zeros(1, 1, 3, 3), torch.tensor([0]))[0, 0, 1]
    tensor([0.2929, 1.0000, 0.2929])
    """
    height, width = map_size or input.shape[2:]
    y, x = (torch.arange(side, device=input.device, dtype=torch.float32) - side // 2 for side in (height, width))
    distance = torch.hypot(y[:, None], x[None, :])
    return _for_each((1 - distance / distance.max().clamp(min=1)).to(input.dtype), input, target)


def random_map(
    model: Module, input: Tensor, target: Tensor, map_size: tuple[int, int] | None = None, seed: int = 0
) -> Tensor:
    """Uniform noise in [0, 1), drawn for the image, the class and ``seed``: the same in every batch."""
    height, width = map_size or input.shape[2:]
    images = [zlib.crc32(image.float().cpu().contiguous().numpy().tobytes()) for image in input.detach()]
    maps = [
        torch.rand(
            (height, width),
            generator=torch.Generator().manual_seed(zlib.crc32(f"{label} {seed}".encode(), image)),
            device="cpu",
        )
        for image, labels in zip(images, target.reshape(len(input), -1).tolist(), strict=True)
        for label in labels
    ]
    return torch.stack(maps).view(len(input), -1, height, width).to(input)


def edges(model: Module, input: Tensor, target: Tensor) -> Tensor:
    r"""Sobel's edge filter: :math:`\sum_c \sqrt{(S_x * x_c)^2 + (S_y * x_c)^2}`, without model or class."""
    kernel = input.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(input.detach().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, torch.stack((kernel, kernel.T))[:, None])
    return _for_each(slopes.norm(dim=1).view_as(input).sum(1, keepdim=True), input, target)


def mean_map(
    model: Module, input: Tensor, target: Tensor, prior: Tensor, map_size: tuple[int, int] | None = None
) -> Tensor:
    """One map ``prior`` (h, w) for every image: with that of :func:`mean_boxes`, where objects are on average."""
    size = map_size or tuple(input.shape[2:])
    drawn = F.interpolate(prior.to(input.device)[None, None], size, mode="bilinear", align_corners=False)
    return _for_each(drawn[0, 0].to(input.dtype), input, target)


def mean_boxes(dataset: Dataset) -> Tensor:
    """The share of a data set's objects whose box covers a place, (64, 64), images scaled to that."""
    boxes = torch.tensor(
        [
            (x0 / width, y0 / height, x1 / width, y1 / height)
            for _, (height, width), instances in dataset.annotations
            for x0, y0, x1, y1 in (instance.box for instance in instances)
        ],
        device="cpu",
    ).view(-1, 4)
    places = (torch.arange(SIDE, device="cpu") + 0.5) / SIDE
    x, y = (((boxes[:, [i]] <= places) & (places < boxes[:, [i + 2]])).float() for i in (0, 1))
    return torch.einsum("by,bx->yx", y, x) / max(1, len(boxes))


def _for_each(maps: Tensor, input: Tensor, target: Tensor) -> Tensor:
    """Maps (h, w) or (N, 1, h, w) for every image and class, (N, K, h, w)."""
    columns = target.shape[1] if target.ndim == 2 else 1
    return maps.expand(len(input), columns, -1, -1)


_ROAR = "Hooker et al., A Benchmark for Interpretability Methods, NeurIPS 2019"

BASELINES: dict[str, Baseline] = {
    "centre": Baseline(centre, "Zhang et al., Excitation Backprop, IJCV 2018"),
    "random": Baseline(random_map, _ROAR),
    "edges": Baseline(edges, _ROAR),
    "mean": Baseline(mean_map, "", mean_boxes),
}
