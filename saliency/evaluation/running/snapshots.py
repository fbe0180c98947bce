"""Pictures of the first images of a run and of their maps, for a report."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saliency.evaluation.cases import Annotation
from saliency.evaluation.running.configuration import write_file
from saliency.images import overlay, resize_image, to_picture

SHOWN = 224  # shorter side of the pictures, in pixels
QUALITY = 85


def write_gallery(
    out: Path, index: int, annotation: Annotation, image: Tensor, maps: Mapping[tuple[int, str], Tensor]
) -> None:
    """Write the picture of an image (3, H, W) and of its maps (h, w), by target and method, and what is known of it.

    Maps that an earlier run has written stay, but for those of the same target and method.
    """
    folder = out / "gallery"
    slug = f"{index:06d}-{_slug(annotation.name)}"
    shown = image if min(image.shape[1:]) <= SHOWN else resize_image(image, SHOWN)
    files = {}
    for (target, method), map in maps.items():
        enlarged = F.interpolate(map[None, None].float().cpu(), shown.shape[1:], mode="bilinear", align_corners=False)
        files[f"{target}/{method}"] = file = f"{slug}-{target}-{_slug(method)}.jpg"
        write_file(folder / file, _jpeg(overlay(shown, enlarged)))
    write_file(folder / f"{slug}.jpg", _jpeg(to_picture(shown)))
    page = folder / f"{slug}.json"
    known: dict[str, Any] = {
        "image": annotation.name,
        "size": list(annotation.size),
        "things": [[thing.label, list(thing.box)] for thing in annotation.things],
        "maps": {**_written_maps(page), **files},
    }
    write_file(page, json.dumps(known).encode())


def _written_maps(page: Path) -> dict[str, str]:
    try:
        return dict(json.loads(page.read_text("utf-8"))["maps"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:80]


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
