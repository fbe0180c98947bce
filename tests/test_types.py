"""What a user's type checker knows of a call: options by name, one map for a layer, a list for a list."""

import inspect
import re
import sys
from pathlib import Path
from typing import NoReturn, get_type_hints

import pytest
import torch
from typing_extensions import is_typeddict

import saliency
from saliency.engine.driver import saliency as driver
from saliency.engine.signatures import typed

ROOT = Path(__file__).parent.parent
# What a method passes on itself, or what says what `explain` has to do: no options of a method's caller.
FIXED = {"gradient_to_saliency", "context_builder", "get_backward_gradient", "path"}
FIXED |= {"attribute", "reduction", "as_grids", "masks_image"}

SETUP = """\
import torch
from torch import Tensor
from saliency import *
model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), torch.rand(1, 3, 8, 8)
names: list[str] = ["0"]
shown: bool = len(names) > 1
def count(done: int, total: int) -> None: ...
def second(output: Tensor) -> Tensor: return output[:, 1]
"""
# Calls, each with the type of its result.
RIGHT = {
    "grad_cam(model, x, 0)": "Tensor",
    "grad_cam(model, x, 0, None)": "Tensor",
    "grad_cam(model, x, 0, 'layer4', smooth=0.1)": "Tensor",
    "grad_cam(model, x, target=0, saliency_layer=model[0], resize=(8, 8), call='all')": "Tensor",
    "grad_cam(model, x, second, names)": "list[Tensor]",
    "grad_cam(model, x, (0, 1), ('0', model[0], None), resize=True)": "list[Tensor]",
    "grad_cam(model, x, [second], saliency_layer=['0', ''])": "list[Tensor]",
    "grad_cam(model, x, 0, '0', sum_channels, smooth=0.1)": "Tensor",
    "cam(model, x, 0, reduction=positive_sum, shared=None)": "Tensor",
    "eigen_cam(model, x)": "Any",
    "finer_cam(model, x, 0, names, 0.6, num_references=2)": "list[Tensor]",
    "smooth_grad_cam_plus_plus(model, x, 0, '0', n_samples=3, internal_batch_size=2)": "Tensor",
    "refine_cam(model, x, 0, names, resize=True)": "Tensor",
    "full_grad(model, x, 0, '', smooth=0.1)": "Tensor",
    "fused(layer_cam, 'max')(model, x, 0, '0')": "Tensor",
    "grad_cam(model, (x, x), 0)": "Any",
    "grad_cam(model, x, 0, debug=True)": "tuple[Tensor, Mapping[str, Probe]]",
    "grad_cam(model, x, 0, names, debug=True)": "Any",
    "grad_cam(model, x, 0, debug=shown)": "Any",
    "gradient(model, x, 0, gradient_to_saliency=max_channels, path=noise(3))": "Tensor",
    "guided_backprop(model, x, torch.tensor([[0, 1]]), context_builder=GuidedBackpropContext)": "Tensor",
    "guided_grad_cam(model, x, 0, names, reduction=None)": "list[Tensor]",
    "contrastive_excitation_backprop(model, x, 0, '0', None, '0')": "Tensor",
    "integrated_gradients(model, x, 0, '', 0.0, 10, internal_batch_size=4)": "Tensor",
    "integrated_gradients(model, x, 0, n_steps=10, return_convergence_delta=True)": "tuple[Tensor, Tensor]",
    "conductance(model, x, 0, names, n_steps=10)": "list[Tensor]",
    "score_cam(model, x, 0, '0', 4, progress=count)": "Tensor",
    "occlusion(model, x, 0, names, (3, 4, 4))": "list[Tensor]",
    "activation(model, x)": "Any",
    "rise_class(model, x, 0, num_masks=8)": "Tensor",
    "saliency(model, x, 0)": "Tensor",
    "saliency(model, x, 0, names, True, 'nearest', 0.1)": "list[Tensor]",
    "saliency(model, x, 0, '0', path=line(), return_convergence_delta=True)": "tuple[Tensor, Tensor]",
    "saliency(model, x, 0, debug=True)": "tuple[Tensor, Mapping[str, Probe]]",
    "smooth_grad(grad_cam, n_samples=3)(model, x, 0, names)": "list[Tensor]",
}
WRONG = (
    "grad_cam(model, x, 0, 'layer4', smoth=1)",
    "grad_cam(model, x, 0, 'layer4', smooth='much')",
    "grad_cam(model, x, 0, names, smoth=1)",
    "grad_cam(model, x, 0, 4)",
    "grad_cam(model, x)",
    "grad_cam(model, x, 0, gradient_to_saliency=max_channels)",
    "finer_cam(model, x, 0, get_backward_gradient=get_finer_gradient)",
    "cam(model, x, 0, context_builder=ShapleyContext)",
    "gradient(model, x, 0, n_steps=3)",
    "guided_backprop(model, x, 0, layuot='channels_last')",
    "integrated_gradients(model, x, 0, '', n_step=3)",
    "integrated_gradients(model, x, 0, '', path=line())",
    "activation(model, x, reducton=None)",
    "score_cam(model, x, 0, '0', perturbation_per_eval=4)",
    "score_cam(model, x, 0, '0', shared=None)",
    "extremal_perturbation_map(model, x, 0, num_level=3)",
    "saliency(model, x, 0, smoth=1)",
    "smooth_grad(grad_cam)(model, x, 0, smoth=1)",
)


