"""What a result depends on, written down, and the fingerprint that identifies it in every row."""

import hashlib
import inspect
import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

import saliency.evaluation
from saliency.networks.preprocessing import Preprocessing

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Code: TypeAlias = "type | Callable[..., object]"

PACKAGES = ("saliency-torch", "torch", "torchvision", "numpy")
SESSION = secrets.token_hex(4)  # with the process's id, in what no later process may reuse

# Functions that have no version, numbered for as long as they live: `id` is given again to the next one.
_numbers: "WeakKeyDictionary[Code, int]" = WeakKeyDictionary()
_count = count(1)


def fingerprint_of(configuration: Mapping[str, object]) -> str:
    """The first digits of the SHA-256 of what :func:`written` makes of a configuration, in one order of its keys.

    >>> fingerprint_of({"a": 1, "b": (2.0, None)}) == fingerprint_of({"b": [2.0, None], "a": 1})
    True
    """
    return hashlib.sha256(canonical(written(configuration)).encode()).hexdigest()[:16]


def canonical(value: Json) -> str:
    """JSON in canonical form: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def written(value: object, unversioned: list[str] | None = None, version: str | None = None) -> Json:
    """A value in a form that JSON can hold. ``ValueError`` for one that could not tell two runs apart.

    Tensors, arrays and networks become digests, functions and classes their name and version: ``version``, or that of
    the installed package that they are in. A function that has none, or that its name does not lead to (a closure, a
    lambda), gets a number in this process, and its name is added to ``unversioned``.

    >>> written({"sizes": (1, 2), "map": torch.nn.functional.relu}, [])["sizes"]
    [1, 2]
    """
    inner = partial(written, unversioned=unversioned, version=version)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): inner(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [inner(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inner(entry) for entry in value), key=canonical)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return {"tensor": _digest({"": torch.as_tensor(value)})}
    if isinstance(value, Module):
        return describe_network(value)
    if isinstance(value, (Path, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, partial):
        return {"partial": [inner(value.func), inner(value.args), inner(value.keywords)]}
    if callable(value):
        return _written_code(value, unversioned, version)
    raise ValueError(
        f"options={value!r} cannot be written down; expected numbers, texts, tensors, functions or lists of them."
    )


def _written_code(code: Code, unversioned: list[str] | None, version: str | None) -> str:
    owner = code if hasattr(code, "__qualname__") else type(code)  # an object that is called
    name = f"{owner.__module__ or ''}.{owner.__qualname__}".lstrip(".")
    known = _version_of(code, owner.__module__) if version is None else version
    if known is not None:
        return f"{name} {known}".strip()
    if unversioned is not None and name not in unversioned:
        unversioned.append(name)
    number = next(_count)
    with suppress(TypeError):  # it has no hash, or cannot be referred to weakly
        number = _numbers.setdefault(code, number)
    return f"{name} #{number}"


def _version_of(code: Code, module: str | None) -> str | None:
    """The version that covers the function's behaviour; None without one, or where its name leads elsewhere."""
    if inspect.isbuiltin(code):
        return ""  # of Python or torch
    found: object = sys.modules.get(module or "")
    for part in getattr(code, "__qualname__", "?").split("."):
        found = getattr(found, part, None)
    return _installed_version(module) if module and found is code else None


@lru_cache(64)
def _installed_version(module: str) -> str | None:
    """The version of the package that holds a module; None where its files are not those of an installed wheel."""
    package, path = module.partition(".")[0], getattr(sys.modules.get(module), "__file__", None)
    if package == __name__.partition(".")[0]:
        return ""  # that of all results, which has a digest of the files
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(""))).resolve()
    whole = path is not None and Path(path).resolve().is_relative_to(folder)
    return distribution.version if whole and distribution.read_text("RECORD") is not None else None


def describe_network(model: Module, preprocessing: Preprocessing | None = None) -> dict[str, Json]:
    """Digests of the tensors, the structure and the classes of a network, and what it expects of a photo.

    What its classes are called makes no difference, nor what the code of a class does that is not installed.
    """
    expected = {} if preprocessing is None else {"preprocessing": written(preprocessing._replace(classes=())._asdict())}
    kinds = {type(module) for module in model.modules()}
    code = sorted(f"{kind.__module__}.{kind.__qualname__} {_installed_version(kind.__module__)}" for kind in kinds)
    structure = canonical([re.sub(r" at 0x[0-9a-f]+", "", str(model)), *code])
    return {
        "tensors": _digest(model.state_dict()),
        "structure": hashlib.sha256(structure.encode()).hexdigest(),
        "class": type(model).__qualname__,
        **expected,
    }


def versions() -> dict[str, str]:
    """The versions of what computes the results, as installed; this package's with a digest of its files."""
    found = dict.fromkeys(PACKAGES, "unknown")
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    folder, digest = Path(saliency.evaluation.__file__).parent.parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):  # of a checkout that is worked on, the version alone says too little
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return {**found, PACKAGES[0]: f"{found[PACKAGES[0]]}+{digest.hexdigest()[:8]}"}


def _digest(tensors: Mapping[str, object]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {written(tensor)!r}".encode())
    return digest.hexdigest()
