"""METRICS: the table of measures, with one signature for the runner."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Module

from saliency.evaluation.metrics.faithfulness import (
    average_drop,
    curve_area,
    deletion,
    increase_in_confidence,
    insertion,
    road,
)
from saliency.evaluation.metrics.localisation import THRESHOLDS, box_iou, energy_pointing_game, mask_iou, pointing_game
from saliency.evaluation.metrics.perturbed import Baseline
from saliency.evaluation.metrics.randomisation import parameter_randomisation, random_logit
from saliency.evaluation.metrics.sensitivity import sensitivity_n


class Evidence(NamedTuple):
    """What is known about N cases of one method: all that a metric may look at.

    ``saliency`` is (N, 1, H, W) at the size of the annotated images, ``input_saliency`` (N, 1, h, w) at that of the
    network's ``input`` (N, C, h, w). ``target`` (N,) indexes the model's output, which ``activation`` turns into
    probabilities (softmax over classes, or sigmoid). ``explain(model, input, target)`` makes maps like
    ``input_saliency`` for another model, input or target. ``masks`` is (N, H, W) bool, ``boxes`` one (K, 4) a case.
    """

    saliency: Tensor
    masks: Tensor
    boxes: Sequence[Tensor]
    model: Module
    input: Tensor
    input_saliency: Tensor
    target: Tensor
    activation: Callable[[Tensor], Tensor]
    explain: Callable[[Module, Tensor, Tensor], Tensor]


class Metric(NamedTuple):
    """A row of the table: ``score(evidence, **options)`` gives (N,) scores, or (N, T) curves that ``area`` sums up.

    ``hits``: a score is a hit or a miss, or the chance of a hit, so that a mean is a percentage.
    """

    score: Callable[..., Tensor]
    paper: str
    higher_is_better: bool = True
    area: Callable[[Tensor], Tensor] | None = None  # a curve's (N, T) -> score (N,)
    hits: bool = False


def _mean(curve: Tensor) -> Tensor:
    return curve.mean(1)


def _asked(evidence: Evidence) -> tuple[Module, Tensor, Tensor, Tensor]:
    return evidence.model, evidence.input, evidence.target, evidence.input_saliency


def _pointing_game(evidence: Evidence, tolerance: float = 15) -> Tensor:
    return pointing_game(evidence.saliency, evidence.masks, tolerance)


def _energy(evidence: Evidence) -> Tensor:
    return energy_pointing_game(evidence.saliency, evidence.masks)


def _box_iou(evidence: Evidence, thresholds: Any = THRESHOLDS, components: str = "largest") -> Tensor:
    return box_iou(evidence.saliency, evidence.boxes, thresholds, components)


def _mask_iou(evidence: Evidence, thresholds: Any = THRESHOLDS) -> Tensor:
    return mask_iou(evidence.saliency, evidence.masks, thresholds)


def _insertion(evidence: Evidence, steps: int = 32, baseline: Baseline = "blur", seed: int = 0) -> Tensor:
    return insertion(*_asked(evidence), steps, baseline, evidence.activation, seed=seed)


def _deletion(evidence: Evidence, steps: int = 32, baseline: Baseline = "zero", seed: int = 0) -> Tensor:
    return deletion(*_asked(evidence), steps, baseline, evidence.activation, seed=seed)


def _road(evidence: Evidence, percentages: Any = (20, 40, 60, 80), noise: float = 0.01, seed: int = 0) -> Tensor:
    return road(*_asked(evidence), percentages, noise, seed, evidence.activation)


def _average_drop(evidence: Evidence) -> Tensor:
    return average_drop(*_asked(evidence), evidence.activation)


def _increase_in_confidence(evidence: Evidence) -> Tensor:
    return increase_in_confidence(*_asked(evidence), evidence.activation).float()


def _sensitivity_n(
    evidence: Evidence, n: float = 0.1, samples: int = 100, baseline: Baseline = "zero", seed: int = 0
) -> Tensor:
    return sensitivity_n(*_asked(evidence), n, samples, baseline, seed)


def _cascading(evidence: Evidence, steps: int | None = 8, seed: int = 0) -> Tensor:
    e = evidence
    return parameter_randomisation(e.model, e.explain, e.input, e.target, e.input_saliency, True, None, steps, seed)


def _independent(evidence: Evidence, steps: int | None = 8, seed: int = 0) -> Tensor:
    e = evidence
    return parameter_randomisation(e.model, e.explain, e.input, e.target, e.input_saliency, False, None, steps, seed)


def _random_logit(evidence: Evidence, seed: int = 0) -> Tensor:
    e = evidence
    return random_logit(e.model, e.explain, e.input, e.target, e.input_saliency, seed=seed)


METRICS: dict[str, Metric] = {
    "pointing_game": Metric(_pointing_game, "Zhang et al., Excitation Backprop, IJCV 2018", hits=True),
    "energy_pointing_game": Metric(_energy, "Wang et al., Score-CAM, CVPR workshop 2020"),
    "box_iou": Metric(_box_iou, "Choe et al., Evaluating Weakly Supervised Localization, CVPR 2020", area=_mean),
    "mask_iou": Metric(_mask_iou, "Choe et al., Evaluating Weakly Supervised Localization, CVPR 2020", area=_mean),
    "insertion": Metric(_insertion, "Petsiuk et al., RISE, BMVC 2018", area=curve_area),
    "deletion": Metric(_deletion, "Petsiuk et al., RISE, BMVC 2018", higher_is_better=False, area=curve_area),
    "road": Metric(_road, "Rong et al., A Consistent and Efficient Evaluation Strategy, ICML 2022"),
    "average_drop": Metric(_average_drop, "Chattopadhay et al., Grad-CAM++, WACV 2018", higher_is_better=False),
    "increase_in_confidence": Metric(_increase_in_confidence, "Chattopadhay et al., Grad-CAM++, WACV 2018", hits=True),
    "sensitivity_n": Metric(_sensitivity_n, "Ancona et al., Gradient-based Attribution Methods, ICLR 2018"),
    "cascading_randomisation": Metric(_cascading, "Adebayo et al., Sanity Checks, NeurIPS 2018", False, _mean),
    "independent_randomisation": Metric(_independent, "Adebayo et al., Sanity Checks, NeurIPS 2018", False, _mean),
    "random_logit": Metric(_random_logit, "Sixt et al., When Explanations Lie, ICML 2020", higher_is_better=False),
}
