"""Excitation backprop: the probability that a neuron wins, sent from the class down to the image."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from saliency import rules
from saliency.engine.call import Input
from saliency.engine.contexts import Rule, RuleContext
from saliency.engine.driver import Maps, saliency
from saliency.engine.layers import Layer, resolve_layer, unwrap
from saliency.engine.maps import gradient_of, sum_channels
from saliency.engine.probe import Probe, add_hook
from saliency.engine.record import ContextBuilder
from saliency.engine.targets import Target, get_backward_gradient


class ExcitationBackpropContext(RuleContext):
    """Send back winning probabilities in place of gradients."""

    exact = True

    def __init__(self) -> None:
        super().__init__(rules.excitation_rules(rules.PositivePart()))


def gradient_to_excitation_backprop_saliency(x: Tensor) -> Tensor:
    r"""The winning probability of each position, :math:`s_{n1u} = \sum_c p_{ncu}`, where ``x.grad`` is :math:`p`."""
    return sum_channels(gradient_of(x))


def excitation_backprop(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layer = None,
    context_builder: ContextBuilder = ExcitationBackpropContext,
    gradient_to_saliency: Callable[[Tensor], Tensor] = gradient_to_excitation_backprop_saliency,
    **options: Any,
) -> Maps:
    r"""Excitation backprop: the probability that each position wins, when winners are drawn from the class down.

    .. math:: p_j = \sum_i \frac{w^+_{ij} x_j}{\sum_k w^+_{ik} x_k} \, p_i, \quad s_{n1u} = \sum_c p_{ncu}

    (N, 1, h, w), of sum 1 at every layer that all paths cross, but for what is lost at units without an active
    excitatory input (most of it in depthwise convolutions), or that a normalisation lifts from 0. An input below 0,
    as in a normalised image, is not active and wins nothing; a negative term of a residual sum has a negative share.
    Normalisations, constant factors and activations other than ReLU pass :math:`p` on. Gates, attention, differences
    and matrix products keep their gradient, and the sum is no longer 1. ``saliency_layer=None`` is the last layer with
    spatial output. Zhang et al., ECCV 2016. Options and errors: see :func:`saliency`.

    >>> model = torch.nn.Linear(2, 1)
    >>> weight = torch.nn.init.constant_(model.weight, 1)
    >>> excitation_backprop(model, torch.tensor([[1.0, 3.0]]), 0, '', gradient_to_saliency=lambda x: x.grad).flatten()
    tensor([0.2500, 0.7500])
    """
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
    """The saliency layer does not lie in front of the place where the contrast is taken."""


class ContrastiveExcitationBackpropContext(RuleContext):
    """Excitation backprop that subtracts, at one layer, what the opposite of the classifier sends there.

    The classifier is the last operation with weights that ``classifier_layer``, or the model, has run; the contrast
    is taken at the output of ``contrast_layer``, or at the classifier's input.
    """

    exact = True

    def __init__(self, contrast_layer: Module | None = None, classifier_layer: Module | None = None) -> None:
        table = rules.excitation_rules(self._excitatory)
        super().__init__(table | {function: partial(self._note, table[function]) for function in rules.WEIGHTED})
        self.contrast_layer = contrast_layer
        self.classifier_layer = classifier_layer
        self._forget()

    def _forget(self) -> None:
        self._hooks: list[Any] = []
        self._probe: Probe | None = None
        self._last: tuple[Tensor, Tensor] | None = None  # input and weight of the last operation that has weights
        self._classifier: tuple[Tensor, Tensor] | None = None
        self._site: Tensor | None = None  # where the contrast is subtracted
        self._contrast: Tensor | None = None
        self._opposed = False
        self._positive = rules.PositivePart()

    def __enter__(self) -> "ContrastiveExcitationBackpropContext":
        if self.contrast_layer is not None:
            self._probe = Probe(self.contrast_layer, "output")
            self._hooks.append(self._probe)
        if self.classifier_layer is not None:
            self._hooks.append(add_hook(self.classifier_layer.register_forward_pre_hook, self._expect_classifier))
            self._hooks.append(add_hook(self.classifier_layer.register_forward_hook, self._note_classifier))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        self._forget()  # the graph holds the hooks, which hold this context, which holds tensors of the graph

    def _expect_classifier(self, module: Module, args: Any) -> None:
        self._last = None

    def _note_classifier(self, module: Module, args: Any, output: Any) -> None:
        self._classifier = self._last

    def _note(
        self, rule: Rule, function: Callable[..., Any], input: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        # Tensors of this operation's own, if others read the same input or have the same weight.
        input, weight = input.view_as(input), weight.view_as(weight)
        self._last = (input, weight)
        return rule(function, input, weight, *args, **kwargs)

    def _excitatory(self, weight: Tensor) -> Tensor:
        opposed = self._opposed and self._classifier is not None and weight is self._classifier[1]
        return self._positive(-weight if opposed else weight)

    def oppose(self, scores: Tensor, gradient: Tensor) -> None:
        """Find what the opposite of the classifier sends to the contrast layer; the next pass subtracts it there."""
        if self._site is None:
            self._site = self._find_site()
            self._hooks.append(self._site.register_hook(self._subtract))
        self._contrast, self._opposed = None, True
        found = torch.autograd.grad(scores, self._site, gradient, retain_graph=True, allow_unused=True)
        self._contrast, self._opposed = found[0], False
        if self._contrast is None:
            raise ValueError(f"{self._named()} is reached by no gradient; a layer on the way to the score is accepted.")

    def _named(self) -> str:
        """The argument that says where the contrast is taken, and its value."""
        if self._probe is not None:
            return f"contrast_layer={type(self.contrast_layer).__name__}"
        return f"classifier_layer={'None' if self.classifier_layer is None else type(self.classifier_layer).__name__}"

    def _subtract(self, probability: Tensor) -> Tensor:
        return probability if self._contrast is None else probability - self._contrast

    def _find_site(self) -> Tensor:
        if self.classifier_layer is None:
            self._classifier = self._last
        if self._classifier is None:
            name = None if self.classifier_layer is None else type(self.classifier_layer).__name__
            raise ValueError(
                f"classifier_layer={name} has run no operation with weights; one that runs a linear or convolutional "
                "operation is accepted."
            )
        sites = self._classifier[:1] if self._probe is None else self._probe.data
        if not sites:
            raise ValueError(f"{self._named()} gave no tensor in the forward pass; a layer in use is accepted.")
        if sites[0].is_leaf:  # nothing was recorded in front of it
            raise _BehindContrastError
        return sites[0]


def gradient_to_contrastive_excitation_backprop_saliency(x: Tensor) -> Tensor:
    r"""The positive part of the contrast at each position, :math:`s_{n1u} = \max\{0, \sum_c p_{ncu}\}`."""
    return gradient_to_excitation_backprop_saliency(x).relu()


def contrastive_excitation_backprop(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layer = None,
    contrast_layer: Layer = None,
    classifier_layer: Layer = None,
    get_backward_gradient: Callable[[Any, Any], Tensor] = get_backward_gradient,
    debug: bool = False,
    **options: Any,
) -> Maps:
    r"""Contrastive excitation backprop: where the class wins more often than all that speaks against it.

    .. math:: s_{n1u} = \max\{0, \sum_c (p - \bar p)_{ncu}\}

    :math:`\bar p` is the winning probability under the opposite weights of ``classifier_layer``; it is subtracted at
    the output of ``contrast_layer``, and the difference sent on, all from one forward pass (a list of layers takes one
    each). (N, 1, h, w). Defaults: the classifier is the last linear layer or convolution that the model runs (of
    several heads, name the target's own), the contrast is taken at its input (any layer that all paths cross gives the
    same map), ``saliency_layer`` is the last layer with spatial output; the input, if that lies behind the contrast.
    Zhang et al., ECCV 2016. Options and errors: see :func:`saliency`.
    """
    if isinstance(saliency_layer, (list, tuple)) and saliency_layer and not debug:
        layers = (contrast_layer, classifier_layer, get_backward_gradient)
        return [
            contrastive_excitation_backprop(model, input, target, one, *layers, **options) for one in saliency_layer
        ]
    _check_pieces(get_backward_gradient, options)
    model = unwrap(model)
    contrast = None if contrast_layer is None else resolve_layer(model, contrast_layer, "contrast_layer")
    classifier = None if classifier_layer is None else resolve_layer(model, classifier_layer, "classifier_layer")
    context = ContrastiveExcitationBackpropContext(contrast, classifier)

    def oppose(scores: Tensor, target: Any) -> Tensor:
        gradient = get_backward_gradient(scores, target)
        if scores.requires_grad and isinstance(gradient, Tensor) and gradient.shape == scores.shape:
            context.oppose(scores, gradient)
        return gradient  # anything else is the driver's to refuse

    options.setdefault("gradient_to_saliency", gradient_to_contrastive_excitation_backprop_saliency)
    options |= {"context_builder": lambda: context, "get_backward_gradient": oppose}
    for layer in (None, "") if saliency_layer is None else (saliency_layer,):
        with suppress(_BehindContrastError):
            result = saliency(model, input, target, layer, **options)
            # With every layer recorded, it would not show that one lies behind another.
            return saliency(model, input, target, layer, debug=True, **options) if debug else result
    shown = [type(layer).__name__ if isinstance(layer, Module) else layer for layer in (saliency_layer, contrast_layer)]
    raise ValueError(
        f"saliency_layer={shown[0]!r} does not lie in front of contrast_layer={shown[1]!r} and the classifier; a layer "
        "that does is accepted."
    )


def _check_pieces(get_backward_gradient: Any, options: dict[str, Any]) -> None:
    if not callable(get_backward_gradient):
        raise ValueError(f"get_backward_gradient={get_backward_gradient!r} is not callable; a function is accepted.")
    if "context_builder" in options:
        raise ValueError(
            f"context_builder={options['context_builder']!r} has no contrast; for excitation_backprop it is accepted."
        )
