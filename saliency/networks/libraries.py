"""Networks of other libraries by name: ``timm:NAME``, and ``hf:NAME_OR_FOLDER`` of Hugging Face's transformers."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from torch.nn import Module

from saliency.networks.names import unknown
from saliency.networks.preprocessing import Preprocessing
from saliency.networks.published import IMAGENET, imagenet_names, processor_preprocessing, timm_preprocessing

T = TypeVar("T")


class Library(NamedTuple):
    """A library: its name, and from a name in it to a network, with trained weights or not, and its preprocessing."""

    package: str
    build: Callable[[Any, str, bool], Module]
    preprocessing: Callable[[Any, str], Preprocessing]


def is_elsewhere(arch: str) -> bool:
    """Whether a network's name begins with that of a library.

    >>> is_elsewhere("timm:resnet18"), is_elsewhere("resnet18")
    (True, False)
    """
    return arch.partition(":")[0] in LIBRARIES and ":" in arch


def build_elsewhere(arch: str, trained: bool) -> Module:
    """The network of ``LIBRARY:NAME``. Raises ``ValueError`` where it cannot be made, or the library is missing."""
    return _ask(arch, lambda library, package, name: library.build(package, name, trained))


def preprocessing_elsewhere(arch: str) -> Preprocessing:
    """What the network of ``LIBRARY:NAME`` expects. Same errors."""
    return _ask(arch, lambda library, package, name: library.preprocessing(package, name))


def _ask(arch: str, question: Callable[[Library, Any, str], T]) -> T:
    prefix, _, name = arch.partition(":")
    library = LIBRARIES[prefix]
    try:
        package = import_module(library.package)
    except ImportError as error:
        raise ValueError(
            f"arch={arch!r} needs {library.package}, which is not installed; expected a network of torchvision, or "
            f"the extra 'zoo' of saliency-torch."
        ) from error
    try:
        return question(library, package, name)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        if str(error).startswith("arch="):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"arch={arch!r} cannot be made ({reason}); expected one that {prefix} knows.") from error


def _build_timm(timm: Any, name: str, trained: bool) -> Module:
    _check_timm(timm, name)
    model: Module = timm.create_model(name, pretrained=trained)
    return model.eval()


def _timm_preprocessing(timm: Any, name: str) -> Preprocessing:
    _check_timm(timm, name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError("it has no configuration of its own")
    known = config.num_classes == IMAGENET
    return timm_preprocessing(config.to_dict(), imagenet_names() if known else config.label_names or ())


def _check_timm(timm: Any, name: str) -> None:
    if not timm.is_model(name):
        raise unknown("arch", f"timm:{name}", [f"timm:{known}" for known in timm.list_models()], "expected timm's")


def _build_hf(transformers: Any, name: str, trained: bool) -> Module:
    kind = transformers.AutoModelForImageClassification
    if trained:
        model: Module = kind.from_pretrained(name)
    else:
        model = kind.from_config(transformers.AutoConfig.from_pretrained(name))
    return model.eval()


def _hf_preprocessing(transformers: Any, name: str) -> Preprocessing:
    labels = transformers.AutoConfig.from_pretrained(name).id2label
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    return processor_preprocessing(processor, [str(labels[index]) for index in sorted(labels)])


LIBRARIES = {
    "timm": Library("timm", _build_timm, _timm_preprocessing),
    "hf": Library("transformers", _build_hf, _hf_preprocessing),
}
