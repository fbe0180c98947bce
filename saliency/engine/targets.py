"""Targets: which scores of an output are explained, and the gradient that enters the backward pass for each."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor

from saliency.engine.checks import check_flag, check_maps_type, describe, is_int, shown
from saliency.engine.interrupts import uninterrupted
from saliency.engine.outputs import Output, for_rows, main_output
from saliency.engine.state import on_device, rows_at

Function: TypeAlias = Callable[[Output], Output]  # the model's output -> scores
Target: TypeAlias = int | Sequence[object] | Tensor | Function | None

# A parsed target: class indices (N, K) or the output's gradient; N entries or functions; a function of the output
_Parsed: TypeAlias = Tensor | list[object] | Function | None
_ACCEPTED = (
    "an int, N ints, an (N, K) LongTensor, a float tensor shaped like the output, a tuple of indices or N of them, "
    "None for one score per sample, a function of the output that returns (N,) or (N, K) scores, or a list of N "
    "functions, one for each sample's own output"
)


def target_error(target: object, problem: str) -> ValueError:
    """The error for every invalid target."""
    return ValueError(f"target={shown(target)} {problem}; expected {_ACCEPTED}.")


class Targets:
    """The target of a batch of N samples, parsed once: K scores of every sample.

    What a target may be: see :func:`saliency`; each of N functions returns one number for its own sample's main output.
    Indices are kept and checked on the CPU: nothing waits for the output's device. Raises ``ValueError`` for anything
    but a target of N samples, and later for one that does not fit the output.

    >>> targets = Targets([[1, 2], [0, 0]], 2)
    >>> targets.scores(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
    [[2.0, 3.0], [4.0, 4.0]]
    """

    def __init__(self, target: Target, samples: int) -> None:
        self.samples, self._target = samples, target
        self._parsed = _parse(target, samples)
        if isinstance(self._parsed, Tensor) and self._parsed.is_inference():  # which cannot be part of a graph
            with uninterrupted(), torch.inference_mode(False):
                self._parsed = self._parsed.clone()
        # A single target reaches get_backward_gradient as the user gave it.
        columns = isinstance(target, list) and bool(target) and isinstance(target[0], list)
        self._verbatim = not (columns or hasattr(target, "__array__"))

    def __len__(self) -> int:
        """K, as far as it is known without the output: a function counts as one target."""
        return 1 if self.classes is None else self.classes.shape[1]

    @property
    def classes(self) -> Tensor | None:
        """Class indices (N, K) on the CPU; ``None`` for any other target."""
        return self._parsed if isinstance(self._parsed, Tensor) and not self._parsed.is_floating_point() else None

    @property
    def asked(self) -> Target:
        """The target as the user gave it."""
        return self._target

    @property
    def of_functions(self) -> bool:
        """Do functions of the output return the scores?"""
        return callable(self._parsed) or _are_functions(self._parsed)

    @property
    def key(self) -> tuple[tuple[int, ...], ...] | None:
        """The classes of all samples for each of K targets, a key for equal targets; ``None`` for any other target."""
        return None if self.classes is None else tuple(map(tuple, self.classes.T.tolist()))

    def rows(self, index: Tensor) -> "Targets":
        """The target of a batch whose rows are copies of this one's rows: ``index`` is a LongTensor on the CPU.

        A function is given the output of those rows, and has to treat each row by itself.

        >>> Targets([5, 7], 2).rows(torch.tensor([0, 0, 1])).key
        ((5, 5, 7),)
        """
        taken, parsed = copy(self), self._parsed
        taken.samples, taken._verbatim = len(index), False
        if isinstance(parsed, Tensor):
            taken._parsed = rows_at(parsed, index)
        elif isinstance(parsed, list):
            taken._parsed = [parsed[i] for i in index.tolist()]
        elif callable(parsed):
            taken._parsed = for_rows(parsed, index, self.samples)
        return taken

    def select(self, output: object) -> list[tuple[Tensor, Output]]:
        """K pairs: scores, and what remains to be selected from them by :func:`get_backward_gradient`."""
        if callable(self._parsed):
            return [(scores, None) for scores in self._called(self._parsed, output)]
        scores = self._scores_in(output)
        if _are_functions(self._parsed):
            return [(self._each(self._parsed, scores), None)]
        if self._verbatim:
            return [(scores, self._target)]
        if self.classes is None:
            return [(scores, self._parsed)]
        _check_classes(scores, self.classes, self._target)
        return [(scores, column) for column in self.classes.unbind(1)]

    def gradient(self, scores: Tensor, k: int) -> Tensor:
        """The gradient of ``scores``, the ``k``-th of those selected, as in :func:`get_backward_gradient`."""
        if self.of_functions:
            return torch.ones_like(scores)
        if self.classes is None or len(scores) != self.samples:  # an int is the same class for any number of rows
            return get_backward_gradient(scores, self._target if self._verbatim else self._parsed)
        _check_classes(scores, self.classes, self._target)
        return _one_hot(scores, _on_grid(self.classes[:, k : k + 1], scores))

    def scores(self, output: object) -> Tensor:
        """The explained scores (N, K): sums of what each target selects of the output."""
        if callable(self._parsed) or _are_functions(self._parsed):
            return torch.stack([scores for scores, _ in self.select(output)], 1)
        values = self._scores_in(output)
        self._check_rows(values)
        if self.classes is not None:
            _check_classes(values, self.classes, self._target)
            selected = values.gather(1, _on_grid(self.classes, values).expand(-1, -1, *values.shape[2:]))
            return selected if selected.ndim == 2 else selected.flatten(2).sum(2)
        if isinstance(self._parsed, list):
            return values.reshape(len(values), -1).gather(1, _flat_entries(values, self._parsed, self._target))
        weight = _gradient(values, self._parsed, self._target)
        selected = torch.where(weight == 0, 0, values * weight)  # an entry that is not selected may be infinite
        return selected.reshape(self.samples, -1).sum(1, keepdim=True)

    def _scores_in(self, output: object) -> Tensor:
        found = main_output(output, self.samples)
        if isinstance(found, Tensor):
            return found
        raise target_error(self._target, f"does not apply to an output of type {type(found).__name__}: pass a function")

    def _check_rows(self, output: Tensor) -> None:
        if output.shape[:1] != (self.samples,):
            shape = tuple(output.shape)
            raise target_error(self._target, f"needs an output of {self.samples} rows, but it has shape {shape}")

    def _called(self, function: Function, output: object) -> Sequence[Tensor]:
        vector = self.samples == 1 and isinstance(output, Tensor) and output.ndim < 2
        scores = function(main_output(output, 1) if vector else output)
        fits = isinstance(scores, Tensor) and scores.shape[:1] == (self.samples,)
        if not fits or scores.ndim > 2 or not scores.numel():
            raise target_error(self._target, f"returned {describe(scores)}, not {self.samples} scores, one per sample")
        return scores.unbind(1) if scores.ndim == 2 else [scores]

    def _each(self, functions: list[Function], output: Tensor) -> Tensor:
        self._check_rows(output)
        scores = [function(row) for function, row in zip(functions, output.unbind(0), strict=True)]
        for score in scores:
            if not isinstance(score, Tensor) or score.numel() != 1:
                raise target_error(self._target, f"returned {describe(score)}, not one score")
        return torch.stack([score.reshape(()) for score in scores])


def get_backward_gradient(pred_y: Tensor, y: object) -> Tensor:
    r"""The gradient :math:`dy` of the explained score with respect to the output: 1 where it is selected, else 0.

    ``pred_y`` is the output (N, C, ...), ``y`` any target but a function: an index selects a channel everywhere, a
    float tensor is the gradient itself. Raises ``ValueError`` if ``y`` does not fit the output.

    >>> get_backward_gradient(torch.zeros(2, 3), [0, 2])
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    check_maps_type("pred_y", pred_y)
    parsed = _parse(y, len(pred_y) if pred_y.ndim else 1)
    if callable(parsed) or _are_functions(parsed):
        raise target_error(y, "is not a class index")
    if parsed is None or isinstance(parsed, list) or parsed.is_floating_point():
        return _gradient(pred_y, parsed, y)
    return _one_hot(pred_y, class_indices(pred_y, y))


def _one_hot(output: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(output).scatter_(1, index.expand_as(output[:, :1]), 1)


def get_pointing_gradient(pred_y: Tensor, y: object, normalize: bool = True) -> Tensor:
    r"""The gradient of the pointing game: :math:`e^{y_c}` at the channel of the target, over all positions.

    ``pred_y`` is (N, C) or (N, C, h, w), ``y`` an index or one per sample. With ``normalize`` (the default) the
    gradient of each sample sums to 1: a softmax over the positions.

    >>> get_pointing_gradient(torch.zeros(1, 2, 1, 2), 1)
    tensor([[[[0.0000, 0.0000]],
    <BLANKLINE>
             [[0.5000, 0.5000]]]])
    """
    check_maps_type("pred_y", pred_y)
    check_flag("normalize", normalize)
    index = class_indices(pred_y, y).expand_as(pred_y[:, :1])
    chosen = pred_y.detach().gather(1, index)
    weight = chosen.flatten(1).softmax(1).view_as(chosen) if normalize else chosen.exp()
    return torch.zeros_like(pred_y).scatter_(1, index, weight)


def class_indices(output: Tensor, target: object) -> Tensor:
    """One class for each row of the output: a LongTensor (N, 1, ...) on its device, checked against its classes."""
    classes = _parse_classes(target, len(output) if output.ndim else 1)
    _check_classes(output, classes, target)
    if classes.shape[1] > 1:
        raise target_error(target, f"has shape {tuple(classes.shape)}, but the batch holds {len(output)} samples")
    return _on_grid(classes, output)


def _parse(target: object, samples: int) -> _Parsed:
    """Recognise a target. Raises ``ValueError`` for everything that can be checked without the output."""
    if target is None or callable(target):
        return target
    if isinstance(target, tuple):
        return [target] * samples
    if isinstance(target, list) and target and (isinstance(target[0], tuple) or callable(target[0])):
        if len(target) != samples:
            raise target_error(target, f"has {len(target)} entries, but the batch holds {samples} samples")
        return target
    if isinstance(target, list) and target and all(isinstance(row, list) for row in target):
        if len({len(row) for row in target}) > 1:
            raise target_error(target, "has rows of different lengths")
        target = torch.tensor(target, device="cpu")
    if hasattr(target, "__array__") and not isinstance(target, Tensor):
        try:
            target = torch.as_tensor(target, device="cpu")
        except TypeError as error:
            raise target_error(target, "is not an array of numbers") from error
    if isinstance(target, Tensor) and target.is_floating_point():
        if target.shape[:1] != (samples,):
            raise target_error(target, f"has shape {tuple(target.shape)}, but the batch holds {samples} samples")
        return target.detach()
    return _parse_classes(target, samples)


def _parse_classes(target: object, samples: int) -> Tensor:
    """Class indices (N, K) on the CPU."""
    try:
        index = target if isinstance(target, Tensor) else torch.as_tensor(target, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise target_error(target, "is not a class index") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise target_error(target, f"is of dtype {index.dtype}, which is not that of a class index")
    if index.ndim == 2 and not index.shape[1]:
        raise target_error(target, "is empty")
    columns = index if index.ndim == 2 else index.reshape(-1, 1)
    if index.ndim > 2 or len(columns) not in (1, samples):
        raise target_error(target, f"has shape {tuple(index.shape)}, but the batch holds {samples} samples")
    return columns.cpu().long().expand(samples, -1)


def _are_functions(parsed: object) -> TypeGuard[list[Function]]:
    return isinstance(parsed, list) and bool(parsed) and callable(parsed[0])


def _on_grid(classes: Tensor, output: Tensor) -> Tensor:
    """Classes (N, K) as (N, K, 1, ...) on the output's device, to gather from it."""
    return on_device(classes, output.device)[(...,) + (None,) * (output.ndim - 2)]


def _check_classes(output: Tensor, classes: Tensor, target: object) -> None:
    if output.ndim < 2:
        raise target_error(target, f"selects a class, but the output has shape {tuple(output.shape)}: pass None")
    if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= output.shape[1]):
        raise target_error(target, f"is out of range: the output has classes 0 to {output.shape[1] - 1}")
    if classes.shape[1] == output.shape[1] > 2 and int(classes.max()) == 1:
        raise target_error(target, "holds only 0 and 1, as labels do: pass target.float(), or class indices")


def _gradient(output: Tensor, parsed: Tensor | Sequence[object] | None, target: object) -> Tensor:
    """The gradient of any target except classes and functions."""
    if parsed is None:
        if output.ndim == 0 or output[:1].numel() > 1:
            raise target_error(target, f"needs one score per sample, but the output has shape {tuple(output.shape)}")
        return torch.ones_like(output)
    if not isinstance(parsed, Tensor):
        flat = _flat_entries(output, parsed, target)
        return torch.zeros_like(output).reshape(len(output), -1).scatter(1, flat, 1).view(output.shape)
    if parsed.shape != output.shape:
        raise target_error(target, f"has shape {tuple(parsed.shape)}, but the output has {tuple(output.shape)}")
    return on_device(parsed, output.device, output.dtype)


def _flat_entries(output: Tensor, asked: Sequence[object], target: object) -> Tensor:
    """The position (N, 1) of one entry per sample in the flattened rows of the output."""
    sizes = output.shape[1:]
    entries = [entry for entry in asked if isinstance(entry, tuple) and len(entry) == len(sizes)]
    if not output.ndim or len(entries) < len(asked):
        raise target_error(target, f"does not index an output of shape {tuple(output.shape)} with one tuple per sample")
    if any(not is_int(i) for entry in entries for i in entry):
        raise target_error(target, "holds an index that is not an int")
    if any(not 0 <= i < size for entry in entries for i, size in zip(entry, sizes, strict=True)):
        raise target_error(target, f"is out of range for an output of shape {tuple(output.shape)}")
    strides = torch.empty(sizes, device="meta").stride()
    flat = [sum(int(i) * stride for i, stride in zip(entry, strides, strict=True)) for entry in entries]
    return on_device(torch.tensor(flat, device="cpu")[:, None], output.device)
