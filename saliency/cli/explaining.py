"""``saliency explain``: pictures of photos, or of the embedded scenes, and what the network sees in them."""

import argparse
import itertools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch.nn import Module

import saliency
from saliency.cli.ending import tell_warning
from saliency.cli.naming import find_method
from saliency.cli.options import choose_device, choose_methods, choose_options, import_modules, split_layers
from saliency.cli.parsing import add_network_files, numbers, positive, say
from saliency.evaluation.explainers import Explainer
from saliency.evaluation.printing import one_line
from saliency.explaining.choosing import Asked, check_layers, choose
from saliency.explaining.entry import normalising
from saliency.explaining.explanation import Explanation
from saliency.explaining.photos import Photo, prepare
from saliency.explaining.running import Network, explain_photo
from saliency.explaining.viewer import viewer_page
from saliency.images import read_image, write_png
from saliency.networks.models import EMBEDDED, SCENES, load_network, preprocessing
from saliency.networks.own import import_network
from saliency.networks.preprocessing import Preprocessing

TOLD = 3  # predictions printed for a photo, and photos for a warning

Heard: TypeAlias = dict[tuple[str, str], list[str]]  # the photos by method and what it warns of


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``saliency explain``."""
    parser.description = (
        "Write a picture for every photo: what the network sees in it, by method and target. Without a photo, embedded "
        "scenes and their network are explained."
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="image files")
    _add_network(add)
    _add_asked(add)
    add("--save", action="append", choices=("maps", "overlays"), help="also .npy of the raw maps, or a PNG of each")
    add(
        "--html",
        action="store_true",
        help="also viewer.html, to compare all maps: 60 KB a photo, 10 KB a map of input size",
    )
    add("--json", action="store_true", help="print what was done as JSON")
    add("--scenes", type=positive, metavar="N", default=4, help="number of embedded scenes (4)")
    add("--seed", type=int, metavar="N", default=0, help="seed of the first embedded scene (0)")
    add("--out", default="saliency_out", metavar="DIR", help="folder of the results (./saliency_out)")
    parser.set_defaults(run=explain)


def _add_network(add: Callable[..., object]) -> None:
    """The network, and its preprocessing."""
    add("--arch", help="a classifier of torchvision, timm:NAME, hf:NAME|FOLDER, scenes[_vit] (resnet50; or scenes)")
    add_network_files(add)
    add("--size", type=positive, metavar="N", help="shorter side of the input; the whole photo (the network's own)")
    add("--crop", action=argparse.BooleanOptionalAction, help="cut off borders as the network's own transform does")
    add("--mean", type=numbers, metavar="M[,M,M]", help="of the normalisation, RGB in [0, 1] (the network's own)")
    add("--std", type=numbers, metavar="S[,S,S]", help="of the normalisation (the network's own)")
    add("--device", default="auto", metavar="auto|cpu|cuda", help="auto is cuda where available")


def _add_asked(add: Callable[..., object]) -> None:
    """Methods, layers, options and targets."""
    add(
        "--method", action="append", metavar="NAME", help="repeatable; 'all', my_module:function, smooth_grad(gradient)"
    )
    add(
        "--layer", action="append", metavar="[METHOD=]NAME", help="see 'saliency layers'; repeatable (the methods' own)"
    )
    add("--option", action="append", metavar="NAME=VALUE", help="for the methods that have it, such as num_masks=500")
    add("--target", action="append", metavar="INDEX|NAME|top[K]", help="repeatable (top1; a scene's own objects)")
    add("--resize", action="store_true", help="maps of the input's size, not at the layer's resolution")


def explain(arguments: argparse.Namespace) -> None:
    """Explain photos or scenes; photos, network, layers and options are checked before the first map is computed."""
    own = import_modules(arguments.imported or ())
    methods = choose_methods(arguments.method or ["grad_cam"])
    device = choose_device(arguments.device)
    wanted, source, build = find_network(arguments, own)
    photos = find_photos(arguments, wanted)
    network = Network(build().to(device), wanted, source)
    asked = ask(methods, arguments)
    check_layers(network.model, asked, "layer")
    out = output_folder(arguments.out)
    done: list[dict[str, Any]] = []
    viewed: list[dict[str, object]] = []
    refused: dict[str, str] = {}
    heard: Heard = {}
    for photo, present in photos:
        watched = partial(watch, photo.name, heard)
        found = explain_photo(network, photo, arguments.target or present, asked, watched)
        done.append(told(found, write(found, arguments.save or [], out)))
        refused |= {name: text for name, text in found.refused.items() if name not in refused}
        viewed += [found.viewed()] if arguments.html else []
        if not arguments.json:
            predicted, explained = (", ".join(map(str, one)) for one in (found.predicted[:TOLD], found.scores))
            say(f"{found.photo}: {predicted}; explained: {explained} -> {done[-1]['files'][0]}")
    tell_problems(heard, refused)
    if arguments.html:
        (out / "viewer.html").write_text(viewer_page(viewed), "utf-8")
    if arguments.json:
        network_of = {"network": network.source, "weights": None if own else str(arguments.weights)}
        say(json.dumps({"saliency": saliency.__version__, **network_of, "photos": done}, indent=2))
    elif arguments.html:
        say(f"viewer: {out / 'viewer.html'}")


def find_network(arguments: argparse.Namespace, own: str | None) -> tuple[Preprocessing, str, Callable[[], Module]]:
    """The network's preprocessing, its name, and the function that builds it, which may download weights."""
    if own is not None:
        if arguments.arch is not None:
            raise ValueError(f"arch={arguments.arch!r} does not go with import={own!r}; expected one of them.")
        model, wanted = import_network(own)
        wanted = wanted if arguments.size is None else wanted.resized(arguments.size, f"import={own!r}")
        return normalising(wanted, arguments.mean, arguments.std), own, lambda: model
    arch = ("resnet50" if arguments.photos else SCENES) if arguments.arch is None else arguments.arch
    wanted = normalising(preprocessing(arch, arguments.size), arguments.mean, arguments.std)
    if not arguments.photos and arch not in EMBEDDED:
        raise ValueError(f"photo=[] is empty; expected photos for arch={arch!r}, or {' or '.join(EMBEDDED)}.")
    return wanted, arch, lambda: load_network(arch, arguments.weights)


