"""The command line: the files it writes, what it says, and one line for whatever goes wrong."""

import io
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1
from tqdm import tqdm

import saliency
from saliency import METHODS
from saliency.cli import explaining, main
from saliency.images import normalise, read_image, resize_image
from saliency.networks.models import EMBEDDED, find_class, find_targets, load_network, networks, preprocessing
from saliency.scenes import CLASSES, SceneNet, make_scene, scene_network
from tests.cases import NOTICES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, and weights in files."""
    folder = tmp_path_factory.mktemp("given")
    random = np.random.RandomState(0)
    for name, size in {"wide": (60, 90), "tall": (80, 50)}.items():
        Image.fromarray(random.randint(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({name: value.half() for name, value in squeezenet1_1().state_dict().items()}, folder / "half.pth")
        torch.save(squeezenet1_1(num_classes=3).state_dict(), folder / "three.pth")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "broken.pth").write_bytes(b"no weights")
    return folder


@pytest.fixture
def squeezenet(folder):
    return ["--arch", "squeezenet1_1", "--weights", str(folder / "half.pth"), "--size", "64"]


EACH = ["--save", "maps", "--save", "overlays"]  # a file for each map


def contents(out, suffix):
    return sorted(path.name for path in Path(out).iterdir() if path.suffix == suffix)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_scenes_are_explained_without_a_photo(tmp_path, capsys):
    assert main(["explain", "--scenes", "2", "--seed", "5", *EACH, "--out", str(tmp_path)]) == 0
    objects = {(seed, item.label) for seed in (5, 6) for item in make_scene(seed).objects}
    stems = sorted(f"scene{seed}_{label}_{CLASSES[label].replace(' ', '_')}_grad_cam" for seed, label in objects)
    assert contents(tmp_path, ".npy") == [f"{stem}.npy" for stem in stems]
    assert contents(tmp_path, ".png") == sorted([f"{stem}.png" for stem in stems] + ["scene5.png", "scene6.png"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["scene5", "scene6"]
    assert [line.split(" -> ")[1] for line in said] == [str(tmp_path / f"scene{seed}.png") for seed in (5, 6)]
    for seed, label in objects:
        stem = f"scene{seed}_{label}_{CLASSES[label].replace(' ', '_')}_grad_cam"
        image = make_scene(seed).image[None]
        expected = saliency.grad_cam(scene_network(), image, label)[0, 0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{stem}.npy"), expected, rtol=1e-4, atol=1e-6)
        assert size_of(tmp_path / f"{stem}.png") == (128, 128)


def test_predictions_of_scenes_are_sigmoids(tmp_path, capsys):
    main(["explain", "--scenes", "1", "--target", "0", "--out", str(tmp_path)])
    with torch.no_grad():
        scores = scene_network()(make_scene(0).image[None])[0].sigmoid()
    best = int(scores.argmax())
    assert capsys.readouterr().out.startswith(f"scene0: {CLASSES[best]} {float(scores[best]):.1%}, ")


def test_photo_with_names_indices_and_top(folder, squeezenet, tmp_path, capsys):
    targets = ["--target", "bull mastiff", "--target", "TABBY", "--target", "5", "--target", "top2", "--target", "243"]
    methods = ["--method", "layer_cam", "--method", "gradient"]
    assert (
        main(["explain", str(folder / "wide.png"), *squeezenet, *targets, *methods, *EACH, "--out", str(tmp_path)]) == 0
    )
    model = load_network("squeezenet1_1", folder / "half.pth")
    wanted = preprocessing("squeezenet1_1")
    image = normalise(resize_image(read_image(folder / "wide.png"), 64), wanted.mean, wanted.std)[None]
    assert image.shape == (1, 3, 64, 96)
    with torch.no_grad():
        top = model(image)[0].softmax(0).topk(2)
    labels = list(dict.fromkeys([243, 281, 5, *top.indices.tolist()]))
    assert len(contents(tmp_path, ".npy")) == 2 * len(labels)
    for label, method in itertools.product(labels, ["layer_cam", "gradient"]):
        (path,) = tmp_path.glob(f"wide_{label}_*_{method}.npy")
        expected = METHODS[method].function(model, image, label)[0, 0].numpy()
        assert np.load(path).shape == expected.shape
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-3, atol=1e-6 * expected.max())
        assert size_of(path.with_suffix(".png")) == (90, 60)
    assert (tmp_path / "wide_243_bull_mastiff_layer_cam.png").exists()
    names = preprocessing("squeezenet1_1").classes
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"wide: {names[top.indices[0]]} {float(top.values[0]):.1%}, {names[top.indices[1]]} ")


def test_targets_share_the_forward_pass(folder, squeezenet, tmp_path, monkeypatch):
    passes = []

    def counted(*args):
        model = load_network(*args)
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        return model

    monkeypatch.setattr(explaining, "load_network", counted)
    counts = []
    for targets in (["1"], ["1", "2", "3", "4"]):
        passes.clear()
        arguments = [item for target in targets for item in ("--target", target)]
        assert main(["explain", str(folder / "wide.png"), *squeezenet, *arguments, "--out", str(tmp_path)]) == 0
        counts.append(len(passes))
    assert counts[0] == counts[1] > 0


def test_layer_is_passed_on(folder, squeezenet, tmp_path):
    photo = str(folder / "tall.png")
    # 102 x 64 pixels; the convolution and the three poolings are 3 wide with stride 2, the poolings round up.
    for layer, shape in {"features.3": (25, 15), "features.12": (6, 3)}.items():
        arguments = [*squeezenet, "--layer", layer, "--target", "1", *EACH, "--out", str(tmp_path / layer)]
        assert main(["explain", photo, *arguments]) == 0
        (name,) = contents(tmp_path / layer, ".npy")
        assert np.load(tmp_path / layer / name).shape == shape


FEW = [f"--option={pair}" for pair in ("num_masks=20", "max_iter=2", "num_samples=2", "n_samples=2", "n_steps=3")]


def test_all_methods(tmp_path, capsys):
    chosen = ["--target", "0", "--method", "all", *FEW, *EACH]
    assert main(["explain", "--scenes", "1", *chosen, "--out", str(tmp_path)]) == 0
    stem = f"scene0_0_{CLASSES[0]}"
    # One image has nothing to permute, and the network no attention.
    refused = [name for name, method in METHODS.items() if method.needs_attention or name == "feature_permutation"]
    written = [method for method in METHODS if method not in refused]
    assert contents(tmp_path, ".npy") == sorted(f"{stem}_{method}.npy" for method in written)
    assert contents(tmp_path, ".png") == sorted(["scene0.png", *(f"{stem}_{method}.png" for method in written)])
    (error,) = capsys.readouterr().err.splitlines()
    attention = ", ".join(name for name in refused if name != "feature_permutation")
    assert error.startswith("saliency: left out: feature_permutation (input=")
    assert f"; {attention} (model=SceneNet has no attention" in error


def test_of_several_methods_one_that_raises_is_left_out(tmp_path, capsys):
    methods = ["--method", "gradient", "--method", "feature_permutation", "--method", "grad_cam"]
    assert main(["explain", "--scenes", "2", "--target", "1", *methods, *EACH, "--json", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1  # told once, not once a photo
    assert said.err.startswith("saliency: left out: feature_permutation (input=")
    done = json.loads(said.out)
    assert (done["network"], done["weights"]) == ("scenes", "DEFAULT")
    for photo in done["photos"]:
        assert [column["name"] for column in photo["maps"]] == ["gradient", "grad_cam"]
        assert list(photo["left_out"]) == ["feature_permutation"]
    assert not list(tmp_path.glob("*permutation*"))


def test_one_picture_and_one_line_for_each_photo(tmp_path, capsys):
    methods = ["--method", "grad_cam", "--method", "gradient", "--target", "0", "--target", "1"]
    assert main(["explain", "--scenes", "3", *methods, "--html", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"scene{seed}.png" for seed in range(3)),
        "viewer.html",
    ]
    *lines, viewer = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["scene0", "scene1", "scene2"]
    assert viewer == f"viewer: {tmp_path / 'viewer.html'}"


def test_a_line_says_what_was_explained(tmp_path, capsys):
    assert main(["explain", "--scenes", "1", "--target", "circle", "--target", "3", "--out", str(tmp_path)]) == 0
    with torch.no_grad():
        scores = scene_network()(make_scene(0).image[None])[0].sigmoid()
    told = capsys.readouterr().out.split(": ", 1)[1].split("; explained: ")
    best = scores.topk(3).indices.tolist()
    for said, classes in zip([told[0], told[1].split(" -> ")[0]], [best, [0, 3]], strict=True):
        assert said == ", ".join(f"{CLASSES[index]} {float(scores[index]):.1%}" for index in classes)


@pytest.mark.filterwarnings("default:saliency_layer=")
def test_a_warning_names_the_method_and_the_photos(tmp_path, capsys):
    """Behind the last attention of a transformer only the class token counts: told once, not once a photo."""
    chosen = ["--arch", "scenes_vit", "--scenes", "2", "--target", "0", "--layer", "blocks.3"]
    assert main(["explain", *chosen, "--method", "layer_cam", "--method", "grad_cam", "--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "is zero everywhere" in line]
    assert [line.split("saliency_layer=")[0] for line in lines] == [
        f"saliency: warning: {method} of scene0, scene1: " for method in ("layer_cam", "grad_cam")
    ]


def test_of_many_photos_a_warning_names_three(capsys):
    explaining.tell_problems({("grad_cam", "zero."): [*"abcde"], ("lrp", "lost."): ["a"]}, {})
    said = ["saliency: warning: grad_cam of a, b, c and 2 more: zero.", "saliency: warning: lrp of a: lost."]
    assert capsys.readouterr().err.splitlines() == said


def test_layers_by_method_wrappers_and_size(tmp_path):
    name = "smooth_grad(grad_cam)"
    layers = ["--layer", f"{name}=layer2", "--layer", f"{name}=layer3", "--resize"]
    wrapped = ["--method", name, "--option", "n_samples=2", "--save", "maps", "--target", "0"]
    assert main(["explain", "--scenes", "1", *layers, *wrapped, "--out", str(tmp_path)]) == 0
    image = make_scene(0).image[None]
    for layer in ("layer2", "layer3"):
        found = np.load(tmp_path / f"scene0_0_{CLASSES[0]}_smooth_grad_grad_cam_{layer}.npy")
        expected = saliency.smooth_grad(saliency.grad_cam, 2)(scene_network(), image, 0, layer, resize=True)
        np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_the_crop_and_the_numbers_of_the_network(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_net.py").write_text(
        "from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Sequential\n"
        "def build():\n"
        "    return Sequential(Conv2d(3, 2, 3), AdaptiveAvgPool2d(1), Flatten(), Linear(2, 3))"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    given = ["explain", str(folder / "wide.png"), "--method", "gradient", "--json"]
    sizes = []
    for arch in (
        ["--arch", "squeezenet1_1", "--weights", str(folder / "half.pth")],
        ["--arch", "squeezenet1_1", "--weights", str(folder / "half.pth"), "--no-crop"],
        ["--import", "my_net:build", "--size", "20", "--mean", "0.5", "--std", "0.5,0.5,0.5"],
    ):
        assert main([*given, *arch]) == 0
        (photo,) = json.loads(capsys.readouterr().out)["photos"]
        sizes.append(photo["input"][2:])
    assert sizes == [[224, 224], [224, 336], [20, 30]]


def test_a_method_alone_that_raises_ends_the_command(tmp_path, capsys):
    arguments = ["--scenes", "1", "--target", "0", "--method", "feature_permutation", "--out", str(tmp_path)]
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saliency: error: input=")
    assert error.count("\n") == 1
    assert contents(tmp_path, ".png") == []


def test_options_reach_the_methods_that_have_them(tmp_path):
    chosen = ["--option", "num_masks=20", "--option", "scores=softmax", "--option", "smooth=0.05", "--layer", "layer3"]
    methods = ["--method", "rise", "--method", "grad_cam"]
    assert main(["explain", "--scenes", "1", "--target", "0", *methods, *chosen, *EACH, "--out", str(tmp_path)]) == 0
    model, image = scene_network(), make_scene(0).image[None]
    for name, expected in {
        "rise": saliency.rise_class(model, image, 0, num_masks=20, scores="softmax", smooth=0.05),
        "grad_cam": saliency.grad_cam(model, image, 0, "layer3", smooth=0.05),
    }.items():
        found = np.load(tmp_path / f"scene0_0_{CLASSES[0]}_{name}.npy")
        np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("options", "most"), [([], 16), (["--option", "internal_batch_size=3"], 3)])
def test_a_path_runs_in_batches_that_fit_the_memory(tmp_path, monkeypatch, options, most):
    sizes = []

    def counted(*args):
        model = load_network(*args)
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return model

    monkeypatch.setattr(explaining, "load_network", counted)
    methods = ["--method", "smooth_gradient", "--method", "gradient", "--option", "n_samples=20"]
    assert main(["explain", "--scenes", "1", "--target", "0", *methods, *options, "--out", str(tmp_path)]) == 0
    assert sum(sizes) == 22
    assert max(sizes) == most


REFUSED = [
    ("rise", "seed", "seed='' is"),
    ("rise", "scores=logit", "scores='logit' is not a valid score"),
    ("gradient_shap", "baselines=0.5", "option='baselines=0.5' is an option of none of the methods"),
    ("integrated_gradients", "method=simpson", "method='simpson' is not a quadrature"),
]


@pytest.mark.parametrize(("method", "option", "message"), REFUSED)
def test_a_method_refuses_a_value_in_one_line(tmp_path, capsys, method, option, message):
    assert main(["explain", "--scenes", "1", "--method", method, "--option", option, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("installed", [True, False])
def test_a_long_method_shows_its_progress(tmp_path, monkeypatch, installed):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    methods = ["--method", "rise", "--method", "grad_cam"]
    arguments = ["--scenes", "1", "--target", "0", *methods, *FEW[:1], *EACH, "--out", str(tmp_path)]
    assert main(["explain", *arguments]) == 0
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == ([("rise", 20, 20)] if installed else [])
    assert len(contents(tmp_path, ".npy")) == 2


def test_photos_of_one_name_do_not_overwrite_each_other(folder, squeezenet, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "tall.png", tmp_path / "other" / "wide.png")
    photos = [str(folder / "wide.png"), str(tmp_path / "other" / "wide.png")]
    assert main(["explain", *photos, *squeezenet, "--target", "1", *EACH, "--out", str(tmp_path / "out")]) == 0
    sizes = {name: size_of(tmp_path / "out" / name) for name in contents(tmp_path / "out", ".png")}
    assert sizes.pop("wide.png")
    assert sizes.pop("wide_2.png")
    assert sorted(sizes.items()) == [
        ("wide_1_goldfish_grad_cam.png", (90, 60)),
        ("wide_2_1_goldfish_grad_cam.png", (50, 80)),
    ]


@NOTICES
def test_large_photo_is_shown_smaller(folder, tmp_path):
    Image.new("RGB", (1000, 900), "red").save(tmp_path / "large.png")
    arguments = ["--arch", "scenes", "--size", "32", "--target", "0", *EACH, "--out", str(tmp_path / "out")]
    assert main(["explain", str(tmp_path / "large.png"), *arguments]) == 0
    assert size_of(tmp_path / "out" / f"large_0_{CLASSES[0]}_grad_cam.png") == (498, 448)


def test_head_of_another_number_of_classes(folder, tmp_path, capsys):
    given = ["explain", str(folder / "wide.png"), "--arch", "squeezenet1_1", "--weights", str(folder / "three.pth")]
    assert main([*given, "--target", "2", "--size", "64", *EACH, "--out", str(tmp_path)]) == 0
    assert contents(tmp_path, ".npy") == ["wide_2_class_2_grad_cam.npy"]
    assert main([*given, "--target", "3", "--size", "64", "--out", str(tmp_path)]) == 2
    assert "target='3' is not a class of the network; expected 0 to 2." in capsys.readouterr().err


def test_without_matplotlib_all_else_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["explain", "--scenes", "1", "--target", "0", "--out", str(tmp_path)]) == 0
    assert contents(tmp_path, ".png") == [f"scene0_0_{CLASSES[0]}_grad_cam.png"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "extra 'plot'" in error


ERRORS = {
    "photo missing": (["{folder}/nowhere.png"], "photo='{folder}/nowhere.png' is not a file"),
    "photo broken": (["{folder}/broken.png"], "photo='{folder}/broken.png' cannot be read"),
    "second photo broken": (["{folder}/wide.png", "{folder}/broken.png"], "photo='{folder}/broken.png' cannot be read"),
    "no photo": (["--arch", "resnet18"], "expected photos"),
    "weights missing": (["--weights", "{folder}/nowhere.pth"], "weights='{folder}/nowhere.pth' is not a file"),
    "weights broken": (["--weights", "{folder}/broken.pth"], "weights='{folder}/broken.pth' cannot be read"),
    "weights of another": (["--weights", "{folder}/half.pth"], "do not fit arch='scenes'"),
    "no arch": (["{folder}/wide.png", "--arch", ""], "arch='' is unknown"),
    "arch": (["{folder}/wide.png", "--arch", "resnet5O"], "arch='resnet5O' is unknown; did you mean 'resnet50'?"),
    "no classifier": (["{folder}/wide.png", "--arch", "fcn_resnet50"], "arch='fcn_resnet50' is unknown"),
    "method": (["--method", "gradcam"], "method='gradcam' is unknown; did you mean 'grad_cam'?"),
    "layer": (["--layer", "layr4"], "layer='layr4' is not a layer of the model (did you mean 'layer4'?)"),
    "class": (["--target", "sqare"], "target='sqare' is unknown; did you mean 'square'?"),
    "class of no letters": (["--target", ""], "target='' is unknown"),
    "index": (["--target", "8"], "target='8' is not a class of the network; expected 0 to 7."),
    "negative index": (["--target", "-1"], "target='-1' is not a class of the network"),
    "top": (["--target", "top9"], "target='top9' asks for 9 classes; expected 'top1' to 'top8'."),
    "top of none": (["--target", "top0"], "expected 'top1' to 'top8'."),
    "device": (["--device", "cdua"], "device='cdua' is unknown; did you mean 'cuda'?"),
    "size": (["--size", "4"], "size=4 does not fit arch='scenes'; expected 16 or more."),
    "size of ViT": (["{folder}/wide.png", "--arch", "vit_b_16", "--size", "256"], "expected 224."),
    "no number": (["--scenes", "none"], "--scenes: 'none' is not a whole number"),
    "seed": (["--seed", "-1"], "seed=-1"),
    "out": (["--out", "{folder}/wide.png"], "out='{folder}/wide.png' cannot be made (File exists)"),
    "option": (["--methods", "grad_cam", "--nonsense"], "--nonsense"),
    "layer of no use": (["--method", "rise", "--layer", "layer4"], "layer='layer4' is an option of none"),
    "option of no method": (["--option", "num_masks=5"], "option='num_masks=5' is an option of none"),
    "option that is a function": (["--option", "context_builder=3"], "option='context_builder=3' is an option of none"),
    "option that changes the form": (["--option", "debug=True"], "option='debug=True' is an option of none"),
    "option that is a path": (["--option", "path=3"], "option='path=3' is an option of none"),
    "option of a path": (["--option", "internal_batch_size=3"], "option='internal_batch_size=3' is an option of none"),
    "layer of another method": (["--layer", "gradcam=layer4"], "did you mean 'grad_cam=layer4'?"),
    "mean": (["--mean", "a,b"], "'a,b' is not a number"),
    "mean of two channels": (["--mean", "1,2"], "mean=(1.0, 2.0) does not fit 3 channels"),
    "two networks": (["--import", "torch.nn:Identity", "--arch", "scenes"], "arch='scenes' does not go with import="),
    "model of timm": (["{folder}/wide.png", "--arch", "timm:resnet5O"], "arch='timm:resnet5O' "),
    "option of every call": (["--option", "target=5"], "option='target=5' is an option of none"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_one_line_of_error(folder, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    arguments, message = ERRORS[case]
    assert main(["explain", *(argument.format(folder=folder) for argument in arguments)]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("saliency: error: ")
    assert written.err.count("\n") == 1
    assert message.format(folder=folder) in written.err
    assert len(written.err) < 400
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("arguments", [[], ["explian"], ["layers", "--arch", "resnt18"]])
def test_unknown_command_or_network(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cuda_on_a_machine_without(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["explain", "--device", "cuda"]) == 2
    assert "device='cuda' is not available" in capsys.readouterr().err


def test_interrupt_is_quiet(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(explaining, "load_network", interrupt)
    assert main(["explain"]) == 130
    assert capsys.readouterr() == ("", "")


def test_methods_are_listed_in_columns(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert len({line.index(method.paper) for line, method in zip(lines, METHODS.values(), strict=True)}) == 1


def test_methods_with_the_rules_of_a_network(capsys):
    assert main(["methods", "--model", "scenes"]) == 0
    *rows, note = capsys.readouterr().out.splitlines()
    assert len(rows) == len(METHODS)
    assert note == "lrp of scenes: rules='epsilon_plus' where none are given"


def test_layers_with_shapes_and_the_default(capsys):
    assert main(["layers", "--arch", "scenes"]) == 0
    *rows, note = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["*", "layer4", "Sequential", "(1,", "80,", "16,", "16)"] in rows
    assert ["fc", "Linear", "(1,", "8)", "no", "grid"] in rows
    assert [row[0] for row in rows].count("*") == 1
    assert note[0] == "*"
    assert len(rows) == len([name for name, _ in SceneNet().named_modules() if name])


def test_run_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["saliency", "methods"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("saliency", run_name="__main__")
    assert ended.value.code == 0
    assert "grad_cam" in capsys.readouterr().out


def test_package_of_the_same_name_in_its_place_is_named(tmp_path):
    (tmp_path / "saliency").mkdir()
    (tmp_path / "saliency" / "__init__.py").write_text("")
    shutil.copy(Path(saliency.__file__).with_name("__main__.py"), tmp_path / "saliency")
    ended = subprocess.run(
        [sys.executable, "-m", "saliency"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "another distribution" in ended.stderr


def test_reader_that_leaves_early():
    command = f"{sys.executable} -m saliency layers --arch scenes"
    ended = subprocess.run(f"({command}; echo $? >&2) | true", shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr.split() == ["0"]


@pytest.mark.parametrize("wrap", ["bare", "checkpoint", "parallel", "half"])
def test_state_dicts_of_every_form_load(tmp_path, wrap):
    trained = SceneNet()
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    forms = {
        "bare": state,
        "checkpoint": {"state_dict": state, "epoch": 3},
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "half": {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    }
    torch.save(forms[wrap], tmp_path / "weights.pth")
    loaded = load_network("scenes", tmp_path / "weights.pth")
    assert not loaded.training
    tolerance = 1e-3 if wrap == "half" else 0
    for name, value in loaded.state_dict().items():
        assert value.dtype == state[name].dtype
        torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"state_dict": 3}, torch.zeros(3), SceneNet()], ids=lambda x: type(x).__name__
)
def test_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights='.*weights\.pth' (does not hold a state dict|cannot be read)"):
        load_network("scenes", tmp_path / "weights.pth")


def test_default_weights_are_torchvisions(monkeypatch):
    urls = []
    state = squeezenet1_1().state_dict()

    def download(url, *args, **kwargs):
        urls.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    loaded = load_network("squeezenet1_1", "DEFAULT").state_dict()
    assert [Path(url).name.split("-")[0] for url in urls] == ["squeezenet1_1"]
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_download_that_fails(monkeypatch):
    def download(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(
        ValueError, match=r"weights='DEFAULT' could not be downloaded for arch='resnet18' \(.*no network"
    ):
        load_network("resnet18", "DEFAULT")


def test_networks_trained_for_another_normalisation_convert_it(tmp_path):
    torch.save(load_network("googlenet").state_dict(), tmp_path / "weights.pth")
    assert load_network("googlenet", tmp_path / "weights.pth").transform_input


def test_every_network_has_a_preprocessing():
    for arch in networks():
        wanted = preprocessing(arch)
        assert wanted.size >= wanted.min_size > 0
        assert len(wanted.mean) == len(wanted.std) == 3
        many = {**dict.fromkeys(EMBEDDED, len(CLASSES)), "voc": 20, "coco": 80}
        assert len(wanted.classes) == many.get(arch, many.get(arch.rpartition("_")[2], 1000))
    assert {arch for arch in networks() if preprocessing(arch).square} >= {"vit_b_16", "maxvit_t"}
    assert not preprocessing("resnet50").square


ANIMALS = ["tench, Tinca tinca", "tabby", "tiger cat", "Persian cat", "bull mastiff", "crane", "crane"]


@pytest.mark.parametrize(
    ("name", "index"),
    [("tabby", 1), ("Tinca Tinca", 0), ("TENCH", 0), ("tiger", 2), ("persian CAT", 3), ("mastiff", 4)],
)
def test_class_by_name(name, index):
    assert find_class(name, ANIMALS) == index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat", "is ambiguous; expected the index or the name: 2 'tiger cat', 3 'Persian cat'."),
        ("crane", "is ambiguous; expected the index or the name: 5 'crane', 6 'crane'."),
        ("tabbi", "is unknown; did you mean 'tabby'?"),
        ("bul mastiff", "is unknown; did you mean 'bull mastiff'?"),
        ("mastif", "is unknown; did you mean 'mastiff'?"),
        ("tab", "is unknown; did you mean 'tabby'?"),
    ],
)
def test_class_by_a_name_that_does_not_settle_it(name, message):
    with pytest.raises(ValueError, match=re.escape(f"target={name!r} {message}")):
        find_class(name, ANIMALS)


def test_exact_name_wins_over_words():
    assert find_targets("mastiff", ["bull mastiff", "mastiff", "Tibetan mastiff"], torch.zeros(3)) == [1]