@pytest.mark.slow
def test_a_type_checker_knows_options_and_results(tmp_path, monkeypatch):
    """As strict as for the package itself, and with its cache."""
    api = pytest.importorskip("mypy.api")
    lines = [*SETUP.splitlines(), *(f"reveal_type({call})" for call in RIGHT), *WRONG]
    (tmp_path / "script.py").write_text("\n".join(lines), "utf-8")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    output, problems, _ = api.run([*config, "--no-pretty", str(tmp_path / "script.py")])
    assert not problems
    found = {}
    for number, kind, text in re.findall(r"script\.py:(\d+): (\w+): (.*)", output):
        revealed = re.fullmatch(r'Revealed type is "(.*)"', text)
        if revealed or kind == "error":
            found[lines[int(number) - 1]] = re.sub(r"\b\w+\.", "", revealed[1]) if revealed else "error"
    expected = {f"reveal_type({call})": result for call, result in RIGHT.items()}
    assert found == expected | dict.fromkeys(WRONG, "error")


def handed_on(function):
    """The parameter that takes further options, or None."""
    parameters = inspect.signature(function).parameters.values()
    unknown = NoReturn  # what is refused
    return next((p for p in parameters if p.kind is p.VAR_KEYWORD and p.annotation is not unknown), None)


@pytest.mark.parametrize("name", [name for name, row in saliency.METHODS.items() if handed_on(row.function)])
def test_the_options_by_name_are_those_of_the_engine(name):
    method = saliency.METHODS[name]
    (options,) = handed_on(method.function).annotation.__args__
    assert is_typeddict(options)
    own, engine = inspect.signature(method.function).parameters, get_type_hints(method.engine)
    by_name = get_type_hints(options)
    if sys.version_info < (3, 11):  # it adds None where that is a parameter's default
        by_name = {key: hint | None if engine[key] == hint | None else hint for key, hint in by_name.items()}
    assert {key: engine[key] for key in by_name} == by_name
    # `debug` and `return_convergence_delta` change the form of the result: `typed` knows them.
    pairs = {"debug", "return_convergence_delta"} & set(inspect.signature(method.engine).parameters)
    assert not set(own) & set(by_name)
    assert method.options - set(own) - set(by_name) - pairs - FIXED - {"options"} == set()


def test_a_typed_method_is_the_function_itself():
    def method(model, input, target, saliency_layer=None):
        return input

    assert typed(method) is method
    assert inspect.isfunction(driver)
    assert list(inspect.signature(saliency.grad_cam).parameters) == [
        *("model", "input", "target", "saliency_layer", "reduction", "options")
    ]


def test_an_option_given_twice_is_refused_as_before():
    with pytest.raises(TypeError, match="multiple values for keyword argument 'path'"):
        saliency.integrated_gradients(torch.nn.Flatten(), torch.ones(1, 2), 0, path=saliency.line())
