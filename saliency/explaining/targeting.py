"""Which scores are explained: by index, by the name of a class, the highest ones, or what a function computes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saliency.engine.checks import describe, is_int, shown
from saliency.engine.outputs import main_output
from saliency.engine.targets import Target
from saliency.explaining.columns import Score
from saliency.networks.names import find_targets
from saliency.networks.preprocessing import Recipe

PREDICTED = 5  # number of highest scores reported


class Chosen(NamedTuple):
    """A target as methods take it, its name, the network's predictions, and why it was chosen."""

    target: Target
    scores: tuple[Score, ...]
    predicted: tuple[Score, ...]
    why: str


def class_scores(output: object, wanted: Recipe) -> Tensor | None:
    """The probabilities (classes,) of the one photo, on the CPU; None where the output is not a row of scores."""
    scores = main_output(output, samples=1)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim < 2:
        return None
    if scores.shape[:2].numel() != scores.numel() or len(scores) != 1:
        return None
    row = scores.detach().float().cpu().flatten()
    return row.sigmoid() if wanted.multi_label else row.softmax(0)


def names_of(wanted: Recipe, scores: Tensor) -> Sequence[str]:
    """Return the names of the classes, or numbers where the weights have another number of classes."""
    return wanted.classes if len(wanted.classes) == len(scores) else [f"class {i}" for i in range(len(scores))]


def choose_target(target: object, output: object, wanted: Recipe) -> Chosen:
    """Choose the scores to explain: a class index, a class name, ``'top'`` or ``'topK'``, or a list of those.

    None is the class with the highest score; anything else is a target as a method takes it. Raises ``ValueError``
    for an unknown class, with the nearest name, and where an output without a row of scores needs a target.
    """
    scores = class_scores(output, wanted)
    if isinstance(target, Tensor) and target.dtype == torch.long and target.shape in ((), (1,), (1, target.numel())):
        target = target.flatten().tolist()
    if isinstance(target, tuple) and any(isinstance(item, str) for item in target):  # not an index of an output
        target = list(target)
    several = isinstance(target, list) and all(isinstance(item, str) or is_int(item) for item in target)
    by_class = target is None or isinstance(target, str) or is_int(target) or several
    if not by_class or (is_int(target) and scores is None):
        label = shown(target) if isinstance(target, (int, tuple)) else getattr(target, "__name__", describe(target))
        return Chosen(target, (Score(label),), _predicted(scores, wanted), "target: as asked")  # type: ignore[arg-type]
    if scores is None:
        raise ValueError(
            f"target={shown(target)} is of no use for an output of {describe(main_output(output))}; expected an index, "
            "a tuple of indices, or a function of the output."
        )
    names = names_of(wanted, scores)
    asked: list[object] = ["top"] if target is None else [*target] if isinstance(target, list) else [target]
    if not asked:
        raise ValueError(f"target={shown(target)} is empty; expected one class or more.")
    found = [index for item in asked for index in find_targets(str(item), names, scores)]
    indices = list(dict.fromkeys(found))
    why = "target: the class with the highest score" if target is None else "target: as asked"
    explained = tuple(Score(names[index], index, float(scores[index])) for index in indices)
    parsed = indices[0] if len(indices) == 1 else torch.tensor([indices], device="cpu")
    return Chosen(parsed, explained, _predicted(scores, wanted), f"{why}, {', '.join(map(str, indices))}")


def _predicted(scores: Tensor | None, wanted: Recipe) -> tuple[Score, ...]:
    if scores is None:
        return ()
    names = names_of(wanted, scores)
    best = scores.argsort(descending=True)[:PREDICTED].tolist()
    return tuple(Score(names[index], index, float(scores[index])) for index in best)
