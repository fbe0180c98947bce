"""What a result hangs on, written down, and the fingerprint that stands for it in every row."""

import hashlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from saliency.evaluation.networks.models import Recipe

PACKAGES = ("saliency-torch", "torch", "torchvision", "numpy")
DIGITS = 16


def fingerprint_of(configuration: Mapping[str, Any]) -> str:
    """The first digits of the SHA-256 of what :func:`written` makes of a configuration, in one order of its keys.

    >>> fingerprint_of({"a": 1, "b": (2.0, None)}) == fingerprint_of({"b": [2.0, None], "a": 1})
    True
    """
    return hashlib.sha256(canonical(written(configuration)).encode()).hexdigest()[:DIGITS]


def canonical(value: Any) -> str:
    """JSON in the one form that equal values have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def written(value: Any) -> Any:
    """A value as JSON can hold it. ``ValueError`` for one that two runs could not be told apart by.

    Tensors, arrays and networks become digests; functions their name, what they close over, and outside of this
    package and torch a digest of their code and their defaults.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): written(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((written(entry) for entry in value), key=canonical)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return {"tensor": _digest({"": torch.as_tensor(value)})}
    if isinstance(value, Module):
        return {"network": _digest(value.state_dict()), "structure": _structure(value)}
    if isinstance(value, (Path, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, partial):
        return {"partial": written([value.func, value.args, value.keywords])}
    if inspect.isfunction(value) or inspect.isclass(value) or inspect.isbuiltin(value):
        return _written_function(value)
    raise ValueError(
        f"options={value!r} cannot be written down; numbers, texts, tensors, functions and lists of them are accepted."
    )


def _written_function(function: Any) -> dict[str, Any]:
    module = function.__module__ or ""
    found: dict[str, Any] = {"function": f"{module}.{function.__qualname__}"}
    cells = getattr(function, "__closure__", None) or ()
    if inspect.isfunction(function) and cells:
        found["closure"] = [written(cell.cell_contents) for cell in cells if cell.cell_contents is not function]
    if inspect.isfunction(function) and module.split(".")[0] not in ("saliency", "torch"):
        found["code"] = hashlib.sha256(repr(_code_of(function.__code__)).encode()).hexdigest()
        found["defaults"] = written([function.__defaults__, function.__kwdefaults__])
    return found


def _code_of(code: CodeType) -> tuple[Any, ...]:
    """What a function does, but for where it stands."""
    constants = [_code_of(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return code.co_code, code.co_names, constants


def describe_network(model: Module, recipe: Recipe) -> dict[str, Any]:
    """Digests of the tensors and the structure of a network, and what it expects of a photo, without class names."""
    expected = {name: value for name, value in recipe._asdict().items() if name != "classes"}
    return {
        "tensors": _digest(model.state_dict()),
        "structure": _structure(model),
        "recipe": written(expected),
    }


def _structure(model: Module) -> str:
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(model)).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of what computes the results, as installed."""
    from importlib import metadata

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "unknown"

    return {package: version(package) for package in PACKAGES}


def _digest(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {written(tensor)!r}".encode())
    return digest.hexdigest()


def write_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a file that is there whole or not at all, whatever happens; ``durable``, even if the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_configuration(folder: Path, fingerprint: str, configuration: Mapping[str, Any]) -> None:
    """Write ``configs/<fingerprint>.json``, if it is not there."""
    path = folder / "configs" / f"{fingerprint}.json"
    if not path.exists():
        write_file(path, (json.dumps(written(configuration), indent=2) + "\n").encode(), durable=True)
