"""Targets: functions of a model's output that define the score to explain, beyond the score of a class.

Each can be the ``target`` of any method: ``grad_cam(model, image, difference(3, 5))``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from saliency.engine.checks import check_tensor, describe, is_int, is_number, shown
from saliency.engine.outputs import Output, main_output

Score: TypeAlias = Callable[[Output], Tensor]  # the model's output -> (N,)
_SIDES = ("x1", "y1", "x2", "y2")


def probability(index: int) -> Score:
    """The softmax probability :math:`p_c` of a class.

    >>> probability(1)(torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    _check_class("index", index)
    return lambda output: _classes(output, index).softmax(1)[:, index]


def log_odds(index: int) -> Score:
    r"""The log-odds of a class: :math:`\log \frac{p_c}{1 - p_c} = z_c - \log \sum_{j \ne c} e^{z_j}`.

    Unlike the probability, it does not saturate; unlike the class's logit, it falls when another logit rises.

    >>> log_odds(1)(torch.tensor([[0.0, 2.0]]))
    tensor([2.])
    """
    _check_class("index", index)

    def score(output: Output) -> Tensor:
        scores = _classes(output, index)
        others = torch.cat([scores[:, :index], scores[:, index + 1 :]], 1)
        return scores[:, index] - others.logsumexp(1)

    return score


def difference(index: int, other: int) -> Score:
    """The score of one class minus that of another: why ``index`` rather than ``other``?

    >>> difference(0, 2)(torch.tensor([[5.0, 1.0, 2.0]]))
    tensor([3.])
    """
    _check_class("index", index)
    _check_class("other", other)

    def score(output: Output) -> Tensor:
        scores = _classes(output, index, other)
        return scores[:, index] - scores[:, other]

    return score


def total(indices: Sequence[int]) -> Score:
    """The sum of the scores of several classes, such as all breeds of dogs, or all labels of an image.

    >>> total([0, 2])(torch.tensor([[5.0, 1.0, 2.0]]))
    tensor([7.])
    """
    listed = list(indices) if isinstance(indices, Sequence) and not isinstance(indices, str) else []
    if not listed:
        raise ValueError(f"indices={shown(indices)} is not a list of classes; expected ints.")
    for index in listed:
        _check_class("indices", index)
    return lambda output: _classes(output, *listed)[:, listed].sum(1)


def entropy() -> Score:
    r"""The entropy of a classifier's prediction: :math:`-\sum_c p_c \log p_c`, in nats.

    >>> entropy()(torch.zeros(1, 2)).exp()
    tensor([2.])
    """

    def score(output: Output) -> Tensor:
        logarithms = _classes(output).log_softmax(1)
        return -(logarithms.exp() * logarithms).sum(1)

    return score


def class_in_region(index: int, region: Tensor) -> Score:
    """The mean score of a class in a segmentation (N, C, h, w), over a region: a mask (h, w) of the output's size.

    Of a volume (N, C, d, h, w), the mask is (d, h, w).

    >>> class_in_region(1, torch.tensor([[True, False]]))(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]))
    tensor([3.])
    """
    _check_class("index", index)
    check_tensor("region", region)
    if not region.ndim or not region.any():
        raise ValueError(f"region={describe(region)} is not a mask of any position; expected (h, w), not all zero.")
    cells = region.flatten().nonzero()[:, 0]
    weights = region.flatten()[cells]

    def score(output: Output) -> Tensor:
        scores = _classes(output, index)
        if scores.shape[2:] != region.shape:
            raise ValueError(
                f"region={describe(region)} does not fit an output {tuple(scores.shape)}; expected its (h, w), or the "
                "(d, h, w) of a volume."
            )
        weight = weights.to(scores)
        # Selected, not multiplied by 0: relevance rules would send relevance to the zeroed entries as well.
        return (scores[:, index].flatten(1)[:, cells.to(scores.device)] * (weight / weight.mean())).mean(1)

    return score


def box_score(box: Sequence[float] | Tensor, label: int | None = None, iou_threshold: float = 0.5) -> Score:
    """The score of the detection that best overlaps ``box`` (x1, y1, x2, y2), with this label or with any.

    For detectors that return a dict of ``boxes``, ``labels`` and ``scores`` per image, as torchvision's do. The
    score is 0 where no detection has an intersection over union of at least ``iou_threshold``.

    >>> found = {"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]]), "labels": torch.tensor([7]), "scores": torch.ones(1)}
    >>> box_score((0, 0, 4, 3), label=7)([found]), box_score((9, 9, 12, 12))([found])
    (tensor([1.]), tensor([0.]))
    """
    return _of_best(_check_box(box), label, iou_threshold, lambda found, best: found["scores"][best])


def box_coordinate(
    box: Sequence[float] | Tensor, side: str, label: int | None = None, iou_threshold: float = 0.5
) -> Score:
    """A side of a detected box, ``'x1'``, ``'y1'``, ``'x2'`` or ``'y2'`` in pixels: what decides where the object ends?

    The box is chosen as in :func:`box_score`.
    """
    if not (isinstance(side, str) and side in _SIDES):
        raise ValueError(f"side={shown(side)} is not a side of a box; expected one of {', '.join(_SIDES)}.")
    at = _SIDES.index(side)
    return _of_best(_check_box(box), label, iou_threshold, lambda found, best: found["boxes"][best, at])


def keypoint_score(
    box: Sequence[float] | Tensor, keypoint: int, label: int | None = None, iou_threshold: float = 0.5
) -> Score:
    """The score of a keypoint of a detected box, for detectors that return ``keypoints_scores`` (boxes, keypoints).

    The box is chosen as in :func:`box_score`.
    """
    _check_class("keypoint", keypoint)
    return _of_best(
        _check_box(box), label, iou_threshold, lambda found, best: found["keypoints_scores"][best, keypoint]
    )


def detection_similarity(box: Sequence[float] | Tensor, label: int | None = None) -> Score:
    r"""How well the detections match an object: :math:`\max_j \mathrm{IoU}(b, b_j) \, s_j`, over boxes with its label.

    D-RISE is RISE with this target: ``rise_class(detector, image, detection_similarity(box, label))``. Petsiuk et
    al., Black-box Explanation of Object Detectors via Saliency Maps, CVPR 2021, for detectors that return the score
    of a single label per box.
    """
    corners = _check_box(box)

    def score(output: Output) -> Tensor:
        return torch.stack([_best(found, corners, label, of_scores=True)[0] for found in _detections(output)])

    return score


def query_score(box: Sequence[float] | Tensor, label: int) -> Score:
    """The logit of a label at the object query whose box best overlaps ``box``, as in DETR.

    ``box`` is (centre x, centre y, width, height) as fractions of the image, like the output's ``pred_boxes`` (N,
    queries, 4); its ``logits`` are (N, queries, labels).
    """
    _check_class("label", label)
    corners = _corners(_check_box(box, ordered=False))

    def score(output: Output) -> Tensor:
        boxes = _field(output, "pred_boxes")
        overlaps = torch.stack([_overlap(_corners(each.detach()), corners) for each in boxes])
        logits: Tensor = _field(output, "logits")
        return logits[torch.arange(len(logits), device=logits.device), overlaps.argmax(1), label]

    return score


def _classes(output: Output, *indices: int) -> Tensor:
    """The scores (N, C, ...) of an output that has these classes."""
    scores = main_output(output)
    if not isinstance(scores, Tensor) or scores.ndim < 2 or max(indices, default=0) >= scores.shape[1]:
        wanted = f"class {max(indices)} of" if indices else "class scores of"
        raise ValueError(f"target asks for {wanted} an output that is {describe(scores)}; expected (N, C, ...).")
    return scores


def _check_class(argument: str, index: object) -> None:
    if not is_int(index) or index < 0:
        raise ValueError(f"{argument}={shown(index)} is not a valid index; expected an int >= 0.")


def _check_box(box: Sequence[float] | Tensor, ordered: bool = True) -> Tensor:
    sides = box.tolist() if isinstance(box, Tensor) else box
    if not (isinstance(sides, (tuple, list)) and len(sides) == 4 and all(map(is_number, sides))):
        raise ValueError(f"box={shown(box)} is not a box; expected four numbers.")
    x1, y1, x2, y2 = map(float, sides)
    if ordered and not (x1 < x2 and y1 < y2):
        raise ValueError(f"box={shown(box)} is empty; expected (x1, y1, x2, y2) with x1 < x2 and y1 < y2.")
    return torch.tensor([x1, y1, x2, y2], device="cpu")


def _field(output: Output, name: str) -> Output:
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if found is None:
        raise ValueError(f"target needs {name!r}, but the output is {describe(output)}; expected a detector.")
    return found


def _detections(output: Output) -> Sequence[Mapping[str, Tensor]]:
    """The dict of detections of each image."""
    fits = isinstance(output, (list, tuple)) and all(isinstance(found, Mapping) for found in output)
    if not fits or not all({"boxes", "scores"} <= found.keys() for found in output):
        raise ValueError(
            f"target needs boxes and scores of each image, but the output is {describe(output)}; expected a list of "
            "dicts, as torchvision's detectors return in evaluation mode."
        )
    return list(output)


def _of_best(
    box: Tensor, label: int | None, iou_threshold: float, value: Callable[[Mapping[str, Tensor], Tensor], Tensor]
) -> Score:
    """The value of the detection that best overlaps a box, per image; 0 where none does."""
    if not is_number(iou_threshold) or not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold={shown(iou_threshold)} is not a valid overlap; expected a number in [0, 1].")

    def score(output: Output) -> Tensor:
        values = []
        for found in _detections(output):
            overlap, best = _best(found, box, label)
            nothing = found["scores"].sum() * 0  # zero, yet attached to the graph
            values.append(nothing if overlap < max(iou_threshold, 1e-9) else value(found, best))
        return torch.stack(values)

    return score


def _best(
    found: Mapping[str, Tensor], box: Tensor, label: int | None, of_scores: bool = False
) -> tuple[Tensor, Tensor]:
    """The largest overlap with a box, optionally times the score, and the index of its detection."""
    overlaps = _overlap(found["boxes"] if of_scores else found["boxes"].detach(), box)
    values = overlaps * found["scores"] if of_scores else overlaps
    if label is not None:
        values = torch.where(found["labels"] == label, values, 0)
    nothing = found["scores"].sum() * 0
    return (values.max(), values.argmax()) if len(values) else (nothing, nothing)


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes (M, 4) with one box, all as corners."""
    box = box.to(boxes)
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)


def _corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4), given as centre and size, as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)
