"""Relevance: the score redistributed layer by layer, by rules that conserve it."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import check_type, shown
from saliency.engine.choices import Attributing, Chosen
from saliency.engine.driver import saliency
from saliency.engine.layers import Layer, Layers, unwrap
from saliency.engine.maps import Attribution, Reduction, sum_channels
from saliency.engine.operations import Function, Row
from saliency.engine.signatures import MapOptions, Maps, WalkOptions, typed
from saliency.engine.standing import Ledger
from saliency.engine.targets import Target
from saliency.engine.tracing import TracingContext
from saliency.rules.constants import ADDING
from saliency.rules.presets import Named, default_rules, preset

Rules: TypeAlias = str | Mapping[Function, Row] | None


class RelevanceOptions(MapOptions, WalkOptions, total=False):
    """Options of a method that sets the context and the reduction."""


class RelevanceContext(TracingContext):
    """Send back gradients that, times the activation, are its relevance: by a preset's name or a table of rules.

    Rules for named layers need the ``model``. Used by hand, :meth:`send_back` is the backward pass.
    """

    completes = True

    def __init__(
        self, rules: Rules = "epsilon_plus", model: Module | None = None, ledger: Ledger | None = None
    ) -> None:
        model = None if model is None else unwrap(model)
        if rules is None and model is not None:
            rules = default_rules(model)
        table = preset(rules) if isinstance(rules, str) else rules
        check_type("rules", table, Mapping, "the name of a preset, or a table such as saliency.rules.epsilon_plus()")
        super().__init__({**ADDING, **(table or {})} if ledger is not None else table or {}, model, ledger)
        _check_layers(self.rules, model)


def _choices(table: Mapping[Function, Row]) -> Iterator[tuple[object, Row]]:
    """Every row of a table, each with the question that selects it."""
    for row in set(table.values()):
        yield from row.choices if isinstance(row, Chosen) else ((None, row),)


def _check_layers(table: Mapping[Function, Row], model: Module | None) -> None:
    """Raise ``ValueError`` for the rule of a layer that does not exist."""
    layers = [] if model is None else [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    for suits, _ in _choices(table):
        if isinstance(suits, Named) and model is not None and not any(map(suits.covers, layers)):
            raise ValueError(
                f"layers={suits.pattern!r} has a rule, but no layer with weights; expected the name of a layer, or a "
                f"pattern, such as {next(iter(layers), '')!r}."
            )


@typed
def lrp(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = "",
    rules: Rules = None,
    reduction: Reduction = sum_channels,
    **options: Unpack[RelevanceOptions],
) -> Maps:
    r"""Layer-wise relevance propagation: the contribution of each position, redistributed layer by layer.

    .. math:: s_{n1u} = \sum_c x_{ncu} \, g_{ncu}

    with the modified gradient :math:`g` of ``rules``: the name of a preset, or a table such as
    ``saliency.rules.epsilon_plus()`` or ``relevance_rules(...)``. The default is ``'cp'`` for a model with
    attention (a module whose class name says so) and ``'epsilon_plus'`` otherwise. (N, 1, h, w), signed;
    ``reduction=None`` returns the relevance in the layer's own shape. ``return_convergence_delta=True`` also
    returns the difference to the score: biases, units whose denominator is 0 (see :func:`completeness`), and with
    ``'attn_lrp'`` what the softmax does not conserve. Bach et al., PLOS ONE 2015. Options and errors: see
    :func:`saliency`.
    """
    context = partial(RelevanceContext, rules, model)
    if options.get("path") is not None and any(isinstance(row, Attributing) for _, row in _choices(context().rules)):
        raise ValueError(
            f"path={shown(options['path'])} is not possible with flat, w_square or z_box, which send back no "
            "gradient; expected other rules, or no path."
        )
    return saliency(
        *(model, input, target, saliency_layer),
        context_builder=context,
        gradient_to_saliency=Attribution(reduction),
        **options,
    )


class Completeness(NamedTuple):
    """Where the score went, summed over samples and targets: it is the sum of the parts and the ``rest``.

    ``bias`` went to constants: biases, means, class tokens, positional embeddings. ``lost`` was not redistributed:
    at units whose denominator is 0, or was kept away from 0.
    """

    score: float
    attribution: float
    bias: float
    lost: float

    @property
    def rest(self) -> float:
        """The unexplained part: rounding, operations without a conserving rule, paths around the layer."""
        return self.score - self.attribution - self.bias - self.lost


def completeness(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layer = "",
    rules: Rules = None,
    **options: Unpack[RelevanceOptions],
) -> Completeness:
    """How one call of :func:`lrp` splits the score: what arrives at the layer, what biases absorb, and what is lost.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> torch.nn.utils.vector_to_parameters(torch.tensor([1.0, 2.0, 0.5]), model.parameters())
    >>> parts = completeness(model, torch.ones(1, 2), 0)
    >>> round(parts.score, 4), round(parts.attribution, 4), round(parts.bias, 4)
    (3.5, 3.0, 0.5)
    """
    check_type("saliency_layer", saliency_layer, (str, Module, type(None)), "one layer")
    ledger = Ledger()
    found, missed = saliency(
        *(model, input, target, saliency_layer),
        context_builder=partial(RelevanceContext, rules, model, ledger),
        gradient_to_saliency=Attribution(None),
        return_convergence_delta=True,
        **options,
    )
    tensors = found if isinstance(found, tuple) else (found,)
    arrived = sum(float(x.sum()) for x in tensors)
    return Completeness(arrived + float(missed.sum()), arrived, ledger.bias, ledger.lost)
