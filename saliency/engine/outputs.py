"""Outputs: the tensor to explain among what a model returns, and functions of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from saliency.engine.checks import shown


def main_output(output: object, samples: int | None = None) -> Any:
    """The tensor to explain: a mapping's or object's ``'logits'`` or ``'out'``, or the first element of a tuple.

    If a head has squeezed the batch axis of one of ``samples`` = 1, it is restored: (C,) becomes (1, C), and () becomes
    (1,).

    >>> import torch
    >>> main_output({"logits": torch.zeros(5)}, samples=1).shape
    torch.Size([1, 5])
    """
    mapping = output if isinstance(output, Mapping) else None
    named = (getattr(output, key, None) if mapping is None else mapping.get(key) for key in ("logits", "out"))
    output = next((found for found in named if found is not None), output)
    output = output[0] if isinstance(output, (tuple, list)) and output else output
    squeezed = samples == 1 and isinstance(output, Tensor) and output.shape[:1] != (1,)
    return output[None] if squeezed and isinstance(output, Tensor) else output


def for_rows(function: Callable[[Any], Any], index: Tensor, samples: int) -> Callable[[Any], Any]:
    """Adapt a function of the output of ``samples`` rows to the rows ``index``, each treated by itself.

    A function that holds something per image, such as labels, fits no other number of rows. If there are equally many,
    but different ones, it would fit by accident: it is then given them in two parts.
    """
    if len(index) != samples or samples == 1 or index.tolist() == list(range(samples)):
        return function

    def in_parts(output: Any) -> Any:
        if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == (samples,) for leaf in tree_leaves(output)):
            return function(output)
        parts = [function(tree_map(lambda x, rows=rows: x[rows], output)) for rows in (slice(1), slice(1, None))]
        for scores, rows in zip(parts, (1, samples - 1), strict=True):
            if not isinstance(scores, Tensor) or scores.shape[:1] != (rows,):
                raise ValueError(
                    f"target={shown(function)} does not return {rows} scores for {rows} rows; expected a function of "
                    "each row by itself, which may be given any chunk of rows, or a list of one function per image."
                )
        return torch.cat(parts)

    return in_parts
