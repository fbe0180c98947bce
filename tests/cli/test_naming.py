"""Methods by name on the command line: of the table, of a module of one's own, and wrapped."""

import sys

import numpy as np
import pytest
import torch

import saliency
from saliency.cli import main
from saliency.cli.choosing import make_methods
from saliency.cli.naming import WRAPPERS, find_method
from saliency.cli.options import choose_options
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.store import read_results, scan_results
from saliency.methods import METHODS
from saliency.scenes import make_scene, scene_network

SOURCE = """
from saliency import gradient, grad_cam
from saliency.evaluation.metrics import METRICS, Metric
from saliency.methods import METHODS, Method

def powered(model, input, target, power=1.0):
    return gradient(model, input, target) ** power

def for_one_class(model, input, target):
    if target.ndim != 1:
        raise ValueError("one class an image")
    return grad_cam(model, input, target, "layer4")

def for_all_classes(model, input, target, *, gain):
    assert target.ndim == 2
    return gain * gradient(model, input, target)

def flat(model, input, target):
    return input.sum((1, 2, 3))

def short(model, input):
    return input

def brightness(saliency, gain: float = 1.0):
    return saliency.mean((1, 2, 3)) * gain

class Methods:
    @staticmethod
    def inner(model, input, target):
        return gradient(model, input, target)

METRICS["brightness"] = Metric(brightness, "case", "")
METHODS["my_row"] = Method(powered, "", powered)
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("my_methods", None)
    METRICS.pop("brightness", None)
    METHODS.pop("my_row", None)


def test_every_method_of_the_table_is_found_by_its_name():
    for name, row in METHODS.items():
        found = find_method(name)
        assert (found.function, found.options, found.row) == (row.function, row.options, name)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_method_is_what_the_wrapper_makes_of_it(wrapper):
    options = {"smooth_grad": {"n_samples": 2, "seed": 3}, "low_pass": {"cutoff": 0.5}}.get(wrapper, {})
    found = find_method(f"{wrapper}(layer_cam)")
    assert found.row == "layer_cam"
    assert options.keys() | {"resize"} <= found.written
    assert not {"shared", "progress", "debug", "warps", "method"} & found.written
    call = scene_network(), make_scene(0).image[None], torch.tensor([[1, 4]])
    expected = getattr(saliency, wrapper)(saliency.layer_cam, **options)(*call, resize=True)
    assert torch.equal(found.function(*call, **options, resize=True), expected)


def test_wrappers_may_be_nested():
    call = scene_network(), make_scene(0).image[None], 1
    expected = saliency.normalised(saliency.smooth_grad(saliency.gradient, n_samples=2))(*call)
    assert torch.equal(find_method("normalised(smooth_grad(gradient))").function(*call, n_samples=2), expected)


@pytest.mark.usefixtures("module")
class TestOwn:
    def test_a_function_has_its_further_parameters_as_options(self):
        assert choose_options(["my_methods:powered", "gradient"], None, ["power=2", "smooth=0.1"]) == {
            "my_methods:powered": {"power": 2},
            "gradient": {"smooth": 0.1},
        }
        assert find_method("my_methods:Methods.inner").options == frozenset()
        assert "power" in find_method("smooth_grad(my_methods:powered)").written

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("my_methods:powred", "has no 'powred'; did you mean 'powered'"),
            ("my_methods:short", r"is a function of \(model, input\); expected one of \(model, input, target\)"),
            ("my_methods:number", "is of type int"),
            ("my_methods:", "does not name a function of a module; expected 'my_module:method'"),
            ("my_metods:powered", "cannot be imported"),
            ("smoth_grad(gradient)", r"did you mean 'smooth_grad\(gradient\)'\?"),
            ("smooth_grad(gradiet)", r"'gradiet' is unknown; did you mean 'gradient'\?"),
            ("fused(layer_cam)", "expected one of smooth_grad, augmented, low_pass, normalised"),
        ],
    )
    def test_what_is_no_method(self, name, message):
        with pytest.raises(ValueError, match=f"^method=.*{message}"):
            find_method(name)

    def test_maps_of_photos(self, tmp_path, capsys):
        names = [f"my_methods:{name}" for name in ("for_one_class", "for_all_classes", "powered")]
        names.append("smooth_grad(gradient)")
        options = ["--option", "n_samples=2", "--option", "gain=2", "--target", "1", "--target", "4"]
        options += ["--scenes", "1", "--save", "maps"]
        methods = [part for name in names for part in ("--method", name)]
        assert main(["explain", *methods, *options, "--out", "out"]) == 0
        model, image = scene_network(), make_scene(0).image[None]
        expected = {
            "my_methods_for_one_class": saliency.grad_cam(model, image, 4, "layer4"),
            "my_methods_for_all_classes": 2 * saliency.gradient(model, image, 4),
            "my_methods_powered": saliency.gradient(model, image, 4),
            "smooth_grad_gradient": saliency.smooth_grad(saliency.gradient, n_samples=2)(model, image, 4),
        }
        for name, maps in expected.items():
            (path,) = (tmp_path / "out").glob(f"scene0_4_*_{name}.npy")
            np.testing.assert_allclose(np.load(path), maps[0, 0].numpy(), rtol=1e-4, atol=1e-6)
        capsys.readouterr()
        assert main(["explain", "--scenes", "1", "--method", "my_methods:flat", "--out", "out"]) == 2
        assert "maps=a tensor of shape (1,) do not fit target=a tensor of shape (1,)" in capsys.readouterr().err

    def test_a_network_and_rows_of_a_module(self, capsys):
        arguments = ["--scenes", "1", "--import", "my_methods", "--method", "my_row"]
        assert main(["explain", *arguments, "--out", "out"]) == 0
        game = ["--limit", "2", "--gallery", "0", "--metric", "brightness", "--metric-option", "brightness.gain=2"]
        assert main(["benchmark", *arguments, *game, "--out", "run"]) == 0
        rows = list(read_results("run"))
        assert {(row.method, row.metric) for row in rows} == {("my_row", "brightness")}
        case = rows[0]
        map = saliency.gradient(scene_network(), make_scene(0).image[None], case.target)
        assert case.score == pytest.approx(2 * map.mean().item(), rel=1e-4)
        assert main(["explain", *arguments, "--import", "a:b", "--import", "c:d"]) == 2
        assert "import='c:d' is a second network" in capsys.readouterr().err

    def test_a_run_reuses_the_results_of_a_version_and_those_of_wrapped_methods(self, caplog):
        arguments = ["benchmark", "--scenes", "2", "--gallery", "0", "--out", "run", "--option", "n_samples=2"]
        arguments += ["--method", "my_methods:powered", "--method", "smooth_grad(gradient)"]

        def count(*more):
            assert main([*arguments, *more]) == 0
            return len(list(scan_results("run")))

        first = count("--method-version", "my_methods:powered=1")
        assert first == count("--method-version", "my_methods:powered=1")
        assert not caplog.records
        assert count("--method-version", "my_methods:powered=2") == first + first // 2
        assert count() == 2 * first
        assert "no version of my_methods.powered" in caplog.text
        assert "gradient" not in caplog.text


def test_a_wrapped_method_plays_in_the_settings_of_what_it_wraps():
    names = ["smooth_grad(grad_cam)", "grad_cam", "smooth_grad(gradient)", "gradient"]
    given = ["n_samples=3", "smooth_grad(grad_cam).power=squared"]
    methods = {name: dict(pair[1]) for name, pair in make_methods(names, [], given, "resnet50", "layer4", True).items()}
    for name in ("grad_cam", "gradient"):
        assert methods[name].pop("shared") is True  # a wrapper calls the method several times
        own = {"n_samples": 3, **({"power": "squared"} if name == "grad_cam" else {})}
        assert methods[f"smooth_grad({name})"] == {**methods[name], **own}
    assert methods["gradient"]["smooth"] == 0.02
    assert methods["grad_cam"]["saliency_layer"] == "layer4"
