"""Choices on the command line: methods, their options, a device."""

import ast
from collections.abc import Collection, Iterable, Sequence

import torch

from saliency.cli.naming import find_method
from saliency.engine.checks import did_you_mean
from saliency.methods import METHODS
from saliency.networks.names import unknown
from saliency.networks.own import import_module


def choose_methods(names: Sequence[str], groups: Collection[str] = ()) -> list[str]:
    """Return the names of methods without repetition; ``'all'`` stands for every one.

    ``ValueError`` for an unknown one, with the nearest of these and of ``groups``: see :func:`find_method`.
    """
    chosen = [method for name in names for method in (METHODS if name == "all" else ["".join(name.split())])]
    for name in chosen:
        find_method(name, groups)
    return list(dict.fromkeys(chosen))


def import_modules(names: Iterable[str]) -> str | None:
    """Import modules of the user's own, which may add rows to the tables; return the one MODULE:BUILD among the names.

    >>> import_modules(["math", "torch.nn:Identity"])
    'torch.nn:Identity'
    """
    names = list(names)
    for name in names:
        if ":" not in name:
            import_module("import", name)
    networks = [name for name in names if ":" in name]
    if len(networks) > 1:
        raise ValueError(f"import={networks[1]!r} is a second network, after {networks[0]!r}; expected one.")
    return networks[0] if networks else None


def choose_device(name: str) -> torch.device:
    """Return the device; ``'auto'`` is CUDA where it is available."""
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"], "expected 'auto', 'cpu' or 'cuda'")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device='cuda' is not available on this machine; expected 'auto' or 'cpu'.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_options(methods: Sequence[str], layer: str | None, pairs: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return the options of every method: the layer and each NAME=VALUE, for the methods that have such an option.

    >>> choose_options(["rise", "gradient"], None, ["num_masks=500"])
    {'rise': {'num_masks': 500}, 'gradient': {}}
    """
    found = {name: find_method(name) for name in methods}
    chosen: dict[str, object] = {} if layer is None else {"saliency_layer": layer}
    if layer is not None and not any("saliency_layer" in method.options for method in found.values()):
        raise ValueError(f"layer={layer!r} is an option of none of the methods; expected one of theirs.")
    for pair in pairs:
        option, _, text = pair.partition("=")
        if not any(option in method.written for method in found.values()):
            hint = did_you_mean(option, {one for method in found.values() for one in method.written})
            raise ValueError(
                f"option={pair!r} is an option of none of the methods{hint}; "
                "expected one of theirs that is a number, a text, a flag or a list of those."
            )
        chosen[option] = read_value(text)
    return {
        name: {
            option: value
            for option, value in chosen.items()
            if option in (method.options if option == "saliency_layer" else method.written)
        }
        for name, method in found.items()
    }


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
        elif "saliency_layer" not in find_method(method).options:
            raise ValueError(f"layer={text!r} is not an option of {method}; expected a method that explains layers.")
        else:
            own.setdefault(method, []).append(name)
    return common, own


def read_value(text: str) -> object:
    """Return the Python literal that a text is, or the text itself.

    >>> read_value("(0.1, 0.2)"), read_value("softmax")
    ((0.1, 0.2), 'softmax')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
