"""Checks of arguments, and the wording of their errors."""

import math
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from inspect import CO_VARKEYWORDS
from numbers import Integral, Real
from types import FrameType
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import Module

LARGEST = 2**31  # no count or side is larger
_LONGEST = 300  # characters of a value shown in an error

# Options of other libraries, and what replaces them here.
_ELSEWHERE = {
    **dict.fromkeys(("target_layers", "target_layer", "layers", "layer", "conv_layer"), "saliency_layer"),
    **dict.fromkeys(("targets", "class_idx", "class_index", "target_category", "y"), "target"),
    **dict.fromkeys(("inputs", "input_tensor", "images", "x"), "input"),
    **dict.fromkeys(("reshape_transform", "data_format"), "layout, such as the tokens' (height, width)"),
    **dict.fromkeys(("interpolate_mode", "interpolation"), "resize_mode"),
    **dict.fromkeys(("relu_attributions", "attr_dim_summation"), "reduction or gradient_to_saliency"),
    **dict.fromkeys(("aug_smooth", "nt_type", "nt_samples", "noise_level"), "smooth_grad(method)"),
    **dict.fromkeys(("normalize", "normalized", "relu"), "a map on its raw scale, to be changed afterwards"),
    **dict.fromkeys(("use_cuda", "device"), "a model and an input on that device"),
    "attributions_only": "the maps alone, which a call returns anyway",
    "composite": "rules, of lrp, or a context_builder",
    "eigen_smooth": "gradient_to_saliency, a function of the activation and its gradient",
    "show_progress": "progress",
}


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest of the names, for an error; nothing where none is near.

    >>> did_you_mean("gradcam", ["grad_cam", "lrp"]), did_you_mean("rise", ["lrp"])
    (" (did you mean 'grad_cam'?)", '')
    """
    near = get_close_matches(name, [*names], n=1, cutoff=cutoff)
    return f" (did you mean {near[0]!r}?)" if near else ""


def instead_of(option: str, options: Iterable[str], expected: str) -> str:
    """The end of an error: what replaces an option of another library, or else the nearest one and what is expected.

    >>> instead_of("target_layers", ["smooth"], "one"), instead_of("smoth", ["smooth"], "one of smooth")
    ('; expected saliency_layer.', " (did you mean 'smooth'?); expected one of smooth.")
    """
    if option in _ELSEWHERE:
        return f"; expected {_ELSEWHERE[option]}."
    return f"{did_you_mean(option, options)}; expected {expected}."


def is_int(value: object) -> TypeGuard[int]:
    """Is this an integer, of Python or NumPy?"""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Is this a finite real number, of Python or NumPy?"""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int of more than 308 digits
        return False


def is_positive_int(value: object) -> TypeGuard[int]:
    return is_int(value) and 0 < int(value) < LARGEST


def describe(value: object) -> str:
    """What a value is in a few words, however large it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    shape = getattr(value, "shape", None)  # of an array
    return f"a {type(value).__name__}" + (f" of shape {shape}" if isinstance(shape, tuple) else "")


def name_of(function: object) -> str:
    """The name of a function, or else of its class; for a partial function, of the function inside.

    >>> name_of(partial(torch.relu)), name_of(lambda: 0), name_of(torch.nn.ReLU())
    ('relu', 'lambda', 'ReLU')
    """
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")


def check_tensor(argument: str, value: object) -> None:
    """Raise ``ValueError`` for anything but a tensor, such as an array, a list or a string."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument}={shown(value)} is not a tensor; expected a torch.Tensor.")


def check_type(argument: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise ``ValueError`` for a value of another type."""
    if not isinstance(value, kind):
        raise ValueError(f"{argument}={shown(value)} is of the wrong type; expected {expected}.")


def check_model(model: object) -> None:
    """Raise ``ValueError`` for a model that is not a ``Module``."""
    check_type("model", model, Module, "a torch.nn.Module")


def check_maps_type(argument: str, maps: object) -> None:
    """Raise ``ValueError`` for maps that cannot be ordered: not a tensor, or one of booleans or complex numbers."""
    check_tensor(argument, maps)
    if isinstance(maps, Tensor) and (maps.dtype == torch.bool or maps.is_complex()):
        raise ValueError(f"{argument}={describe(maps)} is of dtype {maps.dtype}; expected maps of real numbers.")


def shown(value: object) -> str:
    """A value as errors repeat it; tensors, modules, containers of them and long values are described instead."""
    text = describe(value) if isinstance(value, (Tensor, Module)) else repr(value)
    return describe(value) if len(text) > _LONGEST or "tensor(" in text or "array(" in text else text


def check_flag(argument: str, value: object) -> None:
    """Raise ``ValueError`` for a flag that is neither ``True`` nor ``False``."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}={shown(value)} is not a flag; expected True or False.")


def check_progress(progress: object) -> None:
    """Raise ``ValueError`` for a progress callback that is not callable."""
    if not (progress is None or callable(progress)):
        raise ValueError(f"progress={shown(progress)} is not callable; expected a function of two ints or None.")


def check_seed(seed: object) -> None:
    """Raise ``ValueError`` for a value that cannot seed a generator."""
    if not is_int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={shown(seed)} is not a seed; expected an int >= 0.")


def check_count(argument: str, value: object) -> None:
    """Raise ``ValueError`` for a count that is not a positive integer."""
    if not is_positive_int(value):
        raise ValueError(f"{argument}={shown(value)} is not a positive number; expected an int >= 1.")


def refuse_unknown(unknown: Mapping[str, object]) -> None:
    """Raise ``ValueError`` for unknown options, with the closest known name.

    If the caller passes on the options of another function, the options of that one are known too, and so on.
    """
    for argument, value in unknown.items():
        names: set[str] = set()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_flags & CO_VARKEYWORDS:
            code = frame.f_code
            names |= {*code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]}
            frame = frame.f_back
        options = sorted(names - {"model", "input", "target"})
        end = instead_of(argument, options, f"one of {', '.join(options)}")
        raise ValueError(f"{argument}={shown(value)} is not an option{end}")
