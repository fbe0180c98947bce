"""METRICS: the table of measures, of single maps, of pairs of maps and of whole data sets."""

from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.faithfulness import (
    average_drop,
    curve_area,
    deletion,
    increase_in_confidence,
    insertion,
    road,
)
from saliency.evaluation.metrics.localisation import (
    box_iou,
    energy_pointing_game,
    mask_iou,
    max_box_accuracy,
    pointing_game,
)
from saliency.evaluation.metrics.randomisation import parameter_randomisation, random_logit
from saliency.evaluation.metrics.sensitivity import sensitivity_n

Kind: TypeAlias = Literal["case", "pair", "data set"]

# What a function of cases may look at, each as a parameter of this name.
EVIDENCE = ("saliency", "masks", "boxes", "model", "input", "target", "activation", "explain")


class Metric(NamedTuple):
    """A row of the table. ``function`` returns (N,) scores, or (N, T) curves that ``area`` sums up.

    Of ``'case'``, it has of :data:`EVIDENCE` what it looks at: ``saliency`` (N, 1, H, W) at the size of the images, or
    beside an ``input`` (N, C, h, w) at that size; ``masks`` (N, H, W) bool and ``boxes``, one (K, 4) a case; ``model``,
    whose output ``target`` (N,) indexes and ``activation`` turns into probabilities; ``explain(model, input, target)``,
    which makes maps like ``saliency``. Of a ``'pair'``, its first two parameters are the maps of two methods; of a
    ``'data set'``, the first is the curves (N, T) of all cases, of the metric ``of``, and the result one number.
    The further parameters are options; ``options`` are defaults other than the function's. ``hits``: a score is a hit
    or a miss, or the chance of a hit, so that a mean is a percentage. ``version`` stands for what a function of your
    own does, as that of an :class:`saliency.evaluation.explainers.Explainer`.
    """

    function: Callable[..., Tensor]
    kind: Kind
    paper: str
    options: Mapping[str, object] = MappingProxyType({})
    higher_is_better: bool = True
    area: Callable[[Tensor], Tensor] | None = None
    hits: bool = False
    of: str = ""
    version: str | None = None

    @property
    def evidence(self) -> list[str]:
        """What a function of cases looks at."""
        return [name for name in signature(self.function).parameters if name in EVIDENCE]

    @property
    def defaults(self) -> dict[str, object]:
        """The options, with their defaults.

        >>> METRICS["insertion"].defaults
        {'steps': 32, 'baseline': 'blur', 'batch_size': 32, 'seed': 0}
        """
        parameters = list(signature(self.function).parameters.values())[
            {"case": 0, "pair": 2, "data set": 1}[self.kind] :
        ]
        own = {parameter.name: parameter.default for parameter in parameters}
        looked_at = EVIDENCE if self.kind == "case" else ()
        return {name: value for name, value in own.items() if name not in looked_at} | dict(self.options)


def _mean(curve: Tensor) -> Tensor:
    return curve.mean(1)


_WSOL = "Choe et al., Evaluating Weakly Supervised Localization, CVPR 2020"
_RISE = "Petsiuk et al., RISE, BMVC 2018"
_GRAD_CAM_PLUS_PLUS = "Chattopadhay et al., Grad-CAM++, WACV 2018"
_SANITY = "Adebayo et al., Sanity Checks, NeurIPS 2018"
_STEPS = {"steps": 8}  # a step is a run of the method; None randomises layer by layer
_ALONE = {**_STEPS, "cascading": False}

METRICS: dict[str, Metric] = {
    "pointing_game": Metric(pointing_game, "case", "Zhang et al., Excitation Backprop, IJCV 2018", hits=True),
    "energy_pointing_game": Metric(energy_pointing_game, "case", "Wang et al., Score-CAM, CVPR workshop 2020"),
    "box_iou": Metric(box_iou, "case", _WSOL, area=_mean),
    "max_box_accuracy": Metric(max_box_accuracy, "data set", _WSOL, hits=True, of="box_iou"),
    "mask_iou": Metric(mask_iou, "case", _WSOL, area=_mean),
    "insertion": Metric(insertion, "case", _RISE, area=curve_area),
    "deletion": Metric(deletion, "case", _RISE, higher_is_better=False, area=curve_area),
    "road": Metric(road, "case", "Rong et al., A Consistent and Efficient Evaluation Strategy, ICML 2022"),
    "average_drop": Metric(average_drop, "case", _GRAD_CAM_PLUS_PLUS, higher_is_better=False),
    "increase_in_confidence": Metric(increase_in_confidence, "case", _GRAD_CAM_PLUS_PLUS, hits=True),
    "sensitivity_n": Metric(sensitivity_n, "case", "Ancona et al., Gradient-based Attribution Methods, ICLR 2018"),
    "cascading_randomisation": Metric(parameter_randomisation, "case", _SANITY, _STEPS, False, _mean),
    "independent_randomisation": Metric(parameter_randomisation, "case", _SANITY, _ALONE, False, _mean),
    "random_logit": Metric(
        random_logit, "case", "Sixt et al., When Explanations Lie, ICML 2020", higher_is_better=False
    ),
    "agreement": Metric(rank_correlation, "pair", "Spearman, The Proof and Measurement of Association, 1904"),
}
