"""Presets: tables of relevance propagation, each for any architecture."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache

from torch.nn import Module

from saliency.engine.checks import check_type, did_you_mean
from saliency.engine.choices import Chosen
from saliency.engine.kinds import LINEAR, WEIGHTED
from saliency.engine.operations import Function, Operation, Row, Rule
from saliency.rules.attention import ATTN_LRP, CP
from saliency.rules.linear import EPSILON, Bound, alpha_beta, flat, z_box, z_plus
from saliency.rules.linear import epsilon as rule_epsilon
from saliency.rules.linear import gamma as rule_gamma
from saliency.rules.normalisation import NORMS


class Named:
    """Do an operation's weights belong to a layer, or to one inside it? The name may be a pattern.

    >>> [Named("layer?.*.conv1").covers(layer) for layer in ("layer4.0.conv1", "layer4.0.conv2")]
    [True, False]
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __call__(self, op: Operation) -> bool:
        return self.covers(op.layer)

    def covers(self, layer: str) -> bool:
        """Is the layer of this name covered?"""
        return fnmatchcase(layer, self.pattern) or fnmatchcase(layer, f"{self.pattern}.*")


def relevance_rules(
    convolution: Rule,
    linear: Rule,
    *,
    first: Rule | None = None,
    last: Rule | None = None,
    layers: Mapping[str, Rule] | None = None,
    others: Mapping[Function, Row] = CP,
) -> dict[Function, Row]:
    """A table of relevance propagation, for :func:`lrp`: rules for convolutions and for linear layers.

    The rules of ``layers``, by a name or pattern that covers everything inside, override these, and also those of the
    ``first`` and ``last`` operation with weights on the way from image to score. ``others`` are the rows of operations
    without weights. A table is a dict, and may be changed: ``{**epsilon_plus(), torch.tanh: Rule(...)}``.

    >>> table = relevance_rules(z_plus(), z_plus(), first=flat(), layers={"layer4": alpha_beta(2, 1)})
    """
    given = {"convolution": convolution, "linear": linear, "first": first, "last": last, **(layers or {})}
    for argument, rule in given.items():
        if rule is not None:
            check_type(argument, rule, Rule, "a rule, such as epsilon()")
    choices: list[tuple[Callable[[Operation], bool], Row]] = []
    choices += [(Named(name), rule) for name, rule in (layers or {}).items()]
    choices += [(lambda op: op.standing.first, first)] if first is not None else []
    choices += [(lambda op: op.standing.last, last)] if last is not None else []

    def row(rule: Rule) -> Row:
        return Chosen(*choices, (lambda op: True, rule)) if choices else rule

    return {**others, **NORMS, **dict.fromkeys(WEIGHTED, row(convolution)), **dict.fromkeys(LINEAR, row(linear))}


def epsilon_plus(epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`z_plus` in convolutions, :func:`epsilon` in linear layers.

    Kohlbrenner et al., Towards Best Practice in Explaining Neural Network Decisions with LRP, IJCNN 2020.
    """
    return relevance_rules(z_plus(epsilon), rule_epsilon(epsilon))


def epsilon_plus_flat(epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`epsilon_plus` with :func:`flat` in the first layer."""
    return relevance_rules(z_plus(epsilon), rule_epsilon(epsilon), first=flat(epsilon))


def epsilon_alpha2_beta1(epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`alpha_beta` of 2 and 1 in convolutions, :func:`epsilon` in linear layers. Kohlbrenner et al., 2020."""
    return relevance_rules(alpha_beta(2, 1, epsilon), rule_epsilon(epsilon))


def epsilon_alpha2_beta1_flat(epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`epsilon_alpha2_beta1` with :func:`flat` in the first layer."""
    return relevance_rules(alpha_beta(2, 1, epsilon), rule_epsilon(epsilon), first=flat(epsilon))


def epsilon_gamma_box(low: Bound, high: Bound, gamma: float = 0.25, epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`gamma` in convolutions, :func:`epsilon` in linear layers, :func:`z_box` in the first layer.

    ``low`` and ``high`` are the smallest and largest values of the input: for normalised images black and white, one
    number for each channel. Montavon et al., Layer-Wise Relevance Propagation: An Overview, 2019.
    """
    return relevance_rules(rule_gamma(gamma, epsilon), rule_epsilon(epsilon), first=z_box(low, high, epsilon))


def cp(gamma: float = 0.05, convolution: float = 0.25, epsilon: float = EPSILON) -> dict[Function, Row]:
    """For transformers: relevance through attention's values only; :func:`gamma` in linear layers and convolutions.

    The projections before and after attention are linear layers too. It conserves relevance; with a gamma of 0
    it is gradient x activation of the network with attention weights and norms as constants.
    Ali et al., XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022.
    """
    return relevance_rules(rule_gamma(convolution, epsilon), rule_gamma(gamma, epsilon))


def attn_lrp(gamma: float = 0.05, convolution: float = 0.25, epsilon: float = EPSILON) -> dict[Function, Row]:
    """For transformers: relevance through queries and keys too; :func:`gamma` in linear layers and convolutions.

    It does not conserve relevance, by definition: softmax sends back its own gradient.
    Achtibat et al., AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML 2024.
    """
    return relevance_rules(rule_gamma(convolution, epsilon), rule_gamma(gamma, epsilon), others=ATTN_LRP)


def attn_plus(epsilon: float = EPSILON) -> dict[Function, Row]:
    """:func:`attn_lrp` with :func:`z_plus` in linear layers and convolutions: only what raises a result gets relevance.

    Nearest to Chefer et al., Transformer Interpretability Beyond Attention Visualization, CVPR 2021, whose softmax and
    norms pass all relevance on. For :func:`transformer_attribution`.
    """
    return relevance_rules(z_plus(epsilon), z_plus(epsilon), others=ATTN_LRP)


_PRESETS: Mapping[str, Callable[..., dict[Function, Row]]] = {
    preset.__name__: preset
    for preset in (
        *(epsilon_plus, epsilon_plus_flat, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat),
        *(epsilon_gamma_box, cp, attn_lrp, attn_plus),
    )
}


@cache
def preset(name: str) -> dict[Function, Row]:
    """The table with this name, always the same object. Raises ``ValueError`` for an unknown name."""
    if name not in _PRESETS:
        hint = did_you_mean(name, _PRESETS)
        raise ValueError(f"rules={name!r} is not a preset{hint}; expected one of {', '.join(_PRESETS)}, or a table.")
    if name == "epsilon_gamma_box":
        raise ValueError(
            "rules='epsilon_gamma_box' is not possible without the bounds of the input's values; expected "
            "saliency.rules.epsilon_gamma_box(low, high)."
        )
    return _PRESETS[name]()


def default_rules(model: Module) -> str:
    """The preset for an architecture: ``'cp'`` for one with attention, ``'epsilon_plus'`` for any other.

    >>> import torch
    >>> default_rules(torch.nn.TransformerEncoderLayer(4, 2)), default_rules(torch.nn.Linear(2, 2))
    ('cp', 'epsilon_plus')
    """
    return "cp" if any("attention" in type(part).__name__.lower() for part in model.modules()) else "epsilon_plus"
