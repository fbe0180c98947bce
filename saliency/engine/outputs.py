"""Outputs: which tensor counts of what a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def main_output(output: object, samples: int | None = None) -> Any:
    """What counts of a model's output: ``'logits'`` or ``'out'`` of a mapping or as a field, of a tuple its first.

    Heads that squeeze give one of ``samples`` no row of its own: it is given back, (C,) is (1, C), and () is (1,).

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
