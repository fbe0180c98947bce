"""Photos as tensors, and maps as pictures."""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from saliency.engine.checks import check_count, check_flag, check_maps_type, check_type, describe, is_number, shown

# Control points (r, g, b), evenly spaced, of two colour maps: from dark to light, and from dark by white to dark.
HEAT = (
    (0.05, 0.03, 0.25),
    (0.35, 0.05, 0.50),
    (0.72, 0.16, 0.42),
    (0.95, 0.42, 0.20),
    (0.99, 0.73, 0.15),
    (1.00, 1.00, 0.70),
)
DIVERGING = (
    (0.02, 0.10, 0.55),
    (0.05, 0.35, 0.95),
    (0.25, 0.65, 1.00),
    (1.00, 1.00, 1.00),
    (1.00, 0.60, 0.20),
    (0.95, 0.20, 0.05),
    (0.50, 0.00, 0.05),
)

MOST_PIXELS = 2**24
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what no other path would have avoided
ROUNDING = 1e-3  # how far from [0, 1] the values of an image may be: half precision, and interpolation


def check_path(argument: str, value: object) -> None:
    """Raise ``ValueError`` for anything but the path of a file."""
    check_type(argument, value, (str, os.PathLike), "the path of a file")


@contextmanager
def writing(argument: str, path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a file that the block writes; missing folders are created.

    ``ValueError`` names the path where that fails, ``OSError`` where the disk is full.
    """
    check_path(argument, path)
    try:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        yield file
    except (OSError, ValueError, RuntimeError) as error:  # of a suffix, matplotlib raises all three
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise ValueError(
            f"{argument}={os.fspath(path)!r} cannot be written to ({getattr(error, 'strerror', None) or error}); "
            "expected the path of a file."
        ) from error


def is_file(path: str | os.PathLike[str]) -> bool:
    """Does the file exist? A name that no file can have does not."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Return the photo as an RGB tensor (3, H, W) in [0, 1], turned upright as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit files are converted, numbers of 32 bits from 0 to the next of 1, 255 and 65,535;
    transparent areas become white; of an animation the first frame counts. One of more than 16 megapixels is read
    reduced by a whole number, so that it fits in memory.
    Raises :class:`ValueError` where the file is missing, truncated, broken or not an image.
    """
    check_path("path", path)
    if not is_file(path):
        raise ValueError(f"photo={str(path)!r} is not a file; expected an image that Pillow reads.")
    try:
        with Image.open(path) as image:
            pixels = _rgb(ImageOps.exif_transpose(_reduced(image)))
    except Exception as error:  # on a broken file, decoders raise whatever comes up
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"photo={str(path)!r} cannot be read ({reason}); expected an image that Pillow reads."
        ) from error
    return pixels_to_tensor(pixels)


def pixels_to_tensor(pixels: NDArray[np.generic]) -> Tensor:
    """Pixels (H, W, 3), bytes or numbers in [0, 1], as a tensor (3, H, W) in [0, 1]: copied while they are bytes."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return image if image.is_floating_point() else image.float().div_(255)


def as_image(image: object) -> Tensor:
    """Return one image, however it is held, as an RGB tensor (3, H, W) in [0, 1].

    A tensor (3, H, W), one of a single channel or (H, W), which is grey, or a batch of one; an array of these shapes
    or with the channels last, which may hold opacity, laid over white; a picture of Pillow. Bytes are divided by 255.
    Raises :class:`ValueError` for several images, and for values outside [0, 1], as after a normalisation.

    >>> as_image(torch.zeros(1, 1, 4, 6)).shape, as_image(np.full((4, 6, 3), 255, np.uint8)).max()
    (torch.Size([3, 4, 6]), tensor(1.))
    """
    check_type("image", image, (Tensor, np.ndarray, Image.Image), "a tensor or an array (3, H, W), or a Pillow image")
    tensor = _from_picture(image) if isinstance(image, Image.Image) else image
    tensor = _from_array(tensor) if isinstance(tensor, np.ndarray) else tensor
    if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.dtype == torch.bool or not tensor.numel():
        raise _no_image(image)
    if tensor.ndim == 4 and len(tensor) > 1:
        raise ValueError(f"image={describe(image)} holds {len(tensor)} images; expected one, such as image[0].")
    tensor = tensor[0] if tensor.ndim == 4 else tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or len(tensor) not in (1, 3, 4):
        raise _no_image(image)
    if not tensor.is_floating_point():
        tensor = tensor.float() / 255
    tensor = tensor.detach()
    low, high = torch.aminmax(tensor)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise _outside(image, float(low), float(high))
    if len(tensor) == 4:
        tensor = tensor[:3] * tensor[3:] + 1 - tensor[3:]
    return tensor.expand(3, -1, -1)


def _outside(image: object, low: float, high: float) -> ValueError:
    if math.isnan(high):
        return ValueError(f"image={describe(image)} holds NaN; expected values in [0, 1].")
    cause, expected = "a normalised image does", "the image itself, image * std + mean"
    if low >= 0 and 2 < high <= 255:
        cause, expected = "one in 0 to 255 does", "image / 255"
    return ValueError(f"image={describe(image)} holds values outside [0, 1], as {cause}; expected {expected}.")


def _from_picture(picture: Image.Image) -> Tensor:
    try:
        return pixels_to_tensor(_rgb(ImageOps.exif_transpose(picture)))
    except (OSError, ValueError) as error:  # one that was opened is decoded only now
        raise ValueError(f"image={describe(picture)} cannot be read ({error}); expected a whole picture.") from error


def _from_array(pixels: NDArray[np.generic]) -> Tensor:
    """An array of pixels with the channels first, as numbers; of bytes and 16 bits, in [0, 1]."""
    if pixels.ndim >= 3 and pixels.shape[-1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, -1, -3)
    if pixels.dtype.kind == "u":
        pixels = pixels.astype(np.float32) / np.float32(2 ** (8 * pixels.itemsize) - 1)
    if pixels.dtype.kind not in "if":
        raise _no_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels, np.float32 if pixels.dtype.kind == "f" else pixels.dtype))


