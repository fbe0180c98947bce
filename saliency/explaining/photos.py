"""From an image in any form to the picture that is shown and the input of the network."""

import os
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
import PIL.Image
from torch import Tensor

from saliency.engine.checks import check_type
from saliency.images import as_image, read_image, resize_image
from saliency.networks.preprocessing import Preprocessing, preprocess, seen

SHOWN = 448  # shorter side, in pixels, at which a larger photo is shown


class Photo(NamedTuple):
    """A photo under its name: the part that is explained, (3, H, W) in [0, 1], and the input (1, C, h, w) of it."""

    name: str
    picture: Tensor
    input: Tensor


def prepare(image: object, wanted: Preprocessing, crop: bool, name: str | None = None) -> Photo:
    """Make the input of a network of the path of a photo, or of an image as :func:`saliency.images.as_image` takes it.

    A tensor that was normalised already, as the preprocessing says, is the input. With ``crop`` the network's own
    transform cuts off the borders. A network of one channel, which has one mean, gets the mean of the three colours.
    """
    kinds = (str, os.PathLike, PIL.Image.Image, np.ndarray, Tensor)
    check_type("image", image, kinds, "one photo: its path, a picture of Pillow, an array or a tensor (3, H, W)")
    if isinstance(image, (str, os.PathLike)):
        name, image = name or Path(image).stem, read_image(image)
    elif _is_input(image, wanted):
        mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (wanted.mean, wanted.std))
        input = image.detach() if image.ndim == 4 else image.detach()[None]
        return Photo(name or "image", _small(as_image(image * std + mean)), input)
    photo = as_image(image)
    if len(wanted.mean) == 1:
        colours = wanted._replace(mean=wanted.mean * 3, std=wanted.std * 3)
        input = preprocess(photo, colours, crop).mean(0, keepdim=True)
    else:
        input = preprocess(photo, wanted, crop)
    return Photo(name or "image", _small(seen(photo, wanted, crop)), input[None])


def _is_input(image: object, wanted: Preprocessing) -> TypeGuard[Tensor]:
    """Is it a tensor of one number per channel, some of them outside [0, 1]?"""
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim not in (3, 4):
        return False
    fits = image.shape[-3] == len(wanted.mean) and (image.ndim == 3 or len(image) == 1) and image.numel() > 0
    return fits and bool(((image < -0.01) | (image > 1.01)).any())


def _small(picture: Tensor) -> Tensor:
    picture = picture.cpu().float()
    return resize_image(picture, SHOWN) if min(picture.shape[1:]) > SHOWN else picture
