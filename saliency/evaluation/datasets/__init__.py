"""DATASETS: the table of data sets. All annotations are read and checked before the first photo."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from saliency.engine.checks import check_type, shown
from saliency.evaluation.datasets.coco import coco_entries, folder_entries
from saliency.evaluation.datasets.imagenet import imagenet_entries
from saliency.evaluation.datasets.photos import ImageSet, Listing, Loader, collect, read_stored
from saliency.evaluation.datasets.scenes import draw_scene, scene_entries
from saliency.evaluation.datasets.voc import voc_entries
from saliency.images import check_path
from saliency.networks.names import unknown


class Collection(NamedTuple):
    """A row of the table: ``entries(root, **options)`` lists its contents, ``loader(place)`` reads an image.

    Without a parameter ``root`` there is no folder to read from. ``options`` are defaults other than the function's.
    ``package`` reads the annotations, where it is installed by the extra ``benchmark`` alone.
    """

    entries: Callable[..., Listing]
    loader: Loader
    paper: str
    options: Mapping[str, object] = MappingProxyType({})
    package: str = ""

    @property
    def known(self) -> list[str]:
        """The names of the options."""
        return [name for name in signature(self.entries).parameters if name != "root"]

    @property
    def has_root(self) -> bool:
        """Whether the data set is read from a folder."""
        return "root" in signature(self.entries).parameters


_COCO = "Lin et al., Microsoft COCO, ECCV 2014"

_VOC = "Everingham et al., The PASCAL Visual Object Classes, IJCV 2010"
_IMAGENET = "Russakovsky et al., ImageNet Challenge, IJCV 2015"

DATASETS: dict[str, Collection] = {
    "scenes": Collection(scene_entries, draw_scene, ""),
    "voc2007": Collection(voc_entries, read_stored, _VOC, package="defusedxml"),
    "coco2014": Collection(coco_entries, read_stored, _COCO, {"split": "val2014"}, "pycocotools"),
    "coco2017": Collection(coco_entries, read_stored, _COCO, {"split": "val2017"}, "pycocotools"),
    "imagenet": Collection(imagenet_entries, read_stored, _IMAGENET, package="defusedxml"),
    "folder": Collection(folder_entries, read_stored, "", package="pycocotools"),
}


def load_dataset(
    name: str, root: str | Path | None = None, *, on_error: str = "skip", **options: str | Path | int | None
) -> ImageSet:
    """Return a data set of :data:`DATASETS`. Missing, broken or mislabelled items are skipped, and in ``problems``.

    ``root`` holds ``VOCdevkit``, COCO's ``val2014`` and ``annotations``, ImageNet's ``ILSVRC``, or photos of your own
    with a JSON file in COCO's format. Its ``options`` are those of the row: ``split`` is another part (``trainval``,
    ``train2017``) or the subfolder of the photos, ``annotations`` the path of the JSON file, ``scenes`` the number of
    scenes and ``seed`` the first; None is the default. With ``on_error='refuse'`` any problem raises ``ValueError``. So
    does a layout that is not there; ``ImportError`` names a package that is missing.

    >>> [(annotation.name, annotation.size) for annotation in load_dataset("scenes", scenes=2).annotations]
    [('scene0', (128, 128)), ('scene1', (128, 128))]
    """
    _check(name, root, on_error)
    row = DATASETS[name]
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if option not in row.known:
            raise ValueError(f"{option}={shown(value)} is not an option of {name!r}; expected one of {row.known}.")
    if row.package and find_spec(row.package) is None:
        raise ImportError(f"{row.package} is missing; install the extra 'benchmark' of saliency-torch.")
    folder = None if root is None else Path(root)
    where = {"root": folder} if row.has_root else {}
    return collect(name, folder, row.entries(**where, **{**row.options, **given}), row.loader, on_error)


def _check(name: str, root: str | Path | None, on_error: str) -> None:
    check_type("name", name, str, f"one of {', '.join(DATASETS)}")
    if root is not None:
        check_path("root", root)
    if name not in DATASETS:
        raise unknown("dataset", name, list(DATASETS), f"expected one of {', '.join(DATASETS)}")
    if not isinstance(on_error, str) or on_error not in ("skip", "refuse"):
        raise ValueError(f"on_error={shown(on_error)} is unknown; expected 'skip' or 'refuse'.")
    if DATASETS[name].has_root and (root is None or not Path(root).is_dir()):
        given = None if root is None else str(root)
        raise ValueError(f"root={given!r} is not a folder; expected the folder of the data set {name!r}.")
    if root is not None and not DATASETS[name].has_root:
        raise ValueError(f"root={str(root)!r} does not go with {name!r}, which are drawn; expected None.")
