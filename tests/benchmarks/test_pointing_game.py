"""The benchmark's command line, and the pointing game on the embedded scenes with the embedded networks' weights."""

import json
from functools import partial

import pytest
import torch

from benchmarks.pointing_game import build_parser, main
from saliency import METHODS, get_pointing_gradient, max_channels
from saliency.cli.choosing import CENTRE, choose_metrics, choose_names, make_methods
from saliency.cli.naming import find_method
from saliency.cli.preparing import make_setup
from saliency.cli.settings import ATTENTION, BATCHED, LONG, TORCHRAY
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.explainers import Explainer
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.compute import explain_each
from saliency.evaluation.running.ranks import holding
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.images import to_picture
from saliency.networks.models import DEFAULT, load_network, preprocessing
from saliency.scenes import CLASSES, make_scene, make_scenes, scene_network

# Percentage points above the centre point. Activation, its components and its outliers show every object, whatever the
# class that is asked for. The noise of SS-CAM, of the paper's standard deviation 2 on masks in [0, 1], is averaged over
# 2 samples here; the paper has 35. Feature permutation shows what differs from the other images of a batch.
MARGINS = dict.fromkeys((name for name in METHODS if name not in ATTENTION), 40) | dict.fromkeys(
    ("activation", "eigen_cam", "kpca_cam", "fem", "ss_cam"), 10
)
del MARGINS["deconvnet"], MARGINS["internal_influence"], MARGINS["feature_permutation"]  # see below
# The same in the transformer. Its tokens exchange what they hold: a channel's mean gradient, which Grad-CAM weighs by,
# says less of a place than the gradient at that place does.
VIT_MARGINS = {
    **dict.fromkeys(("gradient", "linear_approx", "guided_backprop", "guided_grad_cam"), 30),
    **dict.fromkeys(("layer_cam", "hires_cam"), 20),
    "grad_cam": 10,
}
FEW = {
    **{name: ("n_steps=8",) for name in METHODS if "n_steps" in METHODS[name].options},
    **{name: ("n_samples=8",) for name in METHODS if "n_samples" in METHODS[name].options},
    "rise": ("num_masks=300",),
    "extremal_perturbation": ("areas=0.05", "max_iter=60"),
}
PATH_METHODS = [name for name in MARGINS if find_method(name).is_path]
LONGEST = [name for name in LONG if not find_method(name).is_path]


def few(names):
    """The options with which methods of many passes are quick."""
    return [f"{name}.{option}" for name in names for option in FEW.get(name, ())]


def accuracies(names, scenes, folder, others=None, arch="scenes"):
    """The share of hits in percent by method: those named in the benchmark's own settings, others in theirs."""
    methods = make_methods([CENTRE, *names], [], few(names), arch, None, torchray=False) | (others or {})
    network, metrics = load_network(arch, DEFAULT), {"pointing_game": {}}
    dataset = load_dataset("scenes", scenes=scenes, seed=500)
    outcome = run(dataset, network, preprocessing(arch), methods, metrics, folder, gallery=0)
    assert outcome.failed == 0
    return {line.method: 100 * line.mean for line in outcome.lines}


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    return accuracies([name for name in MARGINS if name not in LONG], 60, tmp_path_factory.mktemp("game"))


@pytest.mark.parametrize("method", [name for name in MARGINS if name not in LONG])
def test_a_method_finds_objects_better_than_the_centre_point(accuracy, method):
    assert accuracy[method] >= accuracy[CENTRE] + MARGINS[method]


@pytest.fixture(scope="module")
def accuracy_in_the_transformer(tmp_path_factory):
    return accuracies(VIT_MARGINS, 30, tmp_path_factory.mktemp("game"), arch="scenes_vit")


@pytest.mark.parametrize("method", VIT_MARGINS)
def test_a_method_finds_objects_in_the_transformer(accuracy_in_the_transformer, method):
    assert accuracy_in_the_transformer[method] >= accuracy_in_the_transformer[CENTRE] + VIT_MARGINS[method]


