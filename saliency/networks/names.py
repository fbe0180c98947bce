"""Names: the nearest to an unknown one, and the class that a name stands for."""

import difflib
import re
from collections.abc import Sequence

from torch import Tensor

from saliency.engine.checks import check_tensor, check_type, shown


def find_class(name: str, classes: Sequence[str]) -> int:
    """Return the index of the class called ``name``, whatever the case.

    The whole name counts first, then one of its aliases (``'tench, Tinca tinca'``), then a whole word that only one
    class has. Raises :class:`ValueError` with the nearest name, or with the classes that ``name`` may mean.

    >>> find_class("Tabby", ["tabby", "tiger cat", "bull mastiff"]), find_class("mastiff", ["tabby", "bull mastiff"])
    (0, 1)
    """
    check_type("name", name, str, "the name of a class")
    check_type("classes", classes, (list, tuple), "the names of the classes")
    for entry in classes:
        check_type("classes", entry, str, "the names of the classes")
    wanted, names = name.strip().lower(), [entry.lower() for entry in classes]
    word = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
    tests = (
        lambda entry: entry == wanted,
        lambda entry: wanted in [alias.strip() for alias in entry.split(",")],
        lambda entry: bool(wanted) and bool(word.search(entry)),
    )
    for test in tests:
        found = [index for index, entry in enumerate(names) if test(entry)]
        if len(found) == 1:
            return found[0]
        if found:
            meant = ", ".join(f"{index} {classes[index]!r}" for index in found[:8])
            raise ValueError(f"target={shown(name)} is ambiguous; expected the index or the name: {meant}.")
    words = sorted({part for entry in classes for part in re.findall(r"\w+", entry)})
    raise unknown("target", name, [*classes, *words], "expected a class index, a class name, 'top' or 'topK'")


def find_targets(text: str, classes: Sequence[str], scores: Tensor) -> list[int]:
    """Return the class indices of ``INDEX``, ``NAME`` or ``topK`` (``top`` is ``top1``).

    Raises :class:`ValueError` for anything else, an index out of range, or a ``K`` beyond the classes.

    >>> import torch
    >>> [find_targets(text, ["cat", "dog"], torch.tensor([0.4, 0.6])) for text in ("top2", "0", "Dog")]
    [[1, 0], [0], [1]]
    """
    check_type("text", text, str, "INDEX, NAME or topK")
    check_tensor("scores", scores)
    if scores.ndim != 1:
        raise ValueError(f"scores={tuple(scores.shape)} are not those of one image; expected (classes,).")
    if top := re.fullmatch(r"top(\d*)", text):
        count = int(top[1] or 1)
        if not 1 <= count <= len(scores):
            raise ValueError(f"target={shown(text)} asks for {count} classes; expected 'top1' to 'top{len(scores)}'.")
        return scores.argsort(descending=True)[:count].tolist()
    if re.fullmatch(r"-?\d+", text):
        if not 0 <= int(text) < len(scores):
            raise ValueError(f"target={shown(text)} is not a class of the network; expected 0 to {len(scores) - 1}.")
        return [int(text)]
    return [find_class(text, classes)]


def unknown(argument: str, value: str, names: Sequence[str], expected: str) -> ValueError:
    """Return the error for a name that is not in ``names``, with the nearest one.

    >>> unknown("arch", "resnet5", ["resnet50", "vgg16"], "expected a network")
    ValueError("arch='resnet5' is unknown; did you mean 'resnet50'? expected a network.")
    """
    nearest = difflib.get_close_matches(value.lower(), [name.lower() for name in names], n=1, cutoff=0.0)
    hint = f"did you mean {_spelling(nearest[0], names)!r}? " if nearest else ""
    return ValueError(f"{argument}={shown(value)} is unknown; {hint}{expected}.")


def _spelling(lowered: str, names: Sequence[str]) -> str:
    return next(name for name in names if name.lower() == lowered)
