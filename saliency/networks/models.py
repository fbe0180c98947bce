"""Networks by name, what they expect of a photo, and their classes: torchvision's, TorchRay's and the embedded ones."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_count, check_flag, check_type
from saliency.engine.layers import plain_name
from saliency.images import check_path, is_file
from saliency.networks.caffe import CAFFE_ARCHS, MEAN, STD, caffe_network, from_caffe
from saliency.networks.libraries import build_elsewhere, is_elsewhere, preprocessing_elsewhere
from saliency.networks.names import find_class as find_class
from saliency.networks.names import find_targets as find_targets
from saliency.networks.names import unknown as unknown
from saliency.networks.preprocessing import Preprocessing as Preprocessing
from saliency.networks.published import weights_preprocessing

SCENES, SCENES_VIT = "scenes", "scenes_vit"
EMBEDDED = (SCENES, SCENES_VIT)  # a ResNet and a vision transformer
DEFAULT = "DEFAULT"
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")  # what checkpoints keep a state dict under
# Their weights are trained for another normalisation than the others', which they make of the common one on request.
TRANSFORMING = ("googlenet", "inception_v3")


def networks() -> list[str]:
    """Return the names :func:`load_network` accepts, the embedded networks first.

    >>> networks()[:3]
    ['scenes', 'scenes_vit', 'alexnet']
    """
    from torchvision import models

    return [*EMBEDDED, *models.list_models(module=models), *CAFFE_ARCHS]


def preprocessing(arch: str, size: int | None = None) -> Preprocessing:
    """Return what the network expects of a photo; torchvision's as it describes their DEFAULT weights.

    Nothing is downloaded. ``size`` replaces the network's own. Raises :class:`ValueError` for an unknown ``arch``
    and a ``size`` that it does not take.

    >>> preprocessing("inception_v3").size, preprocessing("resnet50").classes[243]
    (299, 'bull mastiff')
    """
    check_arch(arch)
    if size is not None:
        check_count("size", size)
    found = _find_preprocessing(arch)
    return found if size is None else found.resized(size, f"arch={arch!r}")


def load_network(arch: str, weights: str | Path | None = None, *, pooled: bool = True) -> Module:
    """Return a classifier in evaluation mode, on the CPU, in float32.

    ``arch`` is one of :func:`networks`, or ``'timm:NAME'`` or ``'hf:NAME_OR_FOLDER'`` of Hugging Face's transformers,
    where these are installed. ``weights`` is None (random), ``'DEFAULT'`` (the published ones, downloaded
    once; the embedded ones of the scenes' networks) or a file with a state dict, in any precision, bare or under
    ``'state_dict'`` or ``'model'``, with or without the prefixes ``'module.'`` and ``'_orig_mod.'``. The head takes the
    number of classes of the file. TorchRay's networks take its own files, and score every place (N, classes, h, w)
    unless ``pooled``, as the published pointing game has it. Raises :class:`ValueError` for an unknown ``arch`` and for
    weights that are missing, broken or of another network.

    >>> load_network("squeezenet1_1")(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1000])
    """
    check_arch(arch)
    check_flag("pooled", pooled)
    check_type("weights", weights, (str, Path, type(None)), "None, 'DEFAULT' or the file of a state dict")
    if not pooled and arch not in CAFFE_ARCHS:
        raise ValueError(f"pooled=False does not go with arch={arch!r}; expected one of {', '.join(CAFFE_ARCHS)}.")
    with torch.random.fork_rng(devices=[], enabled=weights is not None):  # the drawn values are overwritten
        if arch in CAFFE_ARCHS:
            return _load_caffe(arch, weights, pooled)
        if weights is None or weights == DEFAULT:
            return _build(arch, weights, {}).eval()
        state = read_state_dict(weights)
        return _fill(_build(arch, None, state), state, arch, weights)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict or checkpoint file by name, on the CPU, in the file's own precision.

    Only tensors are unpickled, never code. Raises :class:`ValueError` where the file is missing or holds anything else.
    """
    check_path("weights", path)
    if not is_file(path):
        raise ValueError(f"weights={str(path)!r} is not a file; expected 'DEFAULT' or a file with a state dict.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever the bytes make it raise
        raise _weights_error(path, "cannot be read", error) from error
    for key in CHECKPOINT_KEYS:
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={str(path)!r} does not hold a state dict; expected a dict of tensors by name.")
    if not all(isinstance(name, str) for name in state):
        raise ValueError(f"weights={str(path)!r} has a key that is not a text; expected a dict of tensors by name.")
    return {plain_name(name).removeprefix("module."): tensor for name, tensor in state.items()}


def check_arch(arch: str) -> None:
    """Raise :class:`ValueError`, with the nearest name, where no network has this name."""
    check_type("arch", arch, str, "the name of a network")
    if not is_elsewhere(arch) and arch not in EMBEDDED and arch not in networks():
        expected = "expected 'scenes', 'scenes_vit', torchvision's classification networks or TorchRay's"
        raise unknown("arch", arch, networks(), expected)


def _build(arch: str, weights: str | Path | None, state: dict[str, Tensor]) -> Module:
    if is_elsewhere(arch):
        return build_elsewhere(arch, weights == DEFAULT)
    if arch in EMBEDDED:
        from saliency.scenes import SceneTransformer, scene_network

        if arch == SCENES:
            return scene_network(weights == DEFAULT)
        return scene_network("vit") if weights == DEFAULT else SceneTransformer()
    from torchvision.models import get_model

    # The last entry of a classifier's state dict is its head's, so its length is the number of classes.
    head = [tensor for tensor in state.values() if tensor.ndim][-1:]
    options: dict[str, Any] = {"num_classes": len(head[0])} if head else {}
    if arch in TRANSFORMING and weights is None:
        options |= {"transform_input": True, "init_weights": not state}
    try:
        model: Module = get_model(arch, weights=weights, **options)
    except (OSError, RuntimeError) as error:  # no network, no such page, a file cut short (its hash differs)
        raise _download_error(arch, error) from error
    return model


def _load_caffe(arch: str, weights: str | Path | None, pooled: bool) -> Module:
    network = caffe_network(arch, pooled)
    if weights is None:
        return network.eval()
    if weights != DEFAULT:
        state = read_state_dict(weights)
    else:
        try:
            state = torch.hub.load_state_dict_from_url(CAFFE_ARCHS[arch].url, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            raise _download_error(arch, error) from error
    return _fill(network, from_caffe(state, network), arch, weights)


def _fill(model: Module, state: dict[str, Tensor], arch: str, weights: str | Path) -> Module:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _weights_error(weights, f"do not fit arch={arch!r}", error) from error
    return model.eval()


def _find_preprocessing(arch: str) -> Preprocessing:
    if arch in EMBEDDED:
        from saliency.scenes.generator import CLASSES, SIZE

        return Preprocessing(SIZE, 16, False, (0.0,) * 3, (1.0,) * 3, CLASSES, multi_label=True)
    if is_elsewhere(arch):
        return preprocessing_elsewhere(arch)
    if arch not in CAFFE_ARCHS:
        from torchvision.models import get_model_weights

        return weights_preprocessing(get_model_weights(arch)["DEFAULT"])
    row = CAFFE_ARCHS[arch]
    expected = Preprocessing(224, row.min_size, False, MEAN, STD, row.classes, multi_label=True)
    return expected._replace(caffe_resize=True, layer=row.layer)


def _download_error(arch: str, error: Exception) -> ValueError:
    return _weights_error(DEFAULT, f"could not be downloaded for arch={arch!r}", error)


def _weights_error(weights: str | Path, problem: str, error: Exception) -> ValueError:
    reason = textwrap.shorten(" ".join(str(error).split()), 160) or type(error).__name__
    return ValueError(f"weights={str(weights)!r} {problem} ({reason}); expected 'DEFAULT' or a state dict's file.")
