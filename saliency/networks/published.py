"""Preprocessing as published beside weights: torchvision's presets, timm's configurations, Hugging Face's processors.

A network given as an object, not by name, is recognised by its own configuration, or by its size.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.nn import Module

from saliency.engine.checks import shown
from saliency.networks.preprocessing import Preprocessing

IMAGENET = 1000


def weights_preprocessing(weights: Any) -> Preprocessing:
    """The preprocessing of an entry of torchvision's tables of weights, such as ``ResNet50_Weights.DEFAULT``."""
    smallest = min(weights.meta.get("min_size", (1,)))
    return _preset_preprocessing(weights.transforms(), tuple(weights.meta["categories"]), smallest)


def timm_preprocessing(config: Mapping[str, Any], classes: Sequence[str] = ()) -> Preprocessing:
    """The preprocessing in timm's ``pretrained_cfg`` of a model, or ``timm.data.resolve_model_data_config(model)``.

    >>> config = {"input_size": (3, 224, 224), "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    >>> timm_preprocessing(config).resize
    248
    """
    size, fixed = min(config["input_size"][1:]), bool(config.get("fixed_input_size"))
    squashes = config.get("crop_mode") == "squash"
    return Preprocessing(
        size,
        size if fixed else min(32, size),
        fixed or squashes,
        tuple(config["mean"]),
        tuple(config["std"]),
        tuple(classes),
        resize=None if squashes else int(size / config.get("crop_pct", 1)),
        interpolation=_mode(config.get("interpolation")),
    )


def processor_preprocessing(processor: Any, classes: Sequence[str] = ()) -> Preprocessing:
    """The preprocessing of an image processor of Hugging Face's transformers; one to BGR, as MobileViT's, has none."""
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(
            f"preprocessing={type(processor).__name__} makes BGR of a photo; expected RGB, or a method's own call "
            "with what the processor returns."
        )
    sides, cut = dict(processor.size), getattr(processor, "crop_size", None)
    shorter = sides.get("shortest_edge") or min(sides.get("height", 0), sides.get("width", 0)) or 0
    size, resize = shorter, None
    if getattr(processor, "do_center_crop", False) and cut is not None:
        size, resize = min(dict(cut).values()), shorter
    elif "shortest_edge" in sides and getattr(processor, "crop_pct", None) and shorter < 384:  # as ConvNeXt's does
        resize = int(shorter / processor.crop_pct)
    plain = not getattr(processor, "do_normalize", True)
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (tuple(processor.image_mean), tuple(processor.image_std))
    if not size:
        raise ValueError(
            f"preprocessing={type(processor).__name__} says no size that every photo gets; expected mean=, "
            "std= and size=."
        )
    mode = "bicubic" if getattr(processor, "resample", 2) in (1, 3) else "bilinear"  # Pillow's numbers
    return Preprocessing(size, size, True, mean, std, tuple(classes), resize=resize, interpolation=mode)


def as_preprocessing(preprocessing: object, model: Module) -> Preprocessing:
    """The preprocessing of a description, as :func:`saliency.explain` takes it. ``ValueError`` for anything else."""
    found: Any = preprocessing
    if isinstance(found, Preprocessing):
        return found
    if isinstance(found, Mapping) and {"input_size", "mean", "std"} <= found.keys():
        return timm_preprocessing(found, class_names(model))
    if hasattr(found, "transforms") and hasattr(found, "meta"):
        return weights_preprocessing(found)
    if hasattr(found, "image_mean") and hasattr(found, "size"):
        return processor_preprocessing(found, class_names(model))
    if all(hasattr(found, name) for name in ("mean", "std", "resize_size")):
        return _preset_preprocessing(found, class_names(model))
    raise ValueError(
        f"preprocessing={shown(preprocessing)} says nothing of a size, a mean and a deviation; expected "
        "a Preprocessing, torchvision's weights or transforms, timm's pretrained_cfg, an image processor of "
        "transformers, or mean=, std= and size=."
    )


def preprocessing_of(model: Module) -> tuple[Preprocessing, str] | None:
    """The preprocessing of a network, and its source; None where there is none.

    timm's networks say it themselves. torchvision's do not: their kind and number of parameters tell which weights
    they can hold; where there are several, it is the default ones whose transform counts.

    >>> from torchvision.models import resnet18
    >>> preprocessing_of(resnet18())[1]
    "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and {"input_size", "mean", "std"} <= config.keys():
        return timm_preprocessing(
            config, class_names(model)
        ), f"timm's {config.get('architecture') or 'pretrained_cfg'}"
    if type(model).__module__.startswith("saliency.scenes"):
        from saliency.scenes.generator import CLASSES, SIZE

        return Preprocessing(SIZE, 16, False, (0.0,) * 3, (1.0,) * 3, CLASSES, multi_label=True), "the embedded scenes"
    if type(model).__module__.startswith("torchvision.models."):
        for weights in _weights_of(model):
            return weights_preprocessing(weights), f"torchvision's {weights}"
    return None


def class_names(model: Module) -> tuple[str, ...]:
    """The names of the classes that a network of transformers or timm knows, or none."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, Mapping):
        return tuple(str(labels[index]) for index in sorted(labels))
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        return ()
    if config.get("label_names"):
        return tuple(config["label_names"])
    if getattr(model, "num_classes", None) == config.get("num_classes") == IMAGENET:
        return imagenet_names()
    return ()


def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, as torchvision has them."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _weights_of(model: Module) -> Iterator[Any]:
    """The weights of torchvision that have as many parameters as the network, its head aside; default ones first."""
    from torchvision import models

    sizes = [parameter for name, parameter in model.named_parameters() if not name.startswith(("aux1", "aux2"))]
    head = sizes[-2:] if sizes[-1].ndim == 1 else sizes[-1:]
    per_class = sum(parameter.numel() for parameter in head) // len(sizes[-1])
    body = sum(parameter.numel() for parameter in sizes) - per_class * len(sizes[-1])
    for name in models.list_models():
        if models.get_model_builder(name).__module__ == type(model).__module__:
            table = models.get_model_weights(name)
            for weights in dict.fromkeys([*([table["DEFAULT"]] if len(table) else []), *table]):
                classes = len(weights.meta.get("categories", ()))
                if weights.meta.get("num_params") == body + per_class * classes and hasattr(
                    weights.transforms(), "mean"
                ):
                    yield weights


def _preset_preprocessing(transforms: Any, classes: Sequence[str], smallest: int = 1) -> Preprocessing:
    """The preprocessing of a torchvision preset: of classification, with a centre crop, or of segmentation."""
    cut = getattr(transforms, "crop_size", None)
    resize = transforms.resize_size[0]
    size = resize if cut is None else cut[0]
    return Preprocessing(
        size,
        smallest,
        smallest == size,
        tuple(transforms.mean),
        tuple(transforms.std),
        tuple(classes),
        resize=None if cut is None else resize,
        interpolation=_mode(transforms.interpolation.value),
    )


def _mode(name: object) -> str:
    """The interpolation of PyTorch that is closest to the named one."""
    return "bicubic" if name in ("bicubic", "lanczos") else "bilinear"