def test_a_path_method_finds_objects_better_than_the_centre_point(tmp_path):
    accuracy = accuracies(PATH_METHODS, 20, tmp_path)
    for method in PATH_METHODS:
        assert accuracy[method] >= accuracy[CENTRE] + MARGINS[method]


def test_internal_influence_finds_objects_in_a_layer_that_is_not_only_averaged(tmp_path):
    """Of the last layer the score is a mean: the gradient there is the same at every position, and so the map."""
    influence, images = METHODS["internal_influence"].function, torch.stack([scene.image for scene in make_scenes(3)])
    maps = influence(scene_network(), images, 5, "layer4", n_steps=8)
    torch.testing.assert_close(maps, maps[:, :, :1, :1].expand_as(maps))
    before = partial(influence, saliency_layer="layer3", n_steps=8, reduction=max_channels)
    accuracy = accuracies([], 20, tmp_path, {"internal_influence": (before, {})})
    assert accuracy["internal_influence"] >= accuracy[CENTRE] + 40


@pytest.mark.slow
def test_a_long_method_finds_objects_better_than_the_centre_point(tmp_path):
    accuracy = accuracies(LONGEST, 6, tmp_path)
    for method in LONGEST:
        assert accuracy[method] >= accuracy[CENTRE] + MARGINS[method]


def test_deconvnet_cannot_find_anything_in_a_network_without_max_pooling():
    """Its rule looks at no activation, so nothing in its map comes from the image: it is the same for every image."""
    model, images = scene_network(), torch.stack([scene.image for scene in make_scenes(3)])
    maps = METHODS["deconvnet"].function(model, images, 5)
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(maps, maps[:1].expand_as(maps))


@pytest.fixture
def played(tmp_path, monkeypatch, capsys):
    """Run the command line in a folder of its own; its exit code, the table's lines, and what was said."""
    monkeypatch.chdir(tmp_path)

    def played(*arguments):
        code = main(["--device", "cpu", "--gallery", "0", *arguments])
        written = capsys.readouterr()
        return code, [line for line in written.out.splitlines() if line.startswith("|")][2:], written.err

    return played


def test_the_table_is_printed_and_the_rows_are_written(played, tmp_path):
    code, table, said = played("--scenes", "4", "--method", "grad_cam", "--method", "centre", "--limit", "6")
    assert (code, said) == (0, "")
    assert [line.split(" | ")[:2] for line in table] == [["| pointing_game", "grad_cam"], ["| pointing_game", "centre"]]
    rows = list(read_results(tmp_path / "bench_out" / "scenes-scenes"))
    assert len(rows) == 12
    for line in table:
        scores = [row.score for row in rows if f"| {row.method} |" in line]
        assert f" | {sum(scores) / 6:.4f} | " in line


def test_a_wider_disc_hits_more(played):
    hits = []
    for tolerance in ("0", "15", "200"):
        code, (line,), _ = played("--scenes", "6", "--method", "centre", "--tolerance", tolerance)
        assert code == 0
        hits.append(float(line.split(" | ")[2]))
    assert hits[0] < hits[1] < hits[2] == 1


