"""The page for those who come from another library: every row runs, and both of its cells give what it says."""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import saliency
from benchmarks.agreement import DISTRIBUTIONS, NOTES, PAGE, PEERS, ROWS, difference, measure, ours, scaled, sections
from benchmarks.agreement import theirs as of_peer

TOLERANCES = {"zennit": 1e-4}  # it adds its epsilon twice
# Where a library keeps what it is imported for.
PUBLIC = {
    "TorchRay": [
        *(f"torchray.{name}" for name in ("attribution", "utils", "benchmark", "benchmark.datasets")),
        *(f"torchray.benchmark.{name}" for name in ("logging", "models", "pointing_game", "server")),
    ],
    "Captum": ["captum.attr"],
    "pytorch-grad-cam": [
        *("pytorch_grad_cam", "pytorch_grad_cam.metrics"),
        *("pytorch_grad_cam.utils.model_targets", "pytorch_grad_cam.utils.image"),
    ],
    "torch-cam": ["torchcam.methods", "torchcam.metrics", "torchcam.utils"],
    "zennit": [f"zennit.{name}" for name in ("attribution", "canonizers", "composites", "image", "rules")],
}


def _id(row):
    return f"{row.peer}-{row.theirs[:60]}"


def test_every_library_has_its_rows():
    assert {row.peer for row in ROWS} == set(PEERS) == set(DISTRIBUTIONS) == set(PUBLIC)
    assert PAGE.count("\n| `") == len(ROWS)
    assert all(row.kind in NOTES for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_our_cell_of_a_row_runs(row):
    ours(row)


@pytest.mark.parity
@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_both_cells_of_a_row_give_what_it_says(row):
    for place in PEERS[row.peer]:
        pytest.importorskip(place.partition(".")[0])
    own, other = ours(row), of_peer(row)
    if not row.note:
        assert difference(own, other) <= TOLERANCES.get(row.peer, 1e-5)
    elif row.kind == "scaled":
        assert difference(scaled(own), scaled(other.reshape(own.shape))) <= 1e-3
    elif row.kind == "differs":
        assert difference(scaled(own), scaled(other.reshape(own.shape))) > 1e-3
    else:
        assert own.numel() == other.numel()


@pytest.mark.parity
def test_what_is_measured_of_a_library_is_what_its_rows_say():
    for found in measure():
        rows = [row for row in ROWS if row.peer == found.peer]
        assert sum(found.rows.values()) == len(rows)
        assert found.errors[""] <= TOLERANCES.get(found.peer, 1e-5)
        assert found.errors["scaled"] <= 1e-3


def _public(module: ModuleType):
    """What a module, or a package with its modules, offers: ``__all__``, else the functions and classes of its own."""
    modules = [module]
    if hasattr(module, "__path__"):
        infos = pkgutil.iter_modules(module.__path__, f"{module.__name__}.")
        modules += [importlib.import_module(info.name) for info in infos if not info.ispkg]
    for each in modules:
        own = [
            name
            for name, value in vars(each).items()
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == each.__name__
        ]
        yield from (name for name in getattr(each, "__all__", own) if not name.startswith("_"))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PUBLIC)
def test_what_is_public_in_a_library_has_a_row_or_is_named_below_the_table(peer):
    for place in PUBLIC[peer]:
        pytest.importorskip(place.partition(".")[0])
    public = {name for place in PUBLIC[peer] for name in _public(importlib.import_module(place))}
    below = sections()[peer].split("\nWithout a row:\n")[1]
    in_rows = set(re.findall(r"\w+", " ".join(row.theirs for row in ROWS if row.peer == peer)))
    named = {word for text in re.findall(r"`([^`]+)`", below) for word in re.findall(r"\w+", text)}
    assert public - in_rows - named == set()
    assert len(public & in_rows) >= 10


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["PointingGame", "PointingGameBenchmark"])
def test_the_pointing_game_has_the_methods_of_torchrays(name):
    pytest.importorskip("torchray")
    peer = importlib.import_module("torchray.benchmark.pointing_game")
    made = [getattr(module, name).__new__(getattr(module, name)) for module in (peer, saliency.torchray)]
    methods = [{each for each in dir(type(one)) if not each.startswith("_")} for one in made]
    assert methods[0] <= methods[1]
    below = sections()["TorchRay"].split("\nWithout a row:\n")[1]
    assert all(f"`{each}`" in below for each in methods[0])
