"""Careless calls of methods, helpers, metrics and the command: an answer, or a ValueError that names the argument.

What the model itself refuses, such as another number of channels, is its own error and left out here.

``SALIENCY_FUZZ=20000 python -m pytest tests/users/test_fuzz.py -n auto`` tries more of them.
"""

import os
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import saliency
from saliency import METHODS
from saliency.cli import main
from tests.users.test_helpers import ALSO, CALLS, WRONG, refusal

EXAMPLES = int(os.environ.get("SALIENCY_FUZZ", "12"))  # of every method
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="SALIENCY_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


class Small(nn.Module):
    """Two convolutions, of which the first is called by its name, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.more = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.more(self.act(self.norm(self.conv(x)))).relu().mean((2, 3)))


def _model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


# Built anew for every example, by name, so that a failing one can be read.
MODELS = {
    "a network": _model,
    "one in training mode": lambda: _model().train(),
    "a class": lambda: Small,
    "a function": lambda: torch.relu,
    "None": lambda: None,
    "no parameters": lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}
INPUTS = {
    "two images": lambda: torch.rand(2, 3, 8, 8),
    "one image": lambda: torch.rand(1, 3, 8, 6),
    "no batch axis": lambda: torch.rand(3, 8, 8),
    "no images": lambda: torch.rand(0, 3, 8, 8),
    "uint8": lambda: torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    "NumPy": lambda: np.zeros((1, 3, 8, 8), np.float32),
    "a list": lambda: [[1.0, 2.0]],
    "None": lambda: None,
    "text": lambda: "image.png",
    "tuple": lambda: (torch.rand(1, 3, 8, 8),),
    "NaN": lambda: torch.full((1, 3, 8, 8), float("nan")),
}
TARGETS = {
    "class": lambda: 1,
    "one each": lambda: [0, 2],
    "columns": lambda: torch.tensor([[0, 1], [2, 1]]),
    "out of range": lambda: 7,
    "negative": lambda: -1,
    "None": lambda: None,
    "float": lambda: 1.0,
    "bool": lambda: True,
    "text": lambda: "cat",
    "a dict": lambda: {"class": 1},
    "NumPy int": lambda: np.int64(1),
    "NumPy array": lambda: np.array([1]),
    "empty": list,
    "tuple": lambda: (1,),
    "one-hot ints": lambda: torch.tensor([[0, 1, 0]]),
    "gradient": lambda: torch.ones(1, 3),
    "function": lambda: lambda output: output[:, 0],
    "function that returns None": lambda: lambda output: None,
}
VALUES = {
    "default": None,  # the option is left out
    "None": lambda: None,
    "0": lambda: 0,
    "1": lambda: 1,
    "3": lambda: 3,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "True": lambda: True,
    "text": lambda: "more",
    "unknown text": lambda: "nothing of that name",
    "empty text": lambda: "",
    "list": lambda: ["conv", "more"],
    "empty list": list,
    "pair": lambda: (4, 5),
    "tensor": lambda: torch.rand(1, 3, 8, 8),
    "index tensor": lambda: torch.tensor([1]),
    "array": lambda: np.ones(2),
    "dict": lambda: {"a": 1},
    "class": lambda: saliency.NullContext,
    "function": lambda: lambda *args, **kwargs: 5,
}
# What reaches the model's own forward is refused by it, in its own words.
THE_MODELS_OWN = {"additional_forward_args", "forward_kwargs"}
# Left small where the default means minutes.
QUICK = {"num_masks": 4, "max_iter": 2, "n_steps": 2, "n_samples": 2, "num_samples": 2}


def explained(name, model, input, target, options):
    """Call a method; the error of a call that was refused."""
    quick = {option: value for option, value in QUICK.items() if option in METHODS[name].options}
    try:
        METHODS[name].function(model, input, target, **(quick | options))
    except ValueError as error:
        return error
    except TypeError as error:  # of a class that is called as if it were a function
        if "NullContext() takes no arguments" not in str(error):
            raise
    return None


@pytest.mark.filterwarnings("ignore")  # a warning is an answer
@pytest.mark.parametrize("name", METHODS)
@fuzzed
@given(data=st.data())
def test_a_careless_call_gives_maps_or_a_value_error_that_names_an_argument(name, data):
    """One argument of a call is anything at all, or two are."""
    spoilt = data.draw(st.sets(st.sampled_from(["model", "input", "target", "options"]), min_size=1, max_size=2))
    chosen = {
        part: data.draw(st.sampled_from(sorted(table))) if part in spoilt else next(iter(table))
        for part, table in (("model", MODELS), ("input", INPUTS), ("target", TARGETS))
    }
    options = {}
    if "options" in spoilt:
        option = data.draw(st.sampled_from(sorted(METHODS[name].options - THE_MODELS_OWN)))
        value = data.draw(st.sampled_from(sorted(VALUES)))
        options = {} if VALUES[value] is None else {option: VALUES[value]()}
    model, input, target = (
        table[chosen[part]]() for part, table in zip(chosen, (MODELS, INPUTS, TARGETS), strict=True)
    )
    error = explained(name, model, input, target, options)
    if error is not None:
        arguments = {"model", "input", "target", *METHODS[name].options}
        message = str(error)
        assert set(re.findall(r"\b(\w+)=", message)) & arguments, message
        assert len(message) < 2000, "a message must not print the values of a tensor"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "arguments"), CALLS, ids=[function.__name__ for function, _ in CALLS])
@fuzzed
@given(data=st.data())
def test_helpers_and_metrics_given_several_wrong_arguments(function, arguments, data):
    spoilt = data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=3))
    wrong = {name: data.draw(st.sampled_from(range(len(WRONG)))) for name in sorted(spoilt)}
    text = refusal(function, arguments | {name: WRONG[place] for name, place in wrong.items()})
    names = [named for name in spoilt for named in (name, *ALSO.get(name, ()))]
    assert text is None or text.startswith(tuple(f"{name}=" for name in names)), text


# What may follow each option of the command; the first is as it should be.
WORDS = {
    "--arch": ["scenes", "nothing of that name", "", "\x1b[2J"],
    "--scenes": ["1", "0", "-1", "1.5", "many", ""],
    "--size": ["32", "0", "-3", "1e9", "x"],
    "--method": ["gradient", "grad_cam", "nothing", "", "all of them"],
    "--target": ["top1", "0", "-1", "99999", "top0", "cat", "", "top"],
    "--layer": ["layer4", "", "nothing", "fc", "layer4."],
    "--weights": ["DEFAULT", "missing.pt", "", ".", "a\0b"],
    "--option": ["smooth=0.02", "smooth", "smooth=x", "=", "nothing=1", "reduction=None", "resize=7", "smooth=nan"],
    "--out": ["out", "a file", "a\0b", "out/" + "x" * 300],
    "--unknown": ["1"],
}


@pytest.mark.filterwarnings("ignore")
@fuzzed
@given(words=st.dictionaries(st.sampled_from(sorted(WORDS)), st.integers(0, 7), max_size=4), verb=st.integers(0, 9))
def test_the_command_given_anything_ends_with_maps_or_one_line(tmp_path_factory, words, verb):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a file").touch()
    chosen = {"--arch": 0, "--scenes": 0, "--size": 0, "--method": 0, "--out": 0} | words
    arguments = [part for name, at in chosen.items() for part in (name, WORDS[name][at % len(WORDS[name])])]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        patch.chdir(folder)
        code = main([["explain", "layers", "nothing"][max(verb - 7, 0)], *arguments])
    assert code in (0, 2)
    assert code == 0 or re.fullmatch(r"saliency: error: ([^\n]+=[^\n]+|.*see saliency .*)\n", said.getvalue())


ELEMENTWISE = {"array": np.ones(2), "texts": np.array(["mean", "signed"]), "tensor": torch.rand(3)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", ELEMENTWISE)
@pytest.mark.parametrize("name", METHODS)
def test_values_that_compare_elementwise_are_named(name, value):
    for option in METHODS[name].options - THE_MODELS_OWN:
        error = explained(name, _model(), INPUTS["two images"](), 1, {option: ELEMENTWISE[value]})
        assert error is None or f"{option.removeprefix('layer_')}=" in str(error), error


@pytest.mark.parametrize("name", ["grad_cam", "score_cam", "excitation_backprop"])
def test_a_layout_that_returns_no_tensor_is_named(name):
    for returned in (None, 5, [1.0]):
        error = explained(name, _model(), INPUTS["two images"](), 1, {"layout": lambda x, y=returned: y})
        assert str(error).startswith("layout=<function")