WRONG = {
    "scenes": (["--scenes", "0"], "'0' is not a whole number"),
    "scenes of photos": (["--dataset", "voc2007", "--scenes", "5"], "scenes=5"),
    "root": (["--dataset", "voc2007"], "root=None is not a folder"),
    "method": (["--method", "gradcam"], "did you mean 'grad_cam'?"),
    "metric": (["--metric", "pointing_gam"], "did you mean 'pointing_game'?"),
    "option of no method": (["--method", "grad_cam", "--option", "num_masks=3"], "option='num_masks=3'"),
    "option of another": (["--method", "grad_cam", "--option", "rise.num_masks=3"], "option='rise'"),
    "size of maps": (["--method", "grad_cam", "--option", "resize=True"], "'resize' of grad_cam"),
    "metric option": (
        ["--metric-option", "insertion.steps=3"],
        "metric_option='insertion.steps=3' is not for a metric of this run",
    ),
    "unknown metric option": (["--metric-option", "pointing_game.radius=3"], "'radius' is not an option"),
    "tolerance": (["--tolerance", "x"], "--tolerance"),
    "limit": (["--limit", "0"], "--limit"),
    "arch": (["--arch", "resnet5O"], "did you mean 'resnet50'?"),
    "layer": (["--method", "grad_cam", "--layer", "blok4"], "saliency_layer='blok4' is not a layer of the model"),
    "layer of one method": (["--option", "contrastive_excitation_backprop.contrast_layer=x"], "contrast_layer='x'"),
    "network": (["--import", "nowhere:build"], "import='nowhere:build'"),
    "two networks": (["--import", "torch.nn:Identity", "--arch", "scenes"], "import='torch.nn:Identity' goes without"),
    "class map": (["--class-map", "nowhere.json"], "class_map='nowhere.json'"),
    "nothing to compare": (["--metric", "agreement", "--method", "grad_cam"], "leave no pair"),
    "out": (["--out", "setup.py/out"], "out='setup.py/out' cannot be used"),
    "argument": (["--nonsense"], "--nonsense"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line(played, tmp_path, case):
    (tmp_path / "setup.py").write_text("")
    arguments, message = WRONG[case]
    code, table, said = played(*arguments)
    assert code == 2
    assert not table
    assert said.count("\n") == 1
    assert said.startswith("pointing_game: error: ")
    assert message in said
    assert not (tmp_path / "bench_out").exists()


@pytest.fixture
def photos(tmp_path):
    """Three photos with annotations as COCO has them: one broken, one that is missing; and a map of the classes."""
    root = tmp_path / "photos"
    root.mkdir()
    index = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "angular"}, {"id": 9, "name": "other"}]}
    for number in range(4):
        scene = make_scene(number)
        index["images"].append({"id": number, "file_name": f"{number}.png", "height": 128, "width": 128})
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            category = 7 if CLASSES[item.label] in ("square", "cross") else 9
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            index["annotations"].append(
                {"id": len(index["annotations"]), "image_id": number, "category_id": category, **box}
            )
        to_picture(scene.image).save(root / f"{number}.png")
    broken = (root / "1.png").read_bytes()
    (root / "1.png").write_bytes(broken[: len(broken) // 2])
    (root / "2.png").unlink()
    (root / "annotations.json").write_text(json.dumps(index))
    rest = [label for label, name in enumerate(CLASSES) if name not in ("square", "cross")]
    (tmp_path / "map.json").write_text(json.dumps({"angular": [1, 4]}))
    (tmp_path / "whole.json").write_text(json.dumps({"angular": [1, 4], "other": rest}))
    return ["--dataset", "folder", "--root", str(root), "--arch", "scenes", "--method", "grad_cam"]


def test_a_broken_photo_is_in_the_rows_and_the_exit_code_and_a_missing_one_is_named(played, photos, tmp_path):
    code, _, said = played(*photos, "--class-map", "whole.json", "--out", "out")
    assert code == 1
    assert "2.png" in said
    assert "2.png" in (tmp_path / "out" / "left-out.txt").read_text()
    errors = {row.image: row.error for row in read_results(tmp_path / "out") if row.error}
    assert [name for name in errors if "1.png" not in name] == []
    assert len(errors) == 1
    code, _, said = played(*photos, "--class-map", "whole.json", "--out", "refused", "--on-error", "refuse")
    assert code == 2
    assert not (tmp_path / "refused").exists()


def test_classes_without_an_output_are_left_out_and_named(played, photos, tmp_path):
    _, _, said = played(*photos, "--class-map", "map.json", "--out", "out")
    assert "class 'other' has no output" in said
    assert {row.target for row in read_results(tmp_path / "out")} == {0}
    (tmp_path / "map.json").write_text("{}")
    code, _, said = played(*photos, "--class-map", "map.json", "--out", "none")
    assert code == 2
    assert "holds no case" in said


def test_a_run_that_is_refused_writes_nothing_into_a_folder(played, photos, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, said = played(*photos, "--class-map", "map.json", "--out", "file")
    assert code == 2
    assert "out='file' cannot be used" in said
    out = tmp_path / "busy"
    out.mkdir()
    with holding(out / "lock"):
        code, _, said = played(*photos, "--class-map", "map.json", "--out", "busy")
    assert code == 2
    assert "is in use" in said
    assert [path.name for path in out.iterdir()] == ["lock"]


def test_a_network_of_one_s_own(played, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from saliency.networks.models import preprocessing\n"
        "from saliency.scenes import scene_network\n"
        "def build():\n    return scene_network(), preprocessing('scenes')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = played("--scenes", "3", "--method", "grad_cam", "--import", "own_network:build")
    assert own == played("--scenes", "3", "--method", "grad_cam", "--weights", "DEFAULT")
    assert own[0] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision(played, tmp_path, monkeypatch, dtype):
    network = scene_network().to(dtype), preprocessing("scenes")
    monkeypatch.setattr("saliency.cli.preparing.import_network", lambda name: network)
    metrics = [f"--metric={name}" for name in ("pointing_game", "box_iou", "insertion", "road", "sensitivity_n")]
    methods = [f"--method={name}" for name in ("centre", "grad_cam", "gradient", "excitation_backprop")]
    code, table, _ = played("--scenes", "1", *methods, *metrics, "--import", "own:build")
    assert code == 0
    assert len(table) == 20


def test_a_network_that_scores_no_classes_is_named(played, monkeypatch):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(0)), preprocessing("scenes")
    monkeypatch.setattr("saliency.cli.preparing.import_network", lambda name: network)
    code, _, said = played("--scenes", "3", "--import", "own:build")
    assert (code, said.count("\n")) == (2, 1)
    assert "output=(1,) of the network" in said


def test_names_and_their_groups():
    assert set(choose_names(None)) == {CENTRE, *METHODS} - set(LONG) - set(BATCHED) - set(ATTENTION)
    assert choose_names(["torchray"]) == list(TORCHRAY)
    assert choose_names(["rise", "torchray", "centre", "gradient"]) == ["rise", *TORCHRAY, "centre"]
    assert set(choose_names(["all"])) == set(METHODS) - set(BATCHED) - set(ATTENTION)
    assert choose_names(["attention"]) == list(ATTENTION)
    assert choose_names(["feature_permutation"]) == ["feature_permutation"]
    assert set(choose_metrics(["all"], [], None)) == set(METRICS)
    assert choose_metrics(None, ["pointing_game.tolerance=3"], 5) == {"pointing_game": {"tolerance": 3}}


def test_options_of_all_methods_and_of_one():
    layers, pairs = ["layer3", "gradient="], ["smooth=0.1", "rise.num_masks=5", "grad_cam.smooth=0.3"]
    names = ["centre", "rise", "grad_cam", "gradient"]
    chosen = make_methods(names, layers, pairs, "resnet18", "layer4", torchray=False)
    assert list(chosen) == names
    options = {name: dict(options) for name, (_, options) in chosen.items()}
    own = {"get_backward_gradient": get_pointing_gradient, "shared": True}
    assert options == {
        "centre": {},
        "rise": {"smooth": 0.1, "num_masks": 5},
        "grad_cam": {"smooth": 0.3, "saliency_layer": "layer3", **own},
        "gradient": {"smooth": 0.1, "saliency_layer": "", **own},
    }


@pytest.mark.parametrize(("arch", "layer"), [("scenes", "layer4"), ("scenes_vit", "patch_embed")])
def test_ablation_takes_the_positions_of_a_layer_of_the_embedded_networks(arch, layer):
    chosen = make_methods(["feature_ablation", "ss_cam"], [], [], arch, None, torchray=False)
    assert chosen["feature_ablation"][1]["saliency_layer"] == layer
    assert chosen["feature_ablation"][1]["layer_mask"].unique().tolist() == list(range(256))
    assert chosen["ss_cam"][1]["num_samples"] == 2


@pytest.mark.parametrize("arch", ["resnet50", "resnet50_voc", "vgg16_coco", "scenes"])
def test_layers_of_torchray(arch):
    chosen = make_methods(TORCHRAY, [], [], arch, "layer4", torchray=True)
    layers = {name: options.get("saliency_layer") for name, (_, options) in chosen.items()}
    earlier = {"r": "layer3", "v": "features.23", "s": "layer4"}[arch[0]]
    assert layers["excitation_backprop"] == layers["contrastive_excitation_backprop"] == earlier
    assert layers["grad_cam"] == ("features.29" if arch[0] == "v" else "layer4")
    assert layers["gradient"] is None
    asked = make_methods(TORCHRAY, ["grad_cam=layer2"], [], arch, "layer4", torchray=True)
    assert asked["grad_cam"][1]["saliency_layer"] == "layer2"


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*BATCHED, *ATTENTION)])
def test_every_method_takes_the_options_that_the_benchmark_gives_it(method):
    function, options = make_methods([method], [], few([method]), "scenes", None, torchray=False)[method]
    explainer = Explainer(function, options)
    explainer.check(method, scene_network())
    images = make_scene(0).image[None]
    maps, _ = explain_each(scene_network(), images, torch.tensor([[1, 4]]), {method: explainer})[method]
    assert maps.shape[:2] == (1, 2)