def ask(methods: Sequence[str], arguments: argparse.Namespace) -> list[Asked]:
    """The columns of every picture: the methods at their layers, with their options."""
    common, own = split_layers(arguments.layer or [], methods)
    pairs = [*(["resize=True"] if arguments.resize else []), *(arguments.option or [])]
    options = choose_options(methods, common[0] if common else None, pairs)
    asked = []
    for name in methods:
        method = find_method(name)
        function = method.function if method.row else Explainer(method.function).maps
        layers = own.get(name) or (common if "saliency_layer" in options[name] else None)
        chosen = {option: value for option, value in options[name].items() if option != "saliency_layer"}
        asked += [column._replace(options=chosen) for column in choose({name: function}, layers, {})]
    return asked


def write(found: Explanation, also: Sequence[str], out: Path) -> list[str]:
    """Write the files of a photo; return their names. Without matplotlib its overlays stand in for the one picture."""
    files = []
    try:
        picture = out / f"{found.photo}.png"
        found.save(picture)
        files.append(picture)
    except ImportError as error:
        also = [*also, "overlays"]
        sys.stderr.write(f"saliency: a picture of every map, in place of one: {error}\n")
    for (name, number), picture_of in found.overlays().items() if also else ():
        score = found.scores[number]
        stem = out / "_".join([found.photo, str(score.class_index), slug(score.name), slug(name)])
        if "maps" in also:
            files.append(Path(f"{stem}.npy"))
            np.save(files[-1], found.maps[name][0, number].float().cpu().numpy())
        if "overlays" in also:
            files.append(Path(f"{stem}.png"))
            write_png(picture_of, files[-1])
    return [str(file) for file in files]


def told(found: Explanation, files: list[str]) -> dict[str, Any]:
    """The record of a photo, for JSON."""
    return {
        "photo": found.photo,
        "input": list(found.input.shape),
        "predicted": [score._asdict() for score in found.predicted],
        "targets": [score._asdict() for score in found.scores],
        "maps": [
            {"name": column.name, "method": column.method, "layer": column.layer, "shape": list(column.maps.shape)}
            for column in found.columns
        ],
        "why": list(found.why),
        "left_out": dict(found.refused),
        "files": files,
    }


def tell_problems(heard: Heard, refused: dict[str, str]) -> None:
    """Write what methods warned of, and which were left out, to stderr: a line each, whatever the number of photos."""
    for (method, text), names in heard.items():
        more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
        tell_warning("saliency", f"{method} of {', '.join(names[:TOLD])}{more}: {text}")
    if refused:
        sys.stderr.write(f"saliency: left out: {one_line(ValueError(by_reason(refused)))}\n")


def by_reason(refused: dict[str, str]) -> str:
    """The methods that were left out, those of one reason together.

    >>> by_reason({"a": "no attention", "b": "one image", "c": "no attention"})
    'a, c (no attention); b (one image)'
    """
    reasons: dict[str, list[str]] = {}
    for name, text in refused.items():
        reasons.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)} ({text.rstrip('.')})" for text, names in reasons.items())


@contextmanager
def watch(photo: str, heard: Heard, method: str) -> Iterator[dict[str, Any]]:
    """Show the progress of a method; add the photo to those that it warns of, by method and text."""
    with warnings.catch_warnings(), progress_of(method) as options:
        warnings.showwarning = lambda message, *_: heard.setdefault((method, str(message)), []).append(photo)
        yield options


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


def find_photos(arguments: argparse.Namespace, wanted: Preprocessing) -> Iterable[tuple[Photo, Sequence[int] | None]]:
    """The photos, or the embedded scenes, each with the targets that it suggests."""
    if not arguments.photos:
        return draw_scenes(arguments, wanted)
    return read_photos(arguments.photos, wanted, arguments.size is None if arguments.crop is None else arguments.crop)


def read_photos(paths: Sequence[str], wanted: Preprocessing, crop: bool) -> Iterator[tuple[Photo, None]]:
    """Check all photos, then read them one by one; two of the same name get different names in the output."""
    named: dict[str, str] = {}
    for path in paths:
        read_image(path)
        stem = Path(path).stem
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        named[next(name for name in names if name not in named)] = path
    return ((prepare(path, wanted, crop, name), None) for name, path in named.items())


def draw_scenes(arguments: argparse.Namespace, wanted: Preprocessing) -> list[tuple[Photo, list[int]]]:
    """Draw the embedded scenes, each with the classes of its objects."""
    from saliency.scenes import make_scene

    seeds = range(arguments.seed, arguments.seed + arguments.scenes)
    scenes = [(seed, make_scene(seed)) for seed in seeds]
    return [
        (
            prepare(scene.image, wanted, False, f"scene{seed}"),
            list(dict.fromkeys(item.label for item in scene.objects)),
        )
        for seed, scene in scenes
    ]


def output_folder(path: str) -> Path:
    """Make the folder of the results."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"out={path!r} cannot be made ({why}); expected a folder.") from error
    return Path(path)


def slug(name: str) -> str:
    """Return a name fit for a file: ``'bull mastiff'`` is ``'bull_mastiff'``."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")
