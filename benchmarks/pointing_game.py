"""The pointing game on a data set: how often is each method's maximum on the object?

    python -m benchmarks.pointing_game --dataset scenes [--method grad_cam ...] [--scenes 200] [--tolerance 15]
    python -m benchmarks.pointing_game --method rise --option num_masks=500

A case is an image and a class in it. All classes of an image are explained from one forward pass. Methods that need
hundreds of passes for an image play only if they are asked to.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from saliency import METHODS
from saliency.catalogue import choose_options
from saliency.evaluation.localisation import points_hit, saliency_points
from saliency.scenes import Scene, make_scenes, scene_network

BATCH = 25
# TorchRay's setting for maps at the resolution of the input, whose single pixels are noise.
SMOOTH = dict.fromkeys(
    ("gradient", "gradient_x_activation", "linear_approx", "deconvnet", "guided_backprop", "guided_grad_cam"), 0.02
)
CENTRE = "centre point"
LONG = ("rise", "extremal_perturbation")

Cases = tuple[Tensor, Tensor, Tensor]  # images (N, 3, H, W), targets (N, K), masks (N, K, H, W)


def cases_of(scenes: Sequence[Scene]) -> Iterator[Cases]:
    """Batches of scenes that hold the same number of classes."""
    classes = [sorted({item.label for item in scene.objects}) for scene in scenes]
    for count in sorted({len(labels) for labels in classes}):
        chosen = [i for i, labels in enumerate(classes) if len(labels) == count]
        for start in range(0, len(chosen), BATCH):
            batch = chosen[start : start + BATCH]
            masks = [torch.stack([scenes[i].class_mask(label) for label in classes[i]]) for i in batch]
            images = torch.stack([scenes[i].image for i in batch])
            yield images, torch.tensor([classes[i] for i in batch]), torch.stack(masks)


def hits_of(method: str, model: Module, cases: Cases, tolerance: float, **chosen: Any) -> Tensor:
    """A hit or a miss per case of the batch, with the options that were chosen for the method."""
    images, targets, masks = cases
    if method == CENTRE:
        height, width = images.shape[2:]
        points = torch.tensor([width // 2, height // 2]).expand(targets.numel(), 2)
    else:
        options = {"resize": True, "smooth": SMOOTH.get(method, 0), **chosen}
        maps = METHODS[method].function(model, images, targets, **options)
        points = saliency_points(maps.flatten(0, 1)[:, None])
    return points_hit(points, masks.flatten(0, 1), tolerance)


def main(argv: Sequence[str] | None = None) -> int:
    """Play the game and print the table."""
    parser = argparse.ArgumentParser(description="The pointing game: accuracy of every method, per case.")
    parser.add_argument("--dataset", choices=["scenes"], default="scenes")
    parser.add_argument("--method", action="append", choices=sorted(METHODS), help="default: all that are quick")
    parser.add_argument("--option", action="append", metavar="NAME=VALUE", help="for the methods that have it")
    parser.add_argument("--scenes", type=int, default=200, help="number of scenes")
    parser.add_argument("--tolerance", type=float, default=15, help="radius of the closed disc in pixels")
    options = parser.parse_args(argv)
    if options.scenes < 1 or not 0 <= options.tolerance < math.inf:
        parser.error("--scenes wants at least 1, --tolerance at least 0")
    players = options.method or [name for name in METHODS if name not in LONG]
    try:
        chosen = choose_options(players, None, options.option or [])
    except ValueError as error:
        parser.error(str(error))
    methods = [CENTRE, *players]
    model = scene_network()
    hits: dict[str, list[Tensor]] = {method: [] for method in methods}
    done = 0
    for cases in cases_of(make_scenes(options.scenes)):
        for method in methods:
            hits[method].append(hits_of(method, model, cases, options.tolerance, **chosen.get(method, {})))
        done += len(cases[0])
        print(f"\r{done}/{options.scenes} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print_table({method: torch.cat(found) for method, found in hits.items()}, options.scenes, options.tolerance)
    return 0


def print_table(hits: dict[str, Tensor], scenes: int, tolerance: float) -> None:
    """A Markdown table: accuracy, and how far above the centre point."""
    centre = hits[CENTRE].float().mean().item()
    cases = len(hits[CENTRE])
    print(f"Pointing game, {cases} cases in {scenes} scenes of 128 x 128, disc of {tolerance:g} px\n")
    print("| method | hits | above centre |")
    print("| --- | ---: | ---: |")
    for method, found in sorted(hits.items(), key=lambda item: -item[1].float().mean().item()):
        accuracy = found.float().mean().item()
        print(f"| {method} | {100 * accuracy:.1f} % | {100 * (accuracy - centre):+.1f} |")


if __name__ == "__main__":
    sys.exit(main())
