"""The folder of a run, made without a runner: scenes, real maps, and curves from a formula."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from saliency import METHODS
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.localisation import pointing_game, saliency_points
from saliency.evaluation.running.store import Result
from saliency.images import overlay, to_picture
from saliency.scenes import CLASSES, make_scene, scene_network

RUN_METHODS = ("grad_cam", "gradient", "activation")
CURVES = {"insertion": 1.0, "deletion": -1.0}


def make_config(metric: str, method: str, **changes: Any) -> dict[str, Any]:
    """What a fingerprint stands for; ``changes`` replace its parts."""
    return {
        "dataset": {"name": "scenes", "root": None, "classes": list(CLASSES)},
        "network": {"arch": "scenes", "weights": "DEFAULT"},
        "method": method,
        "options": {},
        "metric": metric,
        "metric_options": {},
        "versions": {"torch": "2.6.0"},
    } | changes


def write_run(folder: Path, rows: Iterable[Result], configs: dict[str, dict[str, Any]]) -> None:
    """Write rows of two ranks, and the configurations by fingerprint."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for fingerprint, config in configs.items():
        (folder / "configs" / f"{fingerprint}.json").write_text(json.dumps(config), "utf-8")
    lines = [json.dumps(row._asdict()) + "\n" for row in rows]
    for rank in (0, 1):
        (folder / f"rows-{rank}.jsonl").write_text("".join(lines[rank::2]), "utf-8")


def make_run(
    folder: Path, images: int = 6, methods: Sequence[str] = RUN_METHODS, names: str = "scene{}"
) -> list[Result]:
    """A run on scenes with pointing game, insertion, deletion and agreement, and with a gallery; return its rows."""
    model, rows = scene_network(), []
    for number in range(images):
        scene, name = make_scene(number), names.replace("{}", str(number), 1)
        labels = sorted({item.label for item in scene.objects})
        targets = torch.tensor([labels])
        maps = {method: METHODS[method].function(model, scene.image[None], targets)[0] for method in methods}
        resized = {
            method: torch.nn.functional.interpolate(own[:, None].float(), scene.image.shape[1:], mode="bilinear")
            for method, own in maps.items()
        }
        masks = torch.stack([scene.class_mask(label) for label in labels])
        hard = [len(labels) > 1 and bool(mask.float().mean() < 0.25) for mask in masks]
        for method, own in resized.items():
            hits, points = pointing_game(own, masks).tolist(), saliency_points(own).tolist()
            for label, difficult, hit, point in zip(labels, hard, hits, points, strict=True):
                for metric in ("pointing_game", *CURVES):
                    score, curve = float(hit), None
                    if metric in CURVES:
                        curve = made_curve(metric, 0.6 + 0.3 * hit - 0.02 * number)
                        score = sum(curve) / len(curve)
                    row = Result(name, label, method, metric, score, 0.01 * len(method), None, f"{metric}-{method}")
                    rows.append(row._replace(difficult=difficult, curve=curve, point=tuple(point)))
        for first, second in [(a, b) for a in methods for b in methods if a < b]:
            values = rank_correlation(resized[first], resized[second]).tolist()
            rows += [
                Result(name, label, f"{first}|{second}", "agreement", value, 0.001, None, f"agreement-{first}-{second}")
                for label, value in zip(labels, values, strict=True)
            ]
        _write_pictures(folder / "gallery", name, f"{number:06d}-scene", scene, labels, resized)
    write_run(folder, rows, {row.fingerprint: make_config(row.metric, row.method) for row in rows})
    return rows


def made_curve(metric: str, height: float, steps: int = 16) -> tuple[float, ...]:
    """A curve that rises to, or falls from, ``height``."""
    shares = [step / steps for step in range(steps + 1)]
    rising = [height * (1 - (1 - share) ** 3) for share in shares]
    return tuple(rising if CURVES[metric] > 0 else rising[::-1])


def _write_pictures(folder: Path, name: str, slug: str, scene: Any, labels: list[int], maps: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for method, own in maps.items():
        for label, saliency in zip(labels, own, strict=True):
            file = files[f"{label}/{method}"] = f"{slug}-{label}-{method}.jpg"
            overlay(scene.image, saliency[None]).save(folder / file, "JPEG")
    to_picture(scene.image).save(folder / f"{slug}.jpg", "JPEG")
    known = {
        "image": name,
        "size": list(scene.image.shape[1:]),
        "instances": [[item.label, list(item.box)] for item in scene.objects],
        "maps": files,
    }
    (folder / f"{slug}.json").write_text(json.dumps(known), "utf-8")
