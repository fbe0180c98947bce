"""The viewer: one self-contained page, to choose photos, targets, methods and layers, and compare them."""

import base64
import html
import io
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saliency.explaining.columns import Column, Score
from saliency.images import DIVERGING, HEAT, display_range, to_picture
from saliency.pages import fill, read_web, script_json

MAP_SIDE = 160  # shorter side, in pixels, that a map is kept at: it is laid over the photo smoothly anyway
QUALITY = 80  # of JPEG


def viewer_photo(
    photo: str, columns: Sequence[Column], scores: Sequence[Score], predicted: Sequence[Score], why: Sequence[str]
) -> dict[str, object]:
    """The page's data on a photo and its maps, for JSON: pictures as data URIs."""
    pictures: dict[int, str] = {}
    for column in columns:
        if id(column.picture) not in pictures:
            pictures[id(column.picture)] = _data_uri(to_picture(column.picture))
    return {
        "name": photo,
        "pictures": [*pictures.values()],
        "predicted": [str(score) for score in predicted],
        "targets": [str(score) for score in scores],
        "why": list(why),
        "columns": [
            {
                "name": column.name,
                "layer": column.layer,
                "picture": list(pictures).index(id(column.picture)),
                "maps": [_encode(map) for map in column.maps[0]],
            }
            for column in columns
        ],
    }


def viewer_page(photos: Sequence[dict[str, object]]) -> str:
    """The page of some photos, each as :func:`viewer_photo` makes it: below 1 MB for a photo and a dozen maps."""
    web = partial(read_web, "saliency.explaining")
    parts = {
        "title": html.escape(", ".join(str(photo["name"]) for photo in photos)[:200]),
        "style": web("viewer.css"),
        "script": web("viewer.js"),
        "data": script_json({"photos": photos, "colours": {"heat": HEAT, "diverging": DIVERGING}}),
    }
    return fill(web("viewer.html"), parts)


def _encode(saliency_map: Tensor) -> dict[str, object]:
    """A map as a grey picture, and whether its values are signed: then 128 stands for 0."""
    values = display_range(saliency_map)
    signed = bool(values.min() < 0)
    if min(values.shape) > MAP_SIDE:
        sides = [round(side * MAP_SIDE / min(values.shape)) for side in values.shape]
        values = F.interpolate(values[None, None], sides, mode="bilinear", antialias=True)[0, 0]
    bytes_ = ((values * 127 + 128) if signed else values * 255).round().clamp(0, 255).numpy().astype(np.uint8)
    return {"signed": signed, "picture": _data_uri(Image.fromarray(bytes_))}


def _data_uri(picture: Image.Image) -> str:
    """A picture for a page: without loss where it is small, as the map of a layer is."""
    file, small = io.BytesIO(), picture.width * picture.height <= 64 * 64
    picture.save(file, "PNG" if small else "JPEG", quality=QUALITY)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
