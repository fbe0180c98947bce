"""Excitation backprop: the probability that a neuron wins, propagated from the class down to the image."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input
from saliency.engine.checks import check_flag, shown
from saliency.engine.contexts import Noted, RuleContext
from saliency.engine.driver import saliency
from saliency.engine.kinds import WEIGHTED
from saliency.engine.layers import Layer, Layers, resolve_layer
from saliency.engine.maps import gradient_of, sum_channels
from saliency.engine.probe import Probe, add_hook
from saliency.engine.record import ContextBuilder
from saliency.engine.sending import Sought, differentiate
from saliency.engine.signatures import MapOptions, Maps, RuleOptions, WalkOptions, typed
from saliency.engine.targets import Target
from saliency.rules.excitation import CONSERVED, excite, positive_part, table_of


class ExcitationOptions(MapOptions, WalkOptions, total=False):
    """Options of a method that sets the context and the reduction."""


class ExcitationBackpropContext(RuleContext):
    """Send back winning probabilities in place of gradients.

    At a sum, ``'signed'`` gives each term a probability in proportion to its value, as TorchRay does: negative for
    a negative term. With ``sums='active'``, terms that are not positive win nothing, as in the paper.
    """

    carries = "relevance"
    conserves = CONSERVED

    def __init__(self, sums: str = "signed") -> None:
        super().__init__(table_of(sums))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        positive_part.release()


def gradient_to_excitation_backprop_saliency(x: Tensor) -> Tensor:
    r"""The winning probability of each position, :math:`s_{n1u} = \sum_c p_{ncu}`, where ``x.grad`` is :math:`p`."""
    return sum_channels(gradient_of(x))


@typed
def excitation_backprop(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    context_builder: ContextBuilder = ExcitationBackpropContext,
    gradient_to_saliency: Callable[[Tensor], Tensor] = gradient_to_excitation_backprop_saliency,
    *,
    sums: str = "signed",
    **options: Unpack[ExcitationOptions],
) -> Maps:
    r"""Excitation backprop: the probability that each position wins when winners are drawn from the class downwards.

    .. math:: p_j = \sum_i \frac{w^+_{ij} x_j}{\sum_k w^+_{ik} x_k} \, p_i, \quad s_{n1u} = \sum_c p_{ncu}

    (N, 1, h, w), with sum 1 at every layer that all paths cross, except for what is lost at units without an active
    excitatory input (mostly in depthwise convolutions) or where a normalisation lifts a value from 0; a warning
    names such layers. Negative inputs, as in a normalised image, win nothing. A negative term of a residual sum
    receives a negative probability, or nothing with ``sums='active'``, which keeps the sum within 1. Normalisation,
    constant factors and activations other than ReLU pass :math:`p` on; gates, attention, differences and matrix
    products keep their gradient. Zhang et al., ECCV 2016. Options and errors: see :func:`saliency`.

    >>> model = torch.nn.Linear(2, 1)
    >>> weight = torch.nn.init.constant_(model.weight, 1)
    >>> excitation_backprop(model, torch.tensor([[1.0, 3.0]]), 0, '', gradient_to_saliency=lambda x: x.grad).flatten()
    tensor([0.2500, 0.7500])
    """
    if not (isinstance(sums, str) and sums == "signed"):
        if context_builder is not ExcitationBackpropContext:
            raise ValueError(
                f"sums={shown(sums)} is not possible with a custom context_builder; expected ExcitationBackpropContext."
            )
        context_builder = partial(ExcitationBackpropContext, sums)
    return saliency(
        model,
        input,
        target,
        saliency_layer,
        context_builder=context_builder,
        gradient_to_saliency=gradient_to_saliency,
        **options,
    )


class _BehindContrastError(Exception):
    """The saliency layer is not in front of the point where the contrast is taken."""


class ContrastiveExcitationBackpropContext(ExcitationBackpropContext):
    """Excitation backprop that subtracts, at one layer, what the negated classifier sends there.

    The classifier is the last operation with weights run by ``classifier_layer``, or the last one that the score
    depends on; the contrast is taken at the output of ``contrast_layer``, or at the classifier's input.
    """

    def __init__(
        self, contrast_layer: Module | None = None, classifier_layer: Module | None = None, sums: str = "signed"
    ) -> None:
        super().__init__(sums)
        self.contrast_layer = contrast_layer
        self.classifier_layer = classifier_layer
        self.history = []
        self._hooks = ExitStack()
        self._probe: Probe | None = None
        self._classifiers: list[Noted] = []
        self._site: GradientEdge | None = None
        self._opposite: Tensor | None = None

    @property
    def is_table(self) -> bool:
        """True without layers of its own, which are watched in a forward pass of this context alone."""
        return super().is_table and self.contrast_layer is None and self.classifier_layer is None

    def __enter__(self) -> "ContrastiveExcitationBackpropContext":
        if self.contrast_layer is not None:
            self._probe = self._hooks.enter_context(Probe(self.contrast_layer, "output"))
        if self.classifier_layer is not None:
            for register, hook in (
                (self.classifier_layer.register_forward_pre_hook, self._expect_classifier),
                (self.classifier_layer.register_forward_hook, self._note_classifier),
            ):
                self._hooks.callback(add_hook(register, hook).remove)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._hooks.close()
        self.history, self._probe, self._classifiers, self._site, self._opposite = [], None, [], None, None

    def _expect_classifier(self, module: Module, args: object) -> None:
        self.history = []

    def _note_classifier(self, module: Module, args: object, output: object) -> None:
        self._classifiers = self._weighted()[:1]

    def _weighted(self) -> list[Noted]:
        """The operations with weights, last first; raises where all of them are in front of all probes."""
        weighted = [noted for function, noted in reversed(self.history or ()) if function in WEIGHTED]
        if weighted and not any(weighted):
            raise _BehindContrastError
        return [noted for noted in weighted if noted is not None]

    def oppose(self, scores: Tensor, gradient: Tensor) -> None:
        """Compute what the negated classifier sends to the contrast layer; from then on it is subtracted there."""
        self._opposite = None
        classifiers = self._classifiers if self.classifier_layer is not None else self._weighted()
        if not classifiers:
            name = None if self.classifier_layer is None else type(self.classifier_layer).__name__
            raise ValueError(
                f"classifier_layer={name} has run no operation with weights; expected a layer that runs a linear or "
                "convolutional operation."
            )
        for classifier in classifiers:  # the score does not depend on other heads
            (opposite,) = differentiate([(scores, gradient)], [classifier.output], retain=True)
            if opposite is not None:
                break
        site = self._find_site(classifier)
        if opposite is not None:
            with torch._C.DisableTorchFunction():  # as in a backward pass: the operations of a rule are not the model's
                opposite = excite(classifier.op, opposite, lambda weight: positive_part(-weight))
        if opposite is not None and self._probe is not None:
            (opposite,) = differentiate([(classifier.input, opposite)], self._probe.data[:1], retain=True)
        if opposite is None:
            raise ValueError(f"{self._named()} is reached by no gradient; expected a layer that the score depends on.")
        if self._site is None:
            self._hooks.callback(site.node.register_prehook(self._subtract).remove)
        self._site, self._opposite = site, opposite

    def _subtract(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...] | None:
        if self._site is None or self._opposite is None:
            return None
        at = self._site.output_nr
        return tuple(g if g is None or i != at else g - self._opposite for i, g in enumerate(gradients))

    def _find_site(self, classifier: Noted) -> GradientEdge:
        """Where the contrast is taken."""
        if self._probe is None:
            return classifier.input
        if not self._probe.data:
            raise ValueError(f"{self._named()} returned no tensor in the forward pass; expected a layer that runs.")
        if self._probe.data[0].is_leaf:  # nothing was recorded in front of it
            raise _BehindContrastError
        return get_gradient_edge(self._probe.data[0])

    def _named(self) -> str:
        """The argument that says where the contrast is taken, and its value."""
        if self._probe is not None:
            return f"contrast_layer={type(self.contrast_layer).__name__}"
        return f"classifier_layer={'None' if self.classifier_layer is None else type(self.classifier_layer).__name__}"


class _OpposingContext(ContrastiveExcitationBackpropContext):
    """The method's context: every gradient includes its contrast, with three backward passes per forward pass."""

    conserves = CONSERVED._replace(least=-CONSERVED.most)

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """Winning probabilities minus those under the negated weights of the classifier."""
        try:
            self.oppose(scores, gradient)
        except ValueError:
            if any(dx is not None for dx in super().send_back(scores, gradient, tensors, retain=True)):
                raise
            return [None] * len(tensors)  # no layer receives a gradient anyway: not the classifier's fault
        nodes = [x.grad_fn if isinstance(x, Tensor) else x.node for x in tensors[:1]]
        if self._site is not None and any(_sequence(node) > _sequence(self._site.node) for node in nodes):
            raise _BehindContrastError
        return super().send_back(scores, gradient, tensors, retain)


