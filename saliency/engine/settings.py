"""Settings: how gradients are computed, and which options go together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from saliency.engine.checks import check_count, check_flag, is_int, shown
from saliency.engine.comparing import without_reference
from saliency.engine.contexts import NullContext, declared
from saliency.engine.layers import Layer
from saliency.engine.maps import Attribution
from saliency.engine.paths import Path
from saliency.engine.probe import Probe
from saliency.engine.record import ContextBuilder
from saliency.engine.shared import SharedForward, check_shared
from saliency.engine.targets import get_backward_gradient

GetGradient: TypeAlias = Callable[[Tensor, Any], Tensor] | None


@dataclass(frozen=True)
class Settings:
    """How gradients are computed: options of the driver, by their names there, and probes that get gradients too."""

    context_builder: ContextBuilder = NullContext
    get_backward_gradient: GetGradient = get_backward_gradient
    materialize_grads: bool = False
    shared: SharedForward | None = None
    path: Path | None = None
    internal_batch_size: int | None = None
    return_convergence_delta: bool = False
    multiply_by_inputs: bool = True
    debug: bool = False
    probes: Sequence[Probe] = ()


def check_settings(settings: Settings, gradient_to_saliency: object, layers: Sequence[Layer], call: int | str) -> None:
    """Raise ``ValueError`` for invalid settings, and for options that cannot be combined."""
    check_shared(settings.shared)
    for flag in ("debug", "return_convergence_delta", "multiply_by_inputs", "materialize_grads"):
        check_flag(flag, getattr(settings, flag))
    get, path = settings.get_backward_gradient, settings.path
    if not (get is None or callable(get)):
        raise ValueError(
            f"get_backward_gradient={shown(get)} is not a function; expected one of output and target, or None for no "
            "backward pass."
        )
    if not callable(gradient_to_saliency):
        raise ValueError(
            f"gradient_to_saliency={shown(gradient_to_saliency)} is not a function; expected one of an activation with "
            "its gradient."
        )
    attribution = isinstance(gradient_to_saliency, Attribution)
    if path is None:
        _check_one_pass(settings, attribution)
        return
    if not isinstance(path, Path):
        raise ValueError(f"path={shown(path)} is not a path; expected line(...), noise(...), between(...) or None.")
    _check_path(settings, path, attribution, layers)
    if path.at_layer and not (is_int(call) and call == -1) and layers != [""]:
        raise ValueError(f"call={shown(call)} is not possible on a path of the layer's own; expected -1, its last.")
    if path.fold.attribution and not attribution:
        raise ValueError(
            f"gradient_to_saliency={shown(gradient_to_saliency)} is not possible on a path whose fold is an "
            "attribution; expected Attribution(sum_channels), Attribution(max_channels) or Attribution(None)."
        )


def _check_one_pass(settings: Settings, attribution: bool) -> None:
    """Raise ``ValueError`` for an option that needs a path, where there is none."""
    size = settings.internal_batch_size
    if size is not None:
        raise ValueError(f"internal_batch_size={shown(size)} is not possible without a path; expected None.")
    completes = attribution and not settings.debug
    if settings.return_convergence_delta and not (completes and declared(settings.context_builder, "completes", False)):
        raise ValueError(
            "return_convergence_delta=True is not possible without a path; expected path=line(...), or an attribution "
            "in a context that conserves the score, without debug=True."
        )


def _check_path(settings: Settings, path: Path, attribution: bool, layers: Sequence[Layer]) -> None:
    """Raise ``ValueError`` for an option that is not possible on this path."""
    size = settings.internal_batch_size
    if size is not None:
        check_count("internal_batch_size", size)
    at_once = path.is_one_pass and size is None
    refused = {
        "debug=True": settings.debug and not at_once,
        "get_backward_gradient=None": settings.get_backward_gradient is None,
        "shared": settings.shared is not None and not (path.at_layer and "" not in layers),
        "return_convergence_delta=True": settings.return_convergence_delta and not (attribution and path.spans),
    }
    for argument, is_asked in refused.items():
        if is_asked:
            raise ValueError(f"{argument} is not possible on this path; expected a method without a path.")


def check_context(settings: Settings) -> None:
    """Raise ``ValueError`` for a context that does not send back derivatives, on a path that needs them."""
    context_builder, path = settings.context_builder, settings.path
    if not callable(context_builder) or (path is None and not isinstance(context_builder, type)):
        return
    carries = declared(context_builder, "carries", "gradient")
    if carries == "differences" and (path is None or path.at_layer or not path.spans):
        raise without_reference(context_builder)
    if carries == "relevance" and path is not None and path.displaces:
        raise ValueError(
            f"context_builder={shown(context_builder)} is not possible on a path that multiplies gradients by a "
            "displacement; expected a context that sends back gradients."
        )


def scaled(
    settings: Settings, gradient_to_saliency: Callable[[Tensor], Tensor]
) -> tuple[Settings, Callable[[Tensor], Tensor]]:
    """The settings and the reduction, multiplied by inputs or not."""
    if settings.multiply_by_inputs:
        return settings, gradient_to_saliency
    if settings.path is not None:
        return replace(settings, path=settings.path.unscaled()), gradient_to_saliency
    if isinstance(gradient_to_saliency, Attribution):
        gradient_to_saliency = gradient_to_saliency.unscaled()
    return settings, gradient_to_saliency
