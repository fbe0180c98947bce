"""How well scores rank the images that contain a class."""

import torch
from torch import Tensor

from saliency.engine.checks import check_tensor


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    r"""Average precision: the mean precision at the rank of every positive, in [0, 1], for each class.

    .. math:: AP_c = \frac{1}{|P_c|} \sum_{i \in P_c} \frac{|\{j \in P_c : s_j \ge s_i\}|}{|\{j : s_j \ge s_i\}|}

    ``scores`` (N, C) are real; ``labels`` (N, C) are 1 for the positives :math:`P_c` of a class, else 0. A class
    without positives gives NaN. Raises ``ValueError`` if the shapes differ or are not (N, C).

    >>> average_precision(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]]))
    tensor([0.8333])
    """
    check_tensor("scores", scores)
    check_tensor("labels", labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores={tuple(scores.shape)!r} do not fit labels {tuple(labels.shape)}; expected (N, C).")
    values = []
    for score, positive in zip(scores.T, labels.T.bool(), strict=True):
        above = score[None, :] >= score[positive][:, None]
        values.append(((above & positive).sum(1) / above.sum(1)).mean())
    return torch.stack(values)
