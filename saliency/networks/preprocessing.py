"""From a photo to the input of a network, as its recipe says."""

from torch import Tensor
from torch.nn import functional as F

from saliency.images import normalise, resize_image
from saliency.networks.models import Recipe

MOST = 8  # times the shorter side that the longer one may get, as in resize_image


def input_size(size: tuple[int, int], wanted: Recipe) -> tuple[int, int]:
    """The (height, width) of what :func:`preprocess` makes of a photo of this ``size`` = (height, width).

    The whole photo with a shorter side of ``wanted.size``. The longer side is rounded, for a network from Caffe down.

    >>> input_size((60, 91), Recipe(224, 1, False, (), (), ()))
    (224, 340)
    >>> input_size((60, 91), Recipe(224, 1, False, (), (), (), caffe_resize=True))
    (224, 339)
    """
    if wanted.square:
        return wanted.size, wanted.size
    shorter, scale = min(size), wanted.size / min(size)
    height, width = (wanted.size * side // shorter if wanted.caffe_resize else round(side * scale) for side in size)
    return min(height, MOST * wanted.size), min(width, MOST * wanted.size)


def preprocess(image: Tensor, wanted: Recipe) -> Tensor:
    """The whole photo (3, H, W) in [0, 1] as the network takes it, (3, h, w): resized and normalised.

    >>> import torch
    >>> preprocess(torch.rand(3, 60, 91), Recipe(224, 1, False, (0, 0, 0), (1, 1, 1), ())).shape
    torch.Size([3, 224, 340])
    """
    if not wanted.caffe_resize:
        return normalise(resize_image(image, wanted.size, wanted.square), wanted.mean, wanted.std)
    height, width = image.shape[1:]
    size = input_size((height, width), wanted)
    resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
    return normalise(resized[0], wanted.mean, wanted.std)
