"""``explain`` and ``compare``: a photo in, pictures out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Conv1d, Conv2d, Conv3d, Module

from saliency.engine.checks import check_count, check_flag, check_model, check_type, is_number, shown
from saliency.engine.layers import unwrap
from saliency.explaining.choosing import LayersOf, Methods, by_name, check_layers, choose
from saliency.explaining.explanation import Explanation
from saliency.explaining.photos import prepare
from saliency.explaining.running import Network, explain_photo
from saliency.networks.preprocessing import Preprocessing
from saliency.networks.published import as_preprocessing, class_names, preprocessing_of

Numbers = float | Sequence[float] | Tensor | NDArray[np.floating]


def explain(
    model: Module,
    image: object,
    target: object = None,
    methods: Methods = ("grad_cam",),
    saliency_layer: LayersOf = None,
    *,
    preprocessing: object = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    crop: bool | None = None,
    **options: object,
) -> Explanation:
    """Explain what a network sees in a photo: from a path to a picture.

    ``image``: a path, a picture of Pillow, an array or a tensor, grey or RGB, or a tensor that is normalised already.
    Preprocessed as torchvision's and timm's networks know, for others as ``preprocessing`` says (a
    :class:`Preprocessing`, torchvision's weights, a processor), or ``mean``, ``std``, ``size``; ``crop=False``, the
    default with a ``size``: the whole photo. ``target``: a class index or name, ``'topK'``, a list of those, or as
    methods take it; None is the highest score. ``methods``: names or functions, a dict of functions, or ``'all'``.
    ``saliency_layer``: of all, or by method; a list gives a column each. ``options`` reach the methods that have them.
    A method that refuses is left out, with a warning, if others remain. Raises ``ValueError``.

    >>> from saliency.scenes import make_scene, scene_network
    >>> found = explain(scene_network(), make_scene(1).image, methods=["grad_cam", "gradient"])
    >>> found.layer, found.maps["grad_cam"].shape
    ({'grad_cam': 'layer4', 'gradient': ''}, torch.Size([1, 1, 16, 16]))
    """
    check_model(model)
    asked = choose(methods, by_name(model, saliency_layer), options)
    check_layers(model, asked)
    network = network_of(model, preprocessing, mean, std, size, classes)
    if crop is not None:
        check_flag("crop", crop)
    photo = prepare(image, network.preprocessing, size is None if crop is None else crop)
    found = explain_photo(network, photo, target, asked)
    for name, problem in found.refused.items():
        warnings.warn(f"{name} is left out: {problem}", stacklevel=2)
    return found


def compare(
    models: Module | Sequence[Module] | Mapping[str, Module],
    image: object,
    target: object = None,
    methods: Methods = ("grad_cam",),
    saliency_layer: LayersOf = None,
    **options: object,
) -> Explanation:
    """Explain a photo by several methods, layers or networks side by side: one explanation, a column for each.

    Everything else as for :func:`explain`. A target that is None or ``'topK'`` is chosen by the first network, and the
    others explain the classes of the same names, or of the same indices where they know no names.

    >>> from saliency.scenes import make_scene, scene_network
    >>> networks = {"cnn": scene_network(), "vit": scene_network("vit")}
    >>> list(compare(networks, make_scene(1).image, methods=["gradient", "rise"], num_masks=10).maps)
    ['cnn gradient', 'cnn rise', 'vit gradient', 'vit rise']
    """
    if isinstance(models, Module):
        return explain(models, image, target, methods, saliency_layer, **options)  # type: ignore[arg-type]
    check_type("models", models, (list, tuple, Mapping), "a network, a list of them, or a dict of them by names")
    named = models if isinstance(models, Mapping) else _numbered(models)
    found: dict[str, Explanation] = {}
    for name, model in named.items():
        try:
            found[name] = explain(model, image, target, methods, saliency_layer, **options)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        target = _same_target(target, found[name])
    if not found:
        raise ValueError(f"models={shown(models)} holds no network; expected one or more.")
    columns = [column._replace(name=f"{name} {column.name}") for name, each in found.items() for column in each.columns]
    why = [f"{name}: {line}" for name, each in found.items() for line in each.why]
    refused = {f"{name} {method}": text for name, each in found.items() for method, text in each.refused.items()}
    return replace(next(iter(found.values())), columns=tuple(columns), why=tuple(why), refused=refused)


def network_of(
    model: Module,
    preprocessing: object = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Network:
    """The network and its preprocessing, as given, or else its own; ``ValueError`` where neither is known."""
    known = (
        (as_preprocessing(preprocessing, model), "") if preprocessing is not None else preprocessing_of(unwrap(model))
    )
    if size is not None:
        check_count("size", size)
    if known is None:
        missing = {"mean": mean, "std": std, "size": size}
        if size is None or any(value is None for value in missing.values()):
            raise ValueError(
                f"preprocessing=None is not known of model={type(model).__name__}; expected mean=, std= and size=, or "
                "preprocessing=, a Preprocessing, torchvision's weights, timm's pretrained_cfg or a processor of "
                "transformers."
            )
        known = Preprocessing(size, 1, False, (), (), class_names(unwrap(model))), ""
    preprocessing, source = known
    channels = channels_of(model)
    if source and channels < len(preprocessing.mean):  # a kind of network that is known, built for grey images
        preprocessing = preprocessing._replace(mean=(), std=())
    preprocessing = normalising(preprocessing, mean, std, channels)
    if classes is not None:
        check_type("classes", classes, (list, tuple), "a list of the classes' names")
        for name in classes:
            check_type("classes", name, str, "a list of the classes' names")
        preprocessing = preprocessing._replace(classes=tuple(classes))
    preprocessing = preprocessing if size is None else preprocessing.resized(size, f"model={type(model).__name__}")
    return Network(model, preprocessing, source, classes is not None)


def normalising(
    preprocessing: Preprocessing, mean: Numbers | None, std: Numbers | None, channels: int = 3
) -> Preprocessing:
    """The preprocessing with another mean or deviation: one a channel, or one for all. ``ValueError`` if they differ.

    ``channels`` counts where neither the preprocessing nor ``mean`` and ``std`` say how many there are.
    """
    mean, std = (values.tolist() if isinstance(values, (Tensor, np.ndarray)) else values for values in (mean, std))
    if any(is_number(value) and value <= 0 for value in (std if isinstance(std, (tuple, list)) else [std])):
        raise ValueError(f"std={shown(std)} is not a deviation; expected numbers > 0.")
    given = [len(values) for values in (mean, std) if isinstance(values, (tuple, list))]
    channels = len(preprocessing.mean) or max(given, default=channels)
    return preprocessing._replace(
        mean=_numbers("mean", mean, preprocessing.mean, channels), std=_numbers("std", std, preprocessing.std, channels)
    )


def channels_of(model: Module) -> int:
    """The channels of the images that a network takes: one if its first convolution takes one, else three.

    >>> channels_of(Conv2d(1, 8, 3))
    1
    """
    first = next((module for module in model.modules() if isinstance(module, (Conv1d, Conv2d, Conv3d))), None)
    return 1 if first is not None and first.in_channels == 1 else 3


def _numbers(argument: str, given: Numbers | None, known: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number a channel."""
    values = known if given is None else (given,) * channels if is_number(given) else given
    if not isinstance(values, (tuple, list)) or len(values) != channels or not all(map(is_number, values)):
        raise ValueError(f"{argument}={shown(given)} does not fit {channels} channels; expected a number for each.")
    return tuple(float(value) for value in values)


def _numbered(models: Sequence[Module]) -> dict[str, Module]:
    """Networks by their class names, numbered where two are the same."""
    named: dict[str, Module] = {}
    for model in models:
        check_model(model)
        name = type(model).__name__
        same = sum(other.partition(" ")[0] == name for other in named)
        named[f"{name} {same + 1}" if same else name] = model
    return named


def _same_target(target: object, found: Explanation) -> object:
    """The target of the next network: the classes that were chosen, by name where they have one."""
    if any(one.class_index is None for one in found.scores):
        return target
    known = bool(found.preprocessing.classes)
    return [one.name if known else one.class_index for one in found.scores]
