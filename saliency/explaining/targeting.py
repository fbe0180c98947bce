"""Which scores are explained: by index, by the name of a class, the highest ones, or what a function computes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saliency.engine.checks import describe, is_int, name_of, shown
from saliency.engine.outputs import main_output
from saliency.engine.targets import Target, Targets
from saliency.explaining.columns import Score
from saliency.networks.names import find_targets
from saliency.networks.preprocessing import Preprocessing

PREDICTED = 5  # number of highest scores reported


class Chosen(NamedTuple):
    """A target as methods take it, its name, the network's predictions, and why it was chosen."""

    target: Target
    scores: tuple[Score, ...]
    predicted: tuple[Score, ...]
    why: str


def class_scores(output: object, wanted: Preprocessing) -> Tensor | None:
    """The probabilities (classes,) of the one photo, on the CPU; None where the output is not a row of scores."""
    scores = main_output(output, samples=1)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim < 2:
        return None
    if scores.shape[:2].numel() != scores.numel() or len(scores) != 1:
        return None
    row = scores.detach().float().cpu().flatten()
    return row.sigmoid() if wanted.multi_label else row.softmax(0)


def names_of(wanted: Preprocessing, scores: Tensor) -> Sequence[str]:
    """Return the names of the classes, or numbers where the weights have another number of classes."""
    return wanted.classes if len(wanted.classes) == len(scores) else [f"class {i}" for i in range(len(scores))]


def choose_target(target: object, output: object, wanted: Preprocessing) -> Chosen:
    """Choose the scores to explain: a class index, a class name, ``'top'`` or ``'topK'``, or a list of those.

    None is the class with the highest score; anything else is a target as a method takes it. Raises ``ValueError``
    for an unknown class, with the nearest name, and where an output without a row of scores needs a target.
    """
    scores, listed = class_scores(output, wanted), _listed(target)
    predicted = _predicted(scores, wanted)
    if listed is None or (scores is None and listed and all(map(is_int, listed))):
        names = _labels(target, output) if listed is None else map(str, listed)
        asked = target if listed is None else _indices([int(item) for item in listed])
        return Chosen(asked, tuple(map(Score, names)), predicted, "target: as asked")  # type: ignore[arg-type]
    if scores is None:
        raise ValueError(
            f"target={shown(target)} is of no use for an output of {describe(main_output(output))}; expected an index, "
            "a tuple of indices, or a function of the output."
        )
    if not listed:
        raise ValueError(f"target={shown(target)} is empty; expected one class or more.")
    classes = names_of(wanted, scores)
    indices = list(dict.fromkeys(index for item in listed for index in find_targets(str(item), classes, scores)))
    why = "target: the class with the highest score" if target is None else "target: as asked"
    explained = tuple(Score(classes[index], index, float(scores[index])) for index in indices)
    return Chosen(_indices(indices), explained, predicted, f"{why}, {', '.join(map(str, indices))}")


def _listed(target: object) -> list[str | int] | None:
    """The names and indices of classes that a target is, ``'top'`` for None; None where it is of another kind."""
    if isinstance(target, Tensor) and target.dtype == torch.long and target.shape in ((), (1,), (1, target.numel())):
        return [int(index) for index in target.flatten()]
    if isinstance(target, list) or (isinstance(target, tuple) and any(isinstance(item, str) for item in target)):
        items = [*target]
    else:
        items = ["top" if target is None else target]
    return items if all(isinstance(item, str) or is_int(item) for item in items) else None


def _indices(classes: Sequence[int]) -> Target:
    return classes[0] if len(classes) == 1 else torch.tensor([classes], device="cpu")


def _labels(target: object, output: object) -> list[str]:
    """A name for each score that a target of another kind explains: of a function, as many as it returns."""
    if not callable(target):
        return [shown(target) if isinstance(target, tuple) else describe(target)]
    name = name_of(target)
    count = Targets(target, 1).scores(output).shape[1]
    return [name] if count == 1 else [f"{name} {number}" for number in range(count)]


def _predicted(scores: Tensor | None, wanted: Preprocessing) -> tuple[Score, ...]:
    if scores is None:
        return ()
    names = names_of(wanted, scores)
    best = scores.argsort(descending=True)[:PREDICTED].tolist()
    return tuple(Score(names[index], index, float(scores[index])) for index in best)
