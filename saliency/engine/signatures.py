"""Signatures: what a type checker knows of a method's call, its options by name and its result."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypedDict, cast, overload

from torch import Tensor
from torch.nn import Module

from saliency.engine.call import Input
from saliency.engine.layers import Layer, Layers
from saliency.engine.layouts import Layout
from saliency.engine.maps import Resize
from saliency.engine.paths import Path
from saliency.engine.probe import Probe
from saliency.engine.record import ContextBuilder
from saliency.engine.settings import GetGradient
from saliency.engine.shared import SharedForward
from saliency.engine.targets import Target

Maps: TypeAlias = Any  # a Tensor; a list of them for a list of layers, a tuple for a tuple of inputs; a pair with debug
P = ParamSpec("P")


class CallOptions(TypedDict, total=False):
    """How the model is called. For the meaning of all options, see ``saliency``."""

    additional_forward_args: object
    forward_kwargs: Mapping[str, object] | None


class ModelOptions(CallOptions, total=False):
    """How the model is called, and which side of a layer is explained."""

    attribute_to_layer_input: bool


class FinishOptions(TypedDict, total=False):
    """How a map is finished."""

    resize: Resize
    resize_mode: str
    smooth: float
    layout: Layout


class MapOptions(ModelOptions, FinishOptions, total=False):
    """How the model is called, and how a map is finished."""


class PassOptions(ModelOptions, total=False):
    """What is explained of a recorded pass."""

    shared: SharedForward | None
    internal_batch_size: int | None
    call: int | str
    multiply_by_inputs: bool
    materialize_grads: bool


class ScoreOptions(PassOptions, total=False):
    """The same, with the gradient of the output."""

    get_backward_gradient: GetGradient


class WalkOptions(ScoreOptions, total=False):
    """The same, for a method without a path of its own."""

    path: Path | None


class PathOptions(MapOptions, ScoreOptions, total=False):
    """Options of a method with a path and a reduction of its own."""

    context_builder: ContextBuilder


class RuleOptions(MapOptions, WalkOptions, total=False):
    """Options of a method with a context of its own."""

    gradient_to_saliency: Callable[[Tensor], Tensor]


class BackwardOptions(MapOptions, WalkOptions, total=False):
    """Options of a method with a context and a reduction of its own."""


class Options(PathOptions, WalkOptions, total=False):
    """Options of a method with a reduction of its own."""


class Explains(Protocol[P]):
    """A method with further parameters and options P: maps of one layer, or a list of them for a list of layers.

    ``debug`` and ``return_convergence_delta`` return a pair; calls with them are checked less strictly, because P
    cannot be taken apart. If only the values decide the form of the result, it is ``Maps``.
    """

    __name__: str

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        model: Module,
        input: Tensor,
        target: Target,
        saliency_layer: Layer = ...,
        *args: object,
        debug: Literal[True],
        **options: object,
    ) -> tuple[Tensor, Mapping[str, Probe]]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        model: Module,
        input: Tensor,
        target: Target,
        saliency_layer: Layer = ...,
        *args: object,
        return_convergence_delta: Literal[True],
        **options: object,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        model: Module,
        input: Input,
        target: Target,
        saliency_layer: Layers = ...,
        *args: object,
        debug: bool,
        **options: object,
    ) -> Maps: ...

    @overload
    def __call__(
        self,
        model: Module,
        input: Input,
        target: Target,
        saliency_layer: Layers = ...,
        *args: object,
        return_convergence_delta: bool,
        **options: object,
    ) -> Maps: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of str too, but is one layer
        self,
        model: Module,
        input: Tensor,
        target: Target,
        saliency_layer: Layer = ...,
        *args: P.args,
        **options: P.kwargs,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        model: Module,
        input: Tensor,
        target: Target,
        saliency_layer: Sequence[Layer],
        *args: P.args,
        **options: P.kwargs,
    ) -> list[Tensor]: ...

    @overload
    def __call__(
        self,
        model: Module,
        input: Input,
        target: Target,
        saliency_layer: Layers = ...,
        *args: P.args,
        **options: P.kwargs,
    ) -> Maps: ...


def typed(function: Callable[Concatenate[Module, Input, Target, Layers, P], Maps]) -> Explains[P]:
    """Return the function itself, typed for its calls."""
    return cast(Explains[P], function)
