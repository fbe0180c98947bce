"""The gallery of a run: pictures of the first images and their maps, written by the run and read for a page."""

import base64
import io
import json
import mimetypes
import re
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from saliency.evaluation.cases import Annotation
from saliency.evaluation.report.analysis import Analysis
from saliency.evaluation.report.comparison import POINTING_GAME
from saliency.evaluation.report.series import Series, failed
from saliency.evaluation.running.store import Result, write_file
from saliency.images import overlay, resize_image, to_picture

Found = dict[tuple[str, int, str], list[tuple[Series, Result]]]  # image, class, method

SHOWN = 224  # shorter side of the pictures, in pixels
QUALITY = 85

HITS = {1.0: True, 0.0: False}  # a chance in between is neither


def read_gallery(folder: str | Path, analysis: Analysis) -> tuple[list[dict[str, object]], list[str]]:
    """Return the cases of ``folder/gallery`` for JSON, pictures as data URIs, and what could not be read.

    A case is an image and a class, with every method's map, point, scores, and hit or miss of the pointing game; where
    several configurations of a method ran, the hit is None unless they agree.
    """
    rows: Found = {}
    for series in analysis.series:
        if not series.is_pair:
            for row in series.rows:
                rows.setdefault((row.image, row.target, row.method), []).append((series, row))
    order = {item.series.method: analysis.lines.index(item.series.line) for item in reversed(analysis.summaries)}
    cases: list[dict[str, object]] = []
    problems: list[str] = []
    for path in sorted((Path(folder) / "gallery").glob("*.json")):
        found = _try_image(path, rows, analysis.series, order)
        if isinstance(found, str):
            problems.append(found)
        else:
            cases += found
    return cases, problems


def _try_image(path: Path, rows: Found, shown: list[Series], order: dict[str, int]) -> list[dict[str, object]] | str:
    """The cases of an image, or why it is left out."""
    try:
        return _read_image(path, rows, shown, order)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"gallery/{path.name} is left out ({type(error).__name__}: {error})."


def _read_image(path: Path, rows: Found, shown: list[Series], order: dict[str, int]) -> list[dict[str, object]]:
    entry = json.loads(path.read_text("utf-8"))
    image, (height, width) = entry["image"], entry["size"]
    drawn: dict[int, list[tuple[str, str]]] = {}
    for key, name in entry["maps"].items():
        target, _, method = key.partition("/")
        if any(method == series.method for series in shown):
            drawn.setdefault(int(target), []).append((method, name))
    picture = _data_uri(path.with_suffix(".jpg"))
    cases = []
    for target, maps in sorted(drawn.items()):
        maps.sort(key=lambda item: (order.get(item[0], len(order)), item[0]))
        found = {method: rows.get((image, target, method), []) for method, _ in maps}
        own = [pair for pairs in found.values() for pair in pairs]
        cases.append(
            {
                "image": image,
                "size": [width, height],
                "picture": picture,
                "class": (own[0][0] if own else shown[0]).class_name(target),
                "difficult": any(row.difficult for _, row in own),
                "boxes": [box for label, box in entry["instances"] if label == target],
                "others": [box for label, box in entry["instances"] if label != target],
                "maps": [
                    {"method": method, "picture": _data_uri(path.parent / Path(name).name), **_result(found[method])}
                    for method, name in maps
                ],
            }
        )
    return cases


def _result(found: list[tuple[Series, Result]]) -> dict[str, object]:
    """What the rows of one map say: hit, point, radius of the disc around it, and every score or error."""
    game = [(series, row) for series, row in found if row.metric == POINTING_GAME and not failed(row)]
    hits = {HITS.get(row.score or 0) for _, row in game}
    radii = {series.metric_option("tolerance") for series, _ in game}
    same = len({series.line for series, _ in found}) == 1
    points = [row.point for _, row in (*game, *found) if row.point is not None]
    return {
        "hit": hits.pop() if len(hits) == 1 else None,
        "point": list(points[0]) if points else None,
        "radius": radii.pop() if len(radii) == 1 else None,
        "scores": [
            [
                series.column if same else f"{series.column} · {series.line}",
                None if failed(row) else row.score,
                row.error,
            ]
            for series, row in found
        ],
    }


def _data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def write_gallery(
    out: Path, index: int, annotation: Annotation, image: Tensor, maps: Mapping[tuple[int, str], Tensor]
) -> None:
    """Write the picture of an image (3, H, W) and of its maps (h, w), by target and method, and its metadata.

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
    known: dict[str, object] = {
        "image": annotation.name,
        "size": list(annotation.size),
        "instances": [[instance.label, list(instance.box)] for instance in annotation.instances],
        "maps": {**_known_maps(page), **files},
    }
    write_file(page, json.dumps(known).encode())


def _known_maps(page: Path) -> dict[str, str]:
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
