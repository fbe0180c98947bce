"""One photo through one network: the forward pass that methods share, the layer, the targets, and every map."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.call import make_call
from saliency.engine.checks import describe, shown
from saliency.engine.outputs import main_output
from saliency.engine.search import found_layer
from saliency.engine.shared import SharedForward
from saliency.engine.state import evaluating, model_device, model_dtype, modules_of
from saliency.engine.targets import Target
from saliency.explaining.choosing import POINTS_AT_ONCE, Asked, layer_name
from saliency.explaining.columns import Column
from saliency.explaining.explanation import Explanation
from saliency.explaining.photos import Photo
from saliency.explaining.targeting import Chosen, choose_target
from saliency.networks.preprocessing import Preprocessing
from saliency.rules import shared_forward

# Of the name of a method a context, which gives the option that shows how far it is, if it takes long.
Watched: TypeAlias = Callable[[str], AbstractContextManager[Mapping[str, object]]]


class Network(NamedTuple):
    """A network, the preprocessing that it expects, and of what that is, if it was not asked for.

    If it is ``named``, the classes of the preprocessing are meant for this very network.
    """

    model: Module
    preprocessing: Preprocessing
    source: str = ""
    named: bool = False

    @property
    def why(self) -> str:
        """The reason for the preprocessing."""
        return f"preprocessing: {f'that of {self.source}' if self.source else 'as asked'}"


def explain_photo(
    network: Network,
    photo: Photo,
    target: object,
    asked: Sequence[Asked],
    watched: Watched = lambda name: nullcontext({}),
) -> Explanation:
    """The maps of a photo. A method that raises ``ValueError`` is left out if others remain: see ``refused``.

    If none is left, the first error is raised.
    """
    model, wanted = network.model, network.preprocessing
    input = photo.input.to(model_device(model), model_dtype(model, photo.input))
    found = _search(model, input, target) if any(column.searches for column in asked) else None
    shared = _share(model, input, asked, found)
    output = _run(model, input) if shared is None else shared.output
    _check_output(output, network, photo)
    chosen = choose_target(target, output, wanted)
    columns, refused = list[Column](), dict[str, ValueError]()
    for column in asked:
        maps = _attempt(model, input, chosen, column, shared, watched)
        if isinstance(maps, ValueError):
            refused[column.name] = maps
        else:
            columns.append(Column(column.name, column.method, _layer(column, found), maps, photo.picture))
    if not columns:
        raise next(iter(refused.values()))
    return Explanation(
        photo.name,
        tuple(columns),
        chosen.target,
        chosen.scores,
        chosen.predicted,
        input,
        wanted,
        (network.why, chosen.why, *_why_layer(found)),
        {name: str(error) for name, error in refused.items()},
    )


def _attempt(
    model: Module, input: Tensor, chosen: Chosen, column: Asked, shared: SharedForward | None, watched: Watched
) -> Tensor | ValueError:
    """The maps (1, K, h, w) of a method, or the reason why there are none: an error, another type of result, or NaN."""
    options: dict[str, object] = {} if column.layer is None else {"saliency_layer": column.layer}
    if column.row is not None and "path" in column.row.sets:
        options["internal_batch_size"] = POINTS_AT_ONCE
    if column.shares and shared is not None:
        options["shared"] = shared
    try:
        with watched(column.method) as progress:
            maps = column.function(model, input, chosen.target, **{**options, **progress, **column.options})
    except ValueError as error:
        return error
    expected = f"expected maps of shape (1, {len(chosen.scores)}, h, w)"
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != (1, len(chosen.scores)) or not maps.numel():
        return ValueError(f"method={column.name!r} gave {describe(maps)}; {expected}.")
    if maps.dtype == torch.bool or maps.is_complex():
        return ValueError(f"method={column.name!r} gave {describe(maps)} of dtype {maps.dtype}; expected real numbers.")
    if not maps.isfinite().all():
        return ValueError(f"method={column.name!r} gave a map that holds NaN or infinity; expected finite numbers.")
    return maps.detach()


def _layer(column: Asked, found: str | None) -> str | None:
    """The layer of a column, given or found, or the input; None where it is not a single layer."""
    if column.searches:
        return found
    return layer_name(column.default_layer if column.layer is None else column.layer)


def _search(model: Module, input: Tensor, target: object) -> str | None:
    """The layer that is found where none is named; remembered for the next photo of the same size."""
    like: Target = target if callable(target) or isinstance(target, (tuple, Tensor)) else 0  # any class is like another
    try:
        return found_layer(make_call(model, input, None, None), like)[0]
    except ValueError:  # the methods that need it say so
        return None


def _share(model: Module, input: Tensor, asked: Sequence[Asked], found: str | None) -> SharedForward | None:
    """The forward pass of the methods that can share it, if there are several."""
    sharers = [column for column in asked if column.shares]
    if len(sharers) < 2:
        return None
    layers = dict.fromkeys(["", *(column.layer or column.default_layer or found or "" for column in sharers)])
    try:
        return shared_forward(model, input, [*layers])
    except ValueError:  # then each runs on its own, and reports its error
        return None


def _run(model: Module, input: Tensor) -> object:
    with evaluating(model, modules_of(model)), torch.no_grad():
        return model(input)


def _check_output(output: object, network: Network, photo: Photo) -> None:
    scores, classes = main_output(output), network.preprocessing.classes
    if isinstance(scores, Tensor) and not scores.isfinite().all():
        raise ValueError(f"weights give NaN or infinite scores for photo={photo.name!r}; expected finite numbers.")
    if network.named and isinstance(scores, Tensor) and scores.ndim > 1 and scores.shape[1] != len(classes):
        raise ValueError(f"classes={shown(classes)} does not fit {scores.shape[1]} scores; expected a name for each.")


def _why_layer(found: str | None) -> Sequence[str]:
    if found is None:
        return ()
    return (f"layer: {found!r}, the last one that returns a map on which the score depends, where none is named",)