def _no_image(image: object) -> ValueError:
    return ValueError(f"image={describe(image)} is not an image; expected (3, H, W), values in [0, 1].")


def resize_image(image: Tensor, size: int, square: bool = False) -> Tensor:
    """Return the whole photo (3, H, W) with a shorter side of ``size`` pixels, or squashed to ``size`` x ``size``.

    Nothing is cropped away, so a map shows every part of the photo. Bilinear with antialiasing; values stay in [0, 1].
    The longer side gets at most 8 times ``size``: a strip of 1 x 100,000 pixels must not fill the memory.

    >>> resize_image(torch.rand(3, 60, 90), 224).shape
    torch.Size([3, 224, 336])
    """
    image = as_image(image)
    check_count("size", size)
    check_flag("square", square)
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    sides = [size, size] if square else [min(round(side * scale), 8 * size) for side in (height, width)]
    resized = F.interpolate(image[None], size=sides, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(image - mean) / std`` per channel, for an image (…, C, H, W).

    >>> normalise(torch.ones(3, 1, 1), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25)).flatten()
    tensor([1., 1., 2.])
    """
    check_maps_type("image", image)
    for argument, values in (("mean", mean), ("std", std)):
        fits = isinstance(values, (tuple, list)) and all(map(is_number, values))
        if image.ndim < 3 or not fits or len(values) != image.shape[-3]:
            raise ValueError(f"{argument}={shown(values)} does not fit {describe(image)}; expected a number a channel.")
    return (image - image.new_tensor(mean).view(-1, 1, 1)) / image.new_tensor(std).view(-1, 1, 1)


def display_range(saliency_map: Tensor) -> Tensor:
    """Return the map scaled for the eye: min to max as [0, 1], or a map with negative values as [-1, 1] around 0.

    Values beyond the 99th percentile are cut, else one bright pixel hides a gradient map. A constant map gives zeros.

    >>> display_range(torch.tensor([[2.0, 4.0], [3.0, 2.0]]))
    tensor([[0.0000, 1.0000],
            [0.5000, 0.0000]])
    """
    check_maps_type("saliency_map", saliency_map)
    if not saliency_map.numel():
        raise ValueError(f"saliency_map={describe(saliency_map)} is empty; expected a map of a pixel or more.")
    values = torch.nan_to_num(saliency_map.detach().float().cpu())
    if values.min() < 0:
        top = _percentile(values.abs())
        return (values / top).clamp(-1, 1) if top > 0 else torch.zeros_like(values)
    values = values - values.min()
    top = _percentile(values)
    return (values / top).clamp(0, 1) if top > 0 else torch.zeros_like(values)


def overlay(image: Tensor, saliency_map: Tensor, alpha: float = 0.85) -> Image.Image:
    """Return the image with the map (…, h, w) laid over it in colour, as a picture of W x H: see :func:`as_image`.

    The stronger a pixel's value, the more its colour covers: ``1 - (1 - |v|)^2`` times ``alpha``. Only the picture is
    normalised (see :func:`display_range`), the map stays as it is. A map with negative values is shown red and blue.
    Raises :class:`ValueError` where the map is not one map.

    >>> overlay(torch.rand(3, 60, 90), torch.rand(1, 1, 7, 7)).size
    (90, 60)
    """
    check_maps_type("saliency_map", saliency_map)
    image = as_image(image)
    if not is_number(alpha):
        raise ValueError(f"alpha={shown(alpha)} is not a weight of the colours; expected a number, 0 to 1.")
    if saliency_map.ndim < 2 or saliency_map.shape[-2:].numel() != saliency_map.numel() or not saliency_map.numel():
        shape = tuple(saliency_map.shape)
        raise ValueError(f"saliency_map={shape!r} is not the shape of one map; expected (h, w) or (1, 1, h, w).")
    size = image.shape[-2:]
    values = display_range(saliency_map.reshape(1, 1, *saliency_map.shape[-2:]))
    values = F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    cover = alpha * (1 - (1 - values.abs()).square())
    return to_picture(image.float().cpu().lerp(colours(values), cover).clamp(0, 1))


def colours(values: Tensor) -> Tensor:
    """Return RGB (3, h, w) for values (h, w): [0, 1] from dark violet to bright yellow, or [-1, 1] from blue to red."""
    signed = bool(values.min() < 0)
    points = np.array(DIVERGING if signed else HEAT)
    positions = np.linspace(-1 if signed else 0, 1, len(points))
    channels = [np.interp(values.numpy(), positions, channel) for channel in points.T]
    return torch.from_numpy(np.stack(channels)).float()


def to_picture(image: Tensor) -> Image.Image:
    """Return an image tensor (3, H, W) in [0, 1] as an 8-bit RGB picture.

    >>> to_picture(torch.ones(3, 2, 4)).getpixel((3, 1))
    (255, 255, 255)
    """
    pixels = as_image(image).float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def write_png(image: Tensor | Image.Image, path: str | os.PathLike[str]) -> None:
    """Write an image tensor (3, H, W) in [0, 1], or a picture, as a PNG file; missing folders are created."""
    check_type("image", image, (Tensor, Image.Image), "a tensor (3, H, W) or a picture")
    picture = to_picture(image) if isinstance(image, Tensor) else image
    with writing("path", path) as file:
        picture.save(file, "PNG")


def _reduced(image: Image.Image) -> Image.Image:
    """The photo, or where it has more than ``MOST_PIXELS`` the means of squares of it."""
    width, height = image.size
    factor = math.ceil(math.sqrt(width * height / MOST_PIXELS))
    if factor > 1:
        image.draft(None, (width // factor, height // factor))  # a JPEG can be decoded to half, a quarter, an eighth
        factor = math.ceil(math.sqrt(image.width * image.height / MOST_PIXELS))
    if factor == 1:
        return image
    if image.mode in ("1", "P", "PA"):  # pixels that cannot be averaged
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode.startswith("I;"):
        image = image.convert("F").point(lambda value: value * (1 / 65535))
    return image.reduce(factor)


def _rgb(image: Image.Image) -> NDArray[np.generic]:
    if image.mode.startswith("I") or image.mode == "F":  # convert("RGB") would clip 16 bits at 255
        grey = np.nan_to_num(np.asarray(image, np.float32))
        white = 65535 if image.mode.startswith("I;") or grey.max() > 255 else 255 if grey.max() > 1 else 1
        return np.repeat((grey / white).clip(0, 1)[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _percentile(values: Tensor) -> float:
    """Return the 99th percentile, or the maximum where fewer pixels than that are not zero."""
    return float(np.percentile(values.numpy(), 99, method="higher")) or float(values.max())
