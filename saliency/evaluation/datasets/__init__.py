"""Data sets by name: annotated photos, all of whose annotations are read and checked before the first photo."""

from pathlib import Path

from saliency.engine.checks import check_type, shown
from saliency.evaluation.cases import Dataset
from saliency.evaluation.datasets.coco import coco_set, folder_set
from saliency.evaluation.datasets.imagenet import imagenet_set
from saliency.evaluation.datasets.scenes import SceneSet
from saliency.evaluation.datasets.voc import voc_set
from saliency.evaluation.networks.models import unknown
from saliency.images import check_path

# Each name, with its split where none is asked for.
DATASETS: dict[str, str | None] = {
    "scenes": None,
    "voc2007": "test",
    "coco2014": "val2014",
    "coco2017": "val2017",
    "imagenet": "val",
    "folder": None,
}


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    split: str | None = None,
    annotations: str | Path | None = None,
    on_error: str = "skip",
    scenes: int = 100,
    seed: int = 0,
) -> Dataset:
    """Return a data set of :data:`DATASETS`. What is missing, broken or mislabelled is skipped and in ``problems``.

    ``root`` holds ``VOCdevkit``, COCO's ``val2014`` and ``annotations``, ImageNet's ``ILSVRC``, or photos of your own
    with a JSON file in COCO's format. ``split`` is another part (``trainval``, ``train2017``) or the subfolder of the
    photos, ``annotations`` the path of the JSON file. ``scenes`` and ``seed`` say how many scenes there are, and the
    first. With ``on_error='refuse'`` any problem raises ``ValueError``. So does a layout that is not there.

    >>> [(annotation.name, annotation.size) for annotation in load_dataset("scenes", scenes=2).annotations]
    [('scene0', (128, 128)), ('scene1', (128, 128))]
    """
    _check(name, root, on_error)
    if name == "scenes" or root is None:
        return SceneSet(scenes, seed)
    folder, file = Path(root), Path(annotations) if annotations else None
    part = split or DATASETS[name] or ""
    if name == "voc2007":
        return voc_set(name, folder, part, on_error)
    if name == "imagenet":
        return imagenet_set(name, folder, part, on_error)
    if name == "folder":
        return folder_set(name, folder, part, file, on_error)
    return coco_set(name, folder, part, file, on_error)


def _check(name: str, root: str | Path | None, on_error: str) -> None:
    check_type("name", name, str, f"one of {', '.join(DATASETS)}")
    if root is not None:
        check_path("root", root)
    if name not in DATASETS:
        raise unknown("dataset", name, list(DATASETS), f"one of {', '.join(DATASETS)} is accepted")
    if not isinstance(on_error, str) or on_error not in ("skip", "refuse"):
        raise ValueError(f"on_error={shown(on_error)} is unknown; 'skip' or 'refuse' is accepted.")
    if name != "scenes" and (root is None or not Path(root).is_dir()):
        given = None if root is None else str(root)
        raise ValueError(f"root={given!r} is no folder; the folder of the data set {name!r} is accepted.")
    if name == "scenes" and root is not None:
        raise ValueError(f"root={str(root)!r} does not go with 'scenes', which are drawn; None is accepted.")
