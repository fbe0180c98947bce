"""Targets: which outputs are explained, as the gradient that is sent into the backward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import describe, is_int

Target: TypeAlias = int | Sequence[Any] | Tensor | Callable[[Any], Tensor] | None

_ACCEPTED = (
    "an int, N ints, an (N, K) LongTensor, a float tensor shaped like the output, a tuple of indices or a list of N "
    "of them, None for one score per sample, or a function of the output that returns N scores is accepted"
)


def target_error(target: Any, problem: str) -> ValueError:
    """The error that every unusable target raises."""
    shown = describe(target) if isinstance(target, Tensor) and target.numel() > 16 else repr(target)
    return ValueError(f"target={shown} {problem}; {_ACCEPTED}.")


def split_targets(target: Any) -> list[Any]:
    """One target per map: the K columns of an (N, K) array of indices, else the target alone.

    >>> [t.tolist() for t in split_targets([[1, 2], [3, 4]])]
    [[1, 3], [2, 4]]
    """
    if isinstance(target, list) and target and all(isinstance(row, list) for row in target):
        if len({len(row) for row in target}) > 1:
            raise target_error(target, "has rows of different length")
        target = torch.tensor(target)
    if hasattr(target, "__array__") and not isinstance(target, Tensor):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and target.ndim == 2 and not target.is_floating_point():
        if target.shape[1] == 0:
            raise target_error(target, "asks for no map")
        return list(target.unbind(1))
    return [target]


def select_scores(output: Any, target: Any, samples: int) -> tuple[Tensor, Any]:
    """The tensor of scores in a model's output, and what is left of the target.

    A function as target makes the scores itself. Otherwise a tensor is taken as it is, a tuple by its first member,
    a mapping by ``'logits'`` or ``'out'``.
    """
    if callable(target) and not isinstance(target, Tensor):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.shape != (samples,):
            raise target_error(target, f"returned {describe(scores)}, not {samples} scores, one per sample")
        return scores, None
    output = main_output(output)
    if not isinstance(output, Tensor):
        raise target_error(target, f"cannot choose from an output of type {type(output).__name__}; pass a function")
    return output, target


def main_output(output: Any) -> Any:
    """What counts of a model's output: of a mapping ``'logits'`` or ``'out'``, of a tuple its first member."""
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out", output))
    return output[0] if isinstance(output, (tuple, list)) and output else output


def score_of(output: Any, target: Any, samples: int) -> Tensor:
    """The explained score of every sample, (N,): the sum of what the target selects of the output.

    >>> score_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [1, 0], 2)
    tensor([2., 3.])
    """
    scores, rest = select_scores(output, target, samples)
    weight = get_backward_gradient(scores, rest)
    selected = torch.where(weight == 0, 0, scores * weight)  # what is not selected may be infinite
    return selected.reshape(samples, -1).sum(1)


def take_rows(target: Any, index: Tensor, samples: int) -> Any:
    """The target of a batch whose rows are copies of those of a batch of ``samples``, in the order of ``index``.

    A function as target is given that batch's output, and has to treat every sample by itself.

    >>> take_rows([5, 7], torch.tensor([0, 0, 1]), 2)
    tensor([5, 5, 7])
    """
    if target is None or isinstance(target, tuple) or (callable(target) and not isinstance(target, Tensor)):
        return target
    if isinstance(target, list) and target and isinstance(target[0], tuple):
        if len(target) != samples:
            raise target_error(target, f"has {len(target)} entries, but the batch holds {samples} samples")
        return [target[i] for i in index.tolist()]
    if isinstance(target, Tensor) and target.is_floating_point():
        if len(target) != samples:
            raise target_error(target, f"has shape {tuple(target.shape)}, but the batch holds {samples} samples")
        return target[index.to(target.device)]
    rows = _index_per_sample(target, samples)
    return rows.expand(samples)[index.to(rows.device)]


def get_backward_gradient(pred_y: Tensor, y: Any) -> Tensor:
    r"""The gradient :math:`dy` of the explained score with respect to the output: 1 where it is selected, else 0.

    ``pred_y`` is the (N, C, ...) output. An index, or one per sample, selects a channel everywhere; a tuple of
    indices one entry of an output of more dimensions; ``None`` an only score; a float tensor is the gradient itself.
    Raises ``ValueError`` where ``y`` does not fit the output.

    >>> get_backward_gradient(torch.zeros(2, 3), [0, 2])
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """
    if y is None:
        if pred_y[:1].numel() > 1:
            raise target_error(y, f"needs one score per sample, but the output has shape {tuple(pred_y.shape)}")
        return torch.ones_like(pred_y)
    if isinstance(y, Tensor) and y.is_floating_point():
        if y.shape != pred_y.shape:
            raise target_error(y, f"has shape {tuple(y.shape)}, but the output has {tuple(pred_y.shape)}")
        return y.detach().to(pred_y)
    gradient = torch.zeros_like(pred_y)
    if isinstance(y, tuple) or (isinstance(y, list) and y and isinstance(y[0], tuple)):
        gradient[_entries(pred_y, y)] = 1
        return gradient
    index = class_indices(pred_y, y)
    return gradient.scatter_(1, index.expand_as(gradient[:, :1]), 1)


