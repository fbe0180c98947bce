"""From a photo to the input of a network, by its preprocessing."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from saliency.engine.checks import check_tensor, check_type
from saliency.images import normalise, resize_image

MOST = 8  # times the shorter side that the longer one may get, as in resize_image


class Preprocessing(NamedTuple):
    """What a network expects of a photo, and the names of its classes.

    ``size`` is the shorter side in pixels, ``mean`` and ``std`` normalise RGB in [0, 1]. A ``square`` network
    (ViT, MaxViT, Swin) takes ``size`` x ``size`` only; every other one takes any size from ``min_size`` on.
    The scores of a ``multi_label`` network are sigmoids, one for each class, else a softmax over the classes.
    ``caffe_resize``: no antialiasing, and the longer side cut to whole pixels. CAMs look at ``layer``; None finds it.
    The network's own transform makes the shorter side ``resize`` long, by ``interpolation``, and cuts out the middle
    ``size`` x ``size``; where ``resize`` is None, it takes the whole photo.
    """

    size: int
    min_size: int
    square: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    caffe_resize: bool = False
    layer: str | None = None
    resize: int | None = None
    interpolation: str = "bilinear"

    def __repr__(self) -> str:
        """The fields, but the number of classes in place of their names.

        >>> str(Preprocessing(224, 32, False, (0.5,), (0.2,), ("cat", "dog"))).partition(", multi_label")[0]
        'Preprocessing(size=224, min_size=32, square=False, mean=(0.5,), std=(0.2,), classes=<2 names>'
        """
        names = f"classes=<{len(self.classes)} names>"
        fields = [names if name == "classes" else f"{name}={value!r}" for name, value in self._asdict().items()]
        return f"Preprocessing({', '.join(fields)})"

    def resized(self, size: int, name: str) -> "Preprocessing":
        """The same with another shorter side; its transform cuts off as much in proportion.

        Raises ``ValueError`` for a side that the network, called ``name``, refuses.

        >>> Preprocessing(224, 32, False, (), (), (), resize=256).resized(448, "net").resize
        512
        """
        if size != self.size and (self.square or size < self.min_size):
            expected = f"{self.size}" if self.square else f"{self.min_size} or more"
            raise ValueError(f"size={size!r} does not fit {name}; expected {expected}.")
        return self._replace(size=size, resize=self.resize and round(self.resize * size / self.size))


def input_size(size: tuple[int, int], wanted: Preprocessing) -> tuple[int, int]:
    """The (height, width) of what :func:`preprocess` makes of a photo of this ``size`` = (height, width).

    The whole photo with a shorter side of ``wanted.size``. The longer side is rounded, for a network from Caffe down.

    >>> input_size((60, 91), Preprocessing(224, 1, False, (), (), ()))
    (224, 340)
    >>> input_size((60, 91), Preprocessing(224, 1, False, (), (), (), caffe_resize=True))
    (224, 339)
    """
    if wanted.square:
        return wanted.size, wanted.size
    shorter, scale = min(size), wanted.size / min(size)
    height, width = (wanted.size * side // shorter if wanted.caffe_resize else round(side * scale) for side in size)
    return min(height, MOST * wanted.size), min(width, MOST * wanted.size)


def preprocess(image: Tensor, wanted: Preprocessing, crop: bool = False) -> Tensor:
    """The photo (3, H, W) in [0, 1] as the network takes it, (3, h, w): resized and normalised.

    The whole photo, squashed where the network takes squares only; with ``crop`` what the network's own transform
    leaves of it, (3, size, size), as torchvision's presets and timm's transforms compute it.

    >>> import torch
    >>> photo, expected = torch.rand(3, 60, 91), Preprocessing(224, 1, False, (0, 0, 0), (1, 1, 1), (), resize=256)
    >>> preprocess(photo, expected).shape, preprocess(photo, expected, crop=True).shape
    (torch.Size([3, 224, 340]), torch.Size([3, 224, 224]))
    """
    check_tensor("image", image)
    check_type("wanted", wanted, Preprocessing, "preprocessing(name), or the first of preprocessing_of(model)")
    if crop and wanted.resize is not None:
        shorter = min(image.shape[1:])
        image = centre(image, MOST * shorter)
        sides = [wanted.resize * side // shorter for side in image.shape[1:]]
        resized = F.interpolate(image[None], sides, mode=wanted.interpolation, align_corners=False, antialias=True)
        return normalise(centre(resized[0].clamp(0, 1), wanted.size), wanted.mean, wanted.std)
    if not wanted.caffe_resize:
        return normalise(resize_image(image, wanted.size, wanted.square), wanted.mean, wanted.std)
    height, width = image.shape[1:]
    size = input_size((height, width), wanted)
    resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
    return normalise(resized[0], wanted.mean, wanted.std)


def seen(image: Tensor, wanted: Preprocessing, crop: bool = False) -> Tensor:
    """The part of a photo (3, H, W) that :func:`preprocess` makes an input of, in the photo's own pixels."""
    if not crop or wanted.resize is None:
        return image
    return centre(image, round(min(image.shape[1:]) * wanted.size / wanted.resize))


def centre(image: Tensor, side: int) -> Tensor:
    """The middle of an image (3, H, W): at most ``side`` pixels high and wide.

    >>> import torch
    >>> centre(torch.zeros(3, 5, 9), 6).shape
    torch.Size([3, 5, 6])
    """
    height, width = image.shape[1:]
    top, left = (max(0, round((length - side) / 2)) for length in (height, width))
    return image[:, top : top + side, left : left + side]
