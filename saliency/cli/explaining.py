"""``saliency explain``: maps and overlays of photos, or of the embedded scenes."""

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from saliency.cli.naming import find_method
from saliency.cli.options import POINTS_AT_ONCE, choose_device, choose_methods, choose_options, import_modules
from saliency.cli.parsing import positive, say
from saliency.engine.layers import resolve_layer
from saliency.evaluation.printing import one_line
from saliency.images import overlay, read_image, resize_image, write_png
from saliency.networks.models import (
    DEFAULT,
    EMBEDDED,
    SCENES,
    Recipe,
    find_targets,
    load_network,
    recipe,
)
from saliency.networks.own import import_network
from saliency.networks.preprocessing import preprocess
from saliency.plot import contact_sheet

SHOWN = 448  # shorter side, in pixels, of the pictures written for a larger photo


class Photo(NamedTuple):
    """A photo under its name in the output, and the classes of what is known to be in it."""

    name: str
    image: Tensor
    present: tuple[int, ...] = ()


class Case(NamedTuple):
    """A photo ready to be explained: as shown, as the network takes it, its scores, and the classes asked for."""

    name: str
    picture: Tensor
    input: Tensor
    scores: Tensor
    targets: list[int]


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``saliency explain``."""
    parser.description = (
        "Write a saliency map (.npy, raw scale) and an overlay (.png) for every photo, target and method, and one "
        "contact sheet of all. Without a photo, embedded scenes and their network are explained."
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="image files")
    add("--arch", help="'scenes[_vit]' or a classifier of torchvision (resnet50; scenes without a photo)")
    add("--weights", default=DEFAULT, metavar="DEFAULT|FILE", help="torchvision's, or the file of a state dict")
    add(
        "--method",
        action="append",
        metavar="NAME",
        help="repeatable; 'all', your own my_module:function, or wrapped as 'smooth_grad(gradient)' (grad_cam)",
    )
    add(
        "--import",
        dest="imported",
        action="append",
        metavar="MODULE[:BUILD]",
        help="your own network, which BUILD returns; or a module that adds methods; repeatable",
    )
    add("--layer", metavar="NAME", help="see 'saliency layers' (each method's own)")
    add("--option", action="append", metavar="NAME=VALUE", help="for the methods that have it, such as num_masks=500")
    add("--target", action="append", metavar="INDEX|NAME|top[K]", help="repeatable (top1; a scene's own objects)")
    add("--size", type=positive, metavar="N", help="shorter side of the network's input (the network's own)")
    add("--scenes", type=positive, metavar="N", default=4, help="number of embedded scenes (4)")
    add("--seed", type=int, metavar="N", default=0, help="seed of the first embedded scene (0)")
    add("--out", default="saliency_out", metavar="DIR", help="folder of the results (./saliency_out)")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="auto is cuda where there is one")
    parser.set_defaults(run=explain)


def explain(arguments: argparse.Namespace) -> None:
    """Explain photos or scenes; photos, network, layer and names are checked before the first map is computed."""
    own_network = import_modules(arguments.imported or ())
    methods = choose_methods(arguments.method or ["grad_cam"])
    device = choose_device(arguments.device)
    photos = read_photos(arguments.photos) if arguments.photos else draw_scenes(arguments)
    arch = arguments.arch or ("resnet50" if arguments.photos else SCENES)
    model, wanted = read_network(arguments, own_network, arch)
    model = model.to(device)
    options = choose_options(methods, arguments.layer, arguments.option or [])
    if arguments.layer:
        resolve_layer(model, arguments.layer, "layer")
    cases = [prepare(photo, model, wanted, arguments.target, device) for photo in photos]
    out = output_folder(arguments.out)
    rows = [row for case in cases for row in explain_case(case, model, options, wanted, out)]
    write_sheet(rows, methods, out)


def read_network(arguments: argparse.Namespace, own_network: str | None, arch: str) -> tuple[Module, Recipe]:
    """The network, and what it expects of a photo."""
    if own_network is None:
        return load_network(arch, arguments.weights), recipe(arch, arguments.size)
    if arguments.arch:
        raise ValueError(f"arch={arch!r} does not go with import={own_network!r}; one of them is accepted.")
    model, wanted = import_network(own_network)
    return model, wanted if arguments.size is None else wanted._replace(size=arguments.size)


def explain_case(
    case: Case, model: Module, options: dict[str, dict[str, Any]], wanted: Recipe, out: Path
) -> list[tuple[Tensor, str, dict[str, Tensor]]]:
    """Write the files of a case; return (picture, title, map by method) for each of its targets.

    All targets of the case share one forward pass of each method.
    """
    names = class_names(wanted, case.scores)
    top = case.scores.argsort(descending=True)[:5].tolist()
    say(f"{case.name}: " + ", ".join(f"{names[index]} {case.scores[index]:.1%}" for index in top))
    maps = maps_of(case, model, options)
    rows = []
    for position, target in enumerate(case.targets):
        stem = f"{case.name}_{target}_{slug(names[target])}"
        for name, method_maps in maps.items():
            file = out / f"{stem}_{slug(name)}"
            np.save(f"{file}.npy", method_maps[position].float().cpu().numpy())
            write_png(overlay(case.picture, method_maps[position]), Path(f"{file}.png"))
            say(f"  {file}.png, .npy")
        title = f"{case.name}\n{names[target]}\n{case.scores[target]:.1%}"
        rows.append((case.picture, title, {name: method_maps[position] for name, method_maps in maps.items()}))
    return rows


def maps_of(case: Case, model: Module, options: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """The maps (targets, h, w) of a case, by method.

    Of several methods, one that raises ``ValueError`` is named on stderr and left out; if none is left, it is raised.
    """
    targets = torch.tensor([case.targets], device=case.input.device)
    maps: dict[str, Tensor] = {}
    refused: dict[str, ValueError] = {}
    for name, chosen in options.items():
        method = find_method(name)
        own = {"internal_batch_size": POINTS_AT_ONCE} if method.is_path else {}
        try:
            with progress_of(name) as progress:
                found = method.maps(model, case.input, targets, **{**own, **progress, **chosen})[0]
            if not found.isfinite().all():
                raise ValueError(f"method={name!r} gave a map that holds NaN or infinity; expected finite numbers.")
            maps[name] = found
        except ValueError as error:
            refused[name] = error
    if not maps:
        raise next(iter(refused.values()))
    for name, problem in refused.items():
        sys.stderr.write(f"saliency: {name}: {one_line(problem)}\n")
    return maps


@contextmanager
def progress_of(name: str) -> Iterator[dict[str, Any]]:
    """Give the option that shows the progress of a method on a terminal, if the method takes long and tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None or "progress" not in find_method(name).options:
        yield {}
        return
    with tqdm(desc=name, disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield {"progress": show}


def write_sheet(rows: list[tuple[Tensor, str, dict[str, Tensor]]], methods: list[str], out: Path) -> None:
    """Write ``contact_sheet.png``, or one line on stderr where matplotlib is not installed.

    A column is a method that has a map of every row.
    """
    pictures, titles, maps = zip(*rows, strict=True)
    columns = {name: [row[name] for row in maps] for name in methods if all(name in row for row in maps)}
    try:
        contact_sheet(pictures, columns, titles, out / "contact_sheet.png")
    except ImportError as error:
        sys.stderr.write(f"saliency: no contact sheet: {error}\n")
    else:
        say(f"  {out / 'contact_sheet.png'}")


def read_photos(paths: Sequence[str]) -> list[Photo]:
    """Read all photos; two of the same name get different names in the output."""
    photos: dict[str, Photo] = {}
    for path in paths:
        stem = Path(path).stem
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in photos)
        photos[name] = Photo(name, read_image(path))
    return list(photos.values())