def test_a_method_s_maps_do_not_hang_on_which_others_are_computed():
    methods = make_methods([name for name in choose_names(None) if name != CENTRE], [], [], "scenes", None, True)
    explainers = {name: Explainer(*method) for name, method in methods.items()}
    images, targets = torch.stack([scene.image for scene in make_scenes(3)]), torch.tensor([[1, 4]] * 3)
    together = explain_each(scene_network(), images, targets, explainers)
    backwards = explain_each(scene_network(), images, targets, dict(reversed(explainers.items())))
    for name, explainer in explainers.items():
        alone, _ = explain_each(scene_network(), images, targets, {name: explainer})[name]
        assert torch.equal(together[name][0], alone)
        assert torch.equal(backwards[name][0], alone)
        apart = METHODS[name].function(scene_network(), images, targets, **explainer.passed)
        torch.testing.assert_close(apart, alone)


def test_the_help_names_every_metric():
    text = build_parser().format_help()
    assert all(metric in text.replace("\n", " ") for metric in METRICS)


def test_a_method_that_a_network_lacks_what_it_explains_is_left_out_of_groups(capsys, tmp_path):
    """CAM, of a transformer, which does not pool. Asked for by name, it is in the run, and fails."""
    few = ["--arch", "scenes_vit", "--limit", "1", "--gallery", "0"]
    every, cam = (make_setup(build_parser().parse_args([*few, "--method", name])) for name in ("all", "cam"))
    assert "cam" not in every.methods
    assert {"grad_cam", "eigen_cam"} <= every.methods.keys()
    assert "cam is left out: model=SceneTransformer lacks" in capsys.readouterr().err
    assert [*cam.methods] == ["cam"]
    with pytest.raises(ValueError, match=r"^method=\['attention'\] has no method for arch='scenes'"):
        make_setup(build_parser().parse_args(["--method", "attention"]))
    assert "cam" in make_setup(build_parser().parse_args(["--method", "all"])).methods
    assert main([*few, "--method", "cam", "--out", str(tmp_path)]) == 1
