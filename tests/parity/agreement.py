"""How far two results are apart."""

import torch
from torch import Tensor


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value of a reference that is finite and not all zero."""
    assert ours.shape == theirs.shape
    assert torch.isfinite(theirs).all()
    assert theirs.abs().max() > 0
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_agree(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Every image of the batch on its own, so that a bright one does not hide a dim one."""
    errors = [relative_error(*pair) for pair in zip(ours.detach(), theirs.detach(), strict=True)]
    assert max(errors) <= tolerance, errors