def get_pointing_gradient(pred_y: Tensor, y: Any, normalize: bool = True) -> Tensor:
    r"""The gradient of the pointing game: :math:`e^{y_c}` at the channel of the target, over all positions.

    ``pred_y`` is (N, C) or (N, C, h, w), ``y`` an index or one per sample. With ``normalize`` (the default) the
    gradient of each sample sums to 1: a softmax over the positions.

    >>> get_pointing_gradient(torch.zeros(1, 2, 1, 2), 1)
    tensor([[[[0.0000, 0.0000]],
    <BLANKLINE>
             [[0.5000, 0.5000]]]])
    """
    index = class_indices(pred_y, y).expand_as(pred_y[:, :1])
    chosen = pred_y.detach().gather(1, index)
    weight = chosen.flatten(1).softmax(1).view_as(chosen) if normalize else chosen.exp()
    return torch.zeros_like(pred_y).scatter_(1, index, weight)


def class_indices(output: Tensor, target: Any) -> Tensor:
    """Targets as an (N, 1, ...) or (1, 1, ...) LongTensor on the output's device, checked against the output."""
    if output.ndim < 2:
        raise target_error(target, f"selects a class, but the output has shape {tuple(output.shape)}: pass None")
    samples, classes = output.shape[:2]
    index = _index_per_sample(target, samples)
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= classes):
        raise target_error(target, f"is out of range: the output has classes 0 to {classes - 1}")
    return index.to(output.device).reshape(-1, *[1] * (output.ndim - 1))


def _index_per_sample(target: Any, samples: int) -> Tensor:
    """The target as a LongTensor of one index for all, (1,), or one for each, (samples,)."""
    index = _as_index(target)
    index = index.squeeze(1) if index.ndim == 2 and index.shape[1] == 1 else index
    if index.ndim > 1 or index.numel() not in (1, samples):
        raise target_error(target, f"has shape {tuple(index.shape)}, but the batch holds {samples} samples")
    return index.reshape(-1)


def _as_index(target: Any) -> Tensor:
    try:
        index = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise target_error(target, "is no class index") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise target_error(target, f"is of type {index.dtype}, no class index")
    return index.long()


def _entries(output: Tensor, target: Any) -> tuple[Any, ...]:
    """The index of one entry per sample."""
    samples = output.shape[0]
    rows = [target] * samples if isinstance(target, tuple) else target
    if len(rows) != samples:
        raise target_error(target, f"has {len(rows)} entries, but the batch holds {samples} samples")
    if any(not isinstance(row, tuple) or len(row) != output.ndim - 1 for row in rows):
        raise target_error(target, f"does not index an output of shape {tuple(output.shape)} with one tuple a sample")
    for row in rows:
        if any(not is_int(i) for i in row):
            raise target_error(target, "holds an index that is no int")
        if any(not 0 <= i < size for i, size in zip(row, output.shape[1:], strict=True)):
            raise target_error(target, f"is out of range for an output of shape {tuple(output.shape)}")
    return (torch.arange(samples), *torch.tensor(rows, dtype=torch.long).reshape(samples, output.ndim - 1).unbind(1))


class Targets:
    """A target, parsed once (to be replaced)."""

    def __init__(self, target: Any, samples: int) -> None:
        self.columns, self.samples = split_targets(target), samples

    @property
    def key(self) -> tuple[tuple[int, ...], ...] | None:
        """Equal for equal index targets on the CPU."""
        index = [c for c in self.columns if isinstance(c, Tensor) and not c.is_floating_point() and not c.is_cuda]
        if len(index) == len(self.columns):
            return tuple(tuple(c.reshape(-1).tolist()) for c in index)
        one = self.columns[0]
        if isinstance(one, int):
            return ((one,) * self.samples,)
        return (tuple(one),) if isinstance(one, list) and all(isinstance(i, int) for i in one) else None

    def rows(self, index: Tensor) -> "Targets":
        """The target of a batch of such rows."""
        new = Targets(None, len(index))
        new.columns = [take_rows(column, index, self.samples) for column in self.columns]
        return new

    def select(self, output: Any) -> list[tuple[Tensor, Any]]:
        """The pairs for get_backward_gradient."""
        scores, rest = select_scores(output, self.columns[0], self.samples)
        if len(self.columns) == 1:
            return [(scores, rest)]
        return [(scores, column) for column in self.columns]

    def scores(self, output: Any) -> Tensor:
        """(B, K)."""
        return torch.stack([score_of(output, column, self.samples) for column in self.columns], 1)
