"""What is chosen on the command line: methods, their options, a device."""

import ast
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

from saliency.explaining.choosing import POINTS_AT_ONCE as POINTS_AT_ONCE
from saliency.explaining.choosing import Function
from saliency.explaining.choosing import is_path_method as is_path_method
from saliency.methods import METHODS
from saliency.networks.names import unknown
from saliency.wrappers import augmented, low_pass, normalised, smooth_grad

# What makes a method of a method, map by map; `fused` makes one map of several layers'.
WRAPPERS: dict[str, Callable[..., Function]] = {
    wrapper.__name__: wrapper for wrapper in (smooth_grad, augmented, low_pass, normalised)
}

# What changes the form of the result; a layer has an argument of its own.
NOT_OFFERED = frozenset({"saliency_layer", "debug", "return_convergence_delta"})


def choose_methods(names: Sequence[str]) -> list[str]:
    """Return the names of methods without repetition; ``'all'`` stands for every one."""
    chosen = [method for name in names for method in (METHODS if name == "all" else [name])]
    for name in chosen:
        if name not in METHODS:
            raise unknown("method", name, list(METHODS), "accepted are 'all' and what 'saliency methods' lists")
    return list(dict.fromkeys(chosen))


def choose_device(name: str) -> torch.device:
    """Return the device; ``'auto'`` is CUDA where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"], "accepted are 'auto', 'cpu' and 'cuda'")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device='cuda' is not available on this machine; accepted are 'auto' and 'cpu'.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_options(methods: Sequence[str], layer: str | None, pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the options of every method: the layer and each NAME=VALUE, for the methods that have such an option.

    >>> choose_options(["rise", "gradient"], None, ["num_masks=500"])
    {'rise': {'num_masks': 500}, 'gradient': {}}
    """
    chosen = {} if layer is None else {"saliency_layer": layer}
    if layer is not None and not any("saliency_layer" in METHODS[name].options for name in methods):
        raise ValueError(f"layer={layer!r} is an option of none of the methods; one of theirs is accepted.")
    for pair in pairs:
        option, _, text = pair.partition("=")
        if not any(option in written_options(name) for name in methods):
            raise ValueError(
                f"option={pair!r} is an option of none of the methods; expected one of theirs that is a number, a "
                "text, a flag or a list of those."
            )
        chosen[option] = read_value(text)
    return {
        name: {
            option: value
            for option, value in chosen.items()
            if option in (METHODS[name].options if option == "saliency_layer" else written_options(name))
        }
        for name in methods
    }


@cache
def written_options(name: str) -> frozenset[str]:
    """The options of a method that NAME=VALUE can give: numbers, texts, flags and lists of them.

    >>> sorted(written_options("grad_cam") - written_options("hires_cam"))
    []
    >>> {"resize", "path"} & written_options("grad_cam")
    {'resize'}
    """
    method = METHODS[name]
    types = get_type_hints(method.engine) | get_type_hints(method.function)
    found = {option for option in method.options - NOT_OFFERED if _is_written(types[option])}
    # The other methods take it along with path=, which cannot be written.
    return frozenset(found if is_path_method(name) else found - {"internal_batch_size"})


def _is_written(hint: object) -> bool:
    """Is a value of this type, or of one of its alternatives, a number, a text, a flag or a list of those?"""
    if get_origin(hint) in (Union, UnionType, tuple, Sequence):
        return any(map(_is_written, get_args(hint)))
    return hint in (bool, int, float, str)


def split_layers(layers: Sequence[str], methods: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The layers of [METHOD=]NAME that all methods are to explain, and those of some, by method.

    >>> split_layers(["layer4", "gradient=layer1"], ["grad_cam", "gradient"])
    (['layer4'], {'gradient': ['layer1']})
    """
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for text in layers:
        method, equals, name = text.partition("=")
        if not equals:
            common.append(text)
        elif method not in methods:
            raise unknown("layer", text, [f"{known}={name}" for known in methods], "expected [METHOD=]NAME")
        elif "saliency_layer" not in METHODS[method].options:
            raise ValueError(f"layer={text!r} is no option of {method}; expected a method that explains layers.")
        else:
            own.setdefault(method, []).append(name)
    return common, own


def choose_wrappers(texts: Sequence[str]) -> Callable[[str], tuple[str, Function]]:
    """Return what makes of the name of a method what it is called when it is wrapped, and the wrapped method.

    >>> choose_wrappers(["smooth_grad(n_samples=2)"])("gradient")[0]
    'smooth_grad(gradient)'
    """
    wrappers = [_read_wrapper(text) for text in texts]

    def wrap(method: str) -> tuple[str, Function]:
        title, function = method, METHODS[method].function
        for name, options in wrappers:
            title, function = f"{name}({title})", WRAPPERS[name](function, **options)
        return title, function

    return wrap


def _read_wrapper(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of NAME or NAME(OPTION=VALUE, ...), as Python reads it."""
    accepted = f"expected {', '.join(WRAPPERS)}, each alone or as 'smooth_grad(n_samples=10)'"
    name = text.partition("(")[0].strip()
    if name not in WRAPPERS:
        raise unknown("wrap", name, list(WRAPPERS), accepted)
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return name, {}
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            WRAPPERS[name](METHODS["gradient"].function, **options)
            return name, options
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"wrap={text!r} cannot be read ({error}); {accepted}.") from error
    raise ValueError(f"wrap={text!r} cannot be read; {accepted}.")


def read_value(text: str) -> Any:
    """Return the Python literal that a text is, or the text itself.

    >>> read_value("(0.1, 0.2)"), read_value("softmax")
    ((0.1, 0.2), 'softmax')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
