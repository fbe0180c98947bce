"""A network of the user's own, from a function in a module of theirs."""

import importlib
import sys
from pathlib import Path
from typing import Any

from torch.nn import Module

from saliency.engine.checks import check_type, shown
from saliency.networks.preprocessing import Recipe

# What most classifiers expect. The classes have no names: they go by their numbers.
IMAGENET_LIKE = Recipe(224, 1, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ())


def import_network(name: str) -> tuple[Module, Recipe]:
    """Return the network that ``'my_module:build'`` makes, in evaluation mode, and what it expects of a photo.

    The module may lie in the current folder. ``build()`` returns the network, or the network and its :class:`Recipe`;
    without one it is 224 pixels, ImageNet's mean and deviation, and a softmax over classes without names.
    Raises ``ValueError`` where there is no such module or function, or where it returns anything else; what the
    module and the function themselves raise is passed on.

    >>> import_network("torch.nn:Identity")[1].size
    224
    """
    build = _find(name)
    made = build()
    if isinstance(made, Module):
        return made.eval(), IMAGENET_LIKE
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Module) and isinstance(made[1], Recipe):
        return made[0].eval(), made[1]
    raise ValueError(
        f"import={name!r} returned what is of type {type(made).__name__}; a torch.nn.Module, or one with its Recipe, "
        "is accepted."
    )


def _find(name: str) -> Any:
    """The function of the module."""
    check_type("import", name, str, "'my_module:build'")
    module_name, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *function.split(".")]):
        raise ValueError(f"import={shown(name)} names no function of a module; 'my_module:build' is accepted.")
    here = str(Path.cwd())
    if here not in sys.path:  # and it stays there: the network may import more while it runs
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"import={name!r} cannot be imported ({error}); a module in {here} or installed is accepted."
        ) from error
    for part in function.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"import={name!r} is not in {module_name}: it has no {part!r}; a function of it is accepted."
            )
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"import={name!r} is of type {type(found).__name__}; a function that returns a network is accepted."
        )
    return found
