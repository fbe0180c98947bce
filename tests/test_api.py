"""The public names: complete, documented, typed, and the same in the table, the package, README and documentation."""

import inspect
import re
import typing
from pathlib import Path

import pytest

import saliency
from saliency.evaluation.metrics import METRICS

ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in saliency.__all__ if inspect.isfunction(getattr(saliency, name))]
CLASSES = [name for name in saliency.__all__ if inspect.isclass(getattr(saliency, name))]


def test_all_is_complete_and_sorted():
    """CONSTANTS, Classes and functions, each in alphabetical order."""
    public = {
        name for name, value in vars(saliency).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(saliency.__all__) == public
    assert len(set(saliency.__all__)) == len(saliency.__all__)
    assert saliency.__all__ == sorted(
        saliency.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


# Where the function of that name returns something else, as in TorchRay: what gives a map per target.
MAPS_OF = {"rise": "rise_class", "extremal_perturbation": "extremal_perturbation_map"}


@pytest.mark.parametrize("name", saliency.METHODS)
def test_every_method_is_exported_under_its_name(name):
    method = saliency.METHODS[name]
    assert method.function.__name__ == MAPS_OF.get(name, name)
    assert getattr(saliency, method.function.__name__) is method.function
    assert {name, method.function.__name__} <= set(saliency.__all__)
    assert re.search(r"\b(19|20)\d\d$", method.paper)


@pytest.mark.parametrize("name", saliency.METHODS)
def test_methods_begin_with_the_same_arguments(name):
    parameters = inspect.signature(saliency.METHODS[name].function).parameters
    assert list(parameters)[:3] == ["model", "input", "target"]
    if name != "rise":  # it masks the input, and nothing else
        assert list(parameters)[3] == "saliency_layer"
        assert parameters["saliency_layer"].default in ("", None)


def test_the_options_of_a_method_are_its_own_and_those_that_it_hands_on():
    assert {"n_samples", "seed"}.isdisjoint(saliency.METHODS["grad_cam"].options)
    assert {"saliency_layer", "smooth", "layout", "debug"} <= saliency.METHODS["grad_cam"].options
    assert {"seed", "num_masks", "progress"} <= saliency.METHODS["rise"].options
    assert "saliency_layer" not in saliency.METHODS["rise"].options
    assert {"areas", "max_iter", "variant", "progress"} <= saliency.METHODS["extremal_perturbation"].options


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES)
def test_public_names_are_documented(name):
    text = inspect.getdoc(getattr(saliency, name)) or ""
    first = text.strip().splitlines()[0] if text.strip() else ""
    assert re.search(r"[.:]$", first), first
    # What dataclasses and named tuples make up is no documentation.
    assert not first.startswith(f"{name}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_typed(name):
    signature = inspect.signature(getattr(saliency, name))
    untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert untyped == []
    assert signature.return_annotation is not inspect.Signature.empty
    assert typing.get_type_hints(getattr(saliency, name))


def test_the_drivers_parameters_are_torchrays():
    """Names, order and defaults of TorchRay's ``saliency``; what is new can only be given by name."""
    parameters = list(inspect.signature(saliency.saliency).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in positional} == {
        "model": inspect.Parameter.empty,
        "input": inspect.Parameter.empty,
        "target": inspect.Parameter.empty,
        "saliency_layer": "",
        "resize": False,
        "resize_mode": "bilinear",
        "smooth": 0,
        "context_builder": saliency.NullContext,
        "gradient_to_saliency": saliency.gradient_to_saliency,
        "get_backward_gradient": saliency.get_backward_gradient,
        "debug": False,
    }
    assert [p.name for p in positional] == [
        *("model", "input", "target", "saliency_layer", "resize", "resize_mode", "smooth"),
        *("context_builder", "gradient_to_saliency", "get_backward_gradient", "debug"),
    ]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters[len(positional) :])


def names_in_table(page, header, column):
    """The names in a column of the table with that header."""
    table = (ROOT / page).read_text(encoding="utf-8").split(f"\n{header}\n")[1].split("\n\n")[0]
    return [name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[column])]


def test_the_readme_and_the_documentation_list_the_methods():
    assert sorted(names_in_table("README.md", "| they show | methods |", 2)) == sorted(saliency.METHODS)
    methods = names_in_table("docs/methods.md", "| method | what it shows | paper |", 1)
    assert sorted(methods) == sorted(saliency.METHODS)


def test_the_documentation_lists_the_metrics():
    assert names_in_table("docs/benchmarks.md", "| metric | what it says | paper |", 1) == list(METRICS)


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", saliency.__version__)