def _sequence(node: Node | None) -> int:
    """When a node of the graph was created; leaves existed before."""
    return -1 if node is None or node.name().endswith("AccumulateGrad") else int(node._sequence_nr())


def gradient_to_contrastive_excitation_backprop_saliency(x: Tensor) -> Tensor:
    r"""The positive part of the contrast at each position, :math:`s_{n1u} = \max\{0, \sum_c p_{ncu}\}`."""
    contrast = sum_channels(gradient_of(x))
    # At the input of a 1 x 1 convolution that classifies, the probabilities cancel at each position, up to rounding.
    rounding = 4 * torch.finfo(contrast.dtype).eps * sum_channels(gradient_of(x).abs())
    return contrast.masked_fill(contrast <= rounding, 0)


@typed
def contrastive_excitation_backprop(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    contrast_layer: Layer = None,
    classifier_layer: Layer = None,
    debug: bool = False,
    *,
    sums: str = "signed",
    **options: Unpack[RuleOptions],
) -> Maps:
    r"""Contrastive excitation backprop: where the class wins more often than everything that speaks against it.

    .. math:: s_{n1u} = \max\{0, \sum_c (p - \bar p)_{ncu}\}

    :math:`\bar p` is the winning probability under the negated weights of ``classifier_layer``. It is subtracted at
    the output of ``contrast_layer``, and the difference propagated further, all from one forward pass (one each for
    a list of layers). (N, 1, h, w). By default, the classifier is the last linear or convolutional layer that the
    score depends on, the contrast is taken at its input (any layer that all paths cross gives the same map), and
    ``saliency_layer`` is the last layer with spatial output, or the input if that layer lies behind the contrast.
    ``sums`` as in :func:`excitation_backprop`. Zhang et al., ECCV 2016. Options and errors: see :func:`saliency`.
    """
    check_flag("debug", debug)
    if isinstance(saliency_layer, (list, tuple)) and saliency_layer and not debug:
        layers = (contrast_layer, classifier_layer)
        return [
            contrastive_excitation_backprop(model, input, target, one, *layers, sums=sums, **options)
            for one in saliency_layer
        ]
    given: Mapping[str, object] = options
    if "context_builder" in given:
        raise ValueError(
            f"context_builder={given['context_builder']!r} is not possible with a contrast; expected none "
            "(excitation_backprop accepts a context)."
        )
    contrast = None if contrast_layer is None else resolve_layer(model, contrast_layer, "contrast_layer")
    classifier = None if classifier_layer is None else resolve_layer(model, classifier_layer, "classifier_layer")
    options.setdefault("gradient_to_saliency", gradient_to_contrastive_excitation_backprop_saliency)
    context = partial(_OpposingContext, contrast, classifier, sums)
    explain = partial(saliency, model, input, target, context_builder=context)
    for layer in (None, "") if saliency_layer is None else (saliency_layer,):
        with suppress(_BehindContrastError):
            result = explain(layer, **options)
            # With every layer recorded, the graph would not show that one lies behind another.
            return explain(layer, debug=True, **options) if debug else result
    saliency(model, input, target, saliency_layer, **options)  # if no gradient arrives at all, this raises that error
    named = [type(layer).__name__ if isinstance(layer, Module) else layer for layer in (saliency_layer, contrast_layer)]
    raise ValueError(
        f"saliency_layer={named[0]!r} is not in front of contrast_layer={named[1]!r} and the classifier; "
        "expected a layer that is."
    )