def draw_scenes(arguments: argparse.Namespace) -> list[Photo]:
    """Draw the embedded scenes; only their own networks know their classes."""
    from saliency.scenes import make_scene

    if arguments.arch not in (None, *EMBEDDED):
        raise ValueError(f"photo=[] is empty; arch={arguments.arch!r} needs photos; {' or '.join(EMBEDDED)} does not.")
    seeds = range(arguments.seed, arguments.seed + arguments.scenes)
    scenes = [(seed, make_scene(seed)) for seed in seeds]
    return [
        Photo(f"scene{seed}", scene.image, tuple(dict.fromkeys(item.label for item in scene.objects)))
        for seed, scene in scenes
    ]


def prepare(photo: Photo, model: Module, wanted: Recipe, targets: list[str] | None, device: torch.device) -> Case:
    """Resize and normalise a photo, run the network on it once, and choose the classes to explain."""
    picture = photo.image
    if min(picture.shape[1:]) > SHOWN:
        picture = resize_image(picture, SHOWN)
    batch = preprocess(photo.image, wanted)[None].to(device)
    with torch.no_grad():
        output = model(batch)[0].float().cpu()
    if not output.isfinite().all():
        raise ValueError(f"weights give NaN or infinite scores for photo={photo.name!r}; expected finite numbers.")
    scores = output.sigmoid() if wanted.multi_label else output.softmax(0)
    if targets is None and photo.present:
        return Case(photo.name, picture, batch, scores, list(photo.present))
    names = class_names(wanted, scores)
    chosen = [index for text in targets or ["top1"] for index in find_targets(text, names, scores)]
    return Case(photo.name, picture, batch, scores, list(dict.fromkeys(chosen)))


def class_names(wanted: Recipe, scores: Tensor) -> Sequence[str]:
    """Return the names of the classes, or numbers where the weights have another number of classes."""
    return wanted.classes if len(wanted.classes) == len(scores) else [f"class {i}" for i in range(len(scores))]


def output_folder(path: str) -> Path:
    """Make the folder of the results."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"out={path!r} cannot be made ({why}); accepted is a folder.") from error
    return Path(path)


def slug(name: str) -> str:
    """Return a name fit for a file: ``'bull mastiff'`` is ``'bull_mastiff'``."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")
