"""The original class activation map, of a network that pools a layer's channels and classifies their means."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import shown
from saliency.engine.driver import saliency
from saliency.engine.kinds import MEANS, WEIGHTED
from saliency.engine.layers import Layers
from saliency.engine.maps import Reduction, gradient_of, sum_channels
from saliency.engine.operations import Operation
from saliency.engine.signatures import BackwardOptions, Maps, typed
from saliency.engine.targets import Target
from saliency.methods.cam import reduced, reducing
from saliency.methods.noting import NotingContext
from saliency.rules.excitation import EXCITATION


class _Met(NamedTuple):
    """An operation between a layer and the score, and the number of values that it returns per sample."""

    name: str
    kind: str
    size: int


_KINDS = dict.fromkeys(EXCITATION, "other") | dict.fromkeys(WEIGHTED, "classifier") | dict.fromkeys(MEANS, "pool")


def _meet(op: Operation, gradient: Tensor) -> _Met:
    return _Met(op.function.__name__, _KINDS[op.function], gradient[:1].numel())


def _lack(met: Sequence[_Met], channels: int) -> str:
    """What a network lacks behind a layer with so many channels, if it does not pool and then classify."""
    pool, classifier = [*met, None, None][:2]
    behind = [each.name for each in met[1:] if each.kind == "classifier"]
    if pool is None or pool.kind != "pool" or pool.size != channels:
        met_first = "" if pool is None else f" ({pool.name} with {pool.size} values comes first)"
        return f"a global average pool of its {channels} channels{met_first}"
    if classifier is None or classifier.kind != "classifier":
        return f"a classifier of their means ({'nothing' if classifier is None else classifier.name} comes first)"
    return "" if len(behind) == 1 else f"a classifier of one layer (there are {', '.join(behind)})"


@typed
def cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    reduction: Reduction = sum_channels,
    **options: Unpack[BackwardOptions],
) -> Maps:
    r"""CAM: channels weighted by the classifier that reads their global average.

    .. math:: s_{n1u} = \sum_k w_k^c \, x_{nku}, \qquad
              f_c = b_c + \frac{1}{|V|} \sum_v \sum_k w_k^c \, x_{nkv}

    so that the mean of the map plus the bias is the score. (N, 1, h, w), signed; ``reduction=positive_sum`` keeps
    only the evidence for the class. A ReLU between the layer and the pool counts as part of the layer, as in a
    DenseNet. Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016. Raises ``ValueError``
    for a network without a classifier directly behind a global average pool of the layer. Options: see
    :func:`saliency`.
    """
    if isinstance(saliency_layer, (list, tuple)) and len(saliency_layer) > 1:
        raise ValueError(f"saliency_layer={shown(saliency_layer)} is not one layer; expected the one that is pooled.")
    met: list[_Met] = []

    def to_map(x: Tensor, reduction: Reduction) -> Tensor:
        if lack := _lack(met[::-1], x.shape[1]):
            raise ValueError(
                f"model={type(model).__name__} lacks, behind saliency_layer={shown(saliency_layer)}, {lack}; expected "
                "a network that pools a layer and classifies the means, as a ResNet does, or grad_cam."
            )
        return reduced(x * gradient_of(x) * x.shape[2:].numel(), reduction)

    return saliency(
        model,
        input,
        target,
        saliency_layer,
        context_builder=lambda: NotingContext(_KINDS, _meet, met),
        gradient_to_saliency=reducing(to_map, reduction),
        **options,
    )
