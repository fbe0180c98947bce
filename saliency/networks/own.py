"""The user's own module: its functions, and a network that one of them returns."""

import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from torch.nn import Module

from saliency.engine.checks import check_type, shown
from saliency.networks.preprocessing import Preprocessing

# What most classifiers expect. The classes have no names: they go by their numbers.
IMAGENET_LIKE = Preprocessing(224, 1, False, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ())


def import_network(name: str) -> tuple[Module, Preprocessing]:
    """Return the network that ``'my_module:build'`` makes, in evaluation mode, and what it expects of a photo.

    The module may lie in the current folder. ``build()`` returns the network, or that and its :class:`Preprocessing`;
    without one it is 224 pixels, ImageNet's mean and deviation, and a softmax over classes without names.
    Raises ``ValueError`` where there is no such module or function, or where it returns anything else; what the
    module and the function themselves raise is passed on.

    >>> import_network("torch.nn:Identity")[1].size
    224
    """
    made = find_function("import", name, "my_module:build", "a function that returns a network")()
    if isinstance(made, Module):
        return made.eval(), IMAGENET_LIKE
    if (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], Module)
        and isinstance(made[1], Preprocessing)
    ):
        return made[0].eval(), made[1]
    raise ValueError(
        f"import={name!r} returned an object of type {type(made).__name__}; expected a torch.nn.Module, "
        "or one with its Preprocessing."
    )


def find_function(argument: str, name: str, example: str, expected: str) -> Callable[..., object]:
    """Return what ``'my_module:function'`` names; the module may lie in the current folder.

    ``argument``, an ``example`` and what is ``expected`` appear in the ``ValueError`` that is raised where there is
    no such module or function.

    >>> find_function("method", "math:hypot", "my_module:method", "a function")(3, 4)
    5.0
    """
    check_type(argument, name, str, repr(example))
    module_name, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *function.split(".")]):
        raise ValueError(f"{argument}={shown(name)} does not name a function of a module; expected {example!r}.")
    found: object = import_module(argument, module_name, name)
    for part in function.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{argument}={name!r} is not in {module_name}: it has no {part!r}; {hint}expected a function of it."
            )
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{argument}={name!r} is of type {type(found).__name__}; expected {expected}.")
    return found


def import_module(argument: str, module_name: str, given: str | None = None) -> ModuleType:
    """Import a module of the current folder, or one that is installed. ``ValueError`` where there is none.

    ``given`` is what the user wrote, for the error. What the module itself raises is passed on.
    """
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"{argument}={shown(given or module_name)} is not a module's name; expected 'my_module'.")
    here = str(Path.cwd())
    if here not in sys.path:  # and it stays there: the module may import more while it runs
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{argument}={given or module_name!r} cannot be imported ({error}); "
            f"expected a module in {here} or installed."
        ) from error
