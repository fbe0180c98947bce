"""TorchRay's scripts, written as its documentation writes them, run with the import changed and nothing else."""

import re

import pytest
import torch
from PIL import Image

from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.pointing_game import PointingGame, PointingGameBenchmark
from saliency.networks.class_names import COCO_CLASSES, VOC_CLASSES
from saliency.scenes import make_scene
from saliency.torchray import get_example_data, plot_example
from tests.evaluation.trees import COCO_IDS, coco_tree, voc_tree

# What changes: methods stand in the package, everything else that a script imports in one module.
IMPORTS = [(r"torchray\.attribution\.\w+", "saliency"), (r"torchray\.benchmark(\.pointing_game)?", "saliency.torchray")]

SCRIPTS = {
    "Grad-CAM": """
from torchray.attribution.grad_cam import grad_cam
from torchray.benchmark import get_example_data, plot_example

model, x, category_id, _ = get_example_data()
saliency = grad_cam(model, x, category_id, saliency_layer='features.29')
plot_example(x, saliency, 'grad-cam backprop', category_id, save_path='out/grad_cam.png')
""",
    "contrastive excitation backprop": """
from torchray.attribution.excitation_backprop import contrastive_excitation_backprop
from torchray.benchmark import get_example_data, plot_example

model, x, category_id, _ = get_example_data()
saliency = contrastive_excitation_backprop(
    model, x, category_id, saliency_layer='features.9', contrast_layer='features.30', classifier_layer='classifier.6')
plot_example(x, saliency, 'contrastive excitation backprop', category_id, save_path='out/contrastive.png')
""",
    "RISE": """
from torchray.attribution.rise import rise
from torchray.benchmark import get_example_data, plot_example

model, x, category_id, _ = get_example_data()
saliency = rise(model, x, num_masks=8)
saliency = saliency[:, category_id].unsqueeze(0)
plot_example(x, saliency, 'RISE', category_id, save_path='out/rise.png')
""",
    "extremal perturbations": """
from torchray.attribution.extremal_perturbation import extremal_perturbation, contrastive_reward
from torchray.benchmark import get_example_data, plot_example
import torch

model, x, category_id_1, category_id_2 = get_example_data()
masks_1, _ = extremal_perturbation(
    model, x, category_id_1, reward_func=contrastive_reward, areas=[0.12], max_iter=2)
masks_2, _ = extremal_perturbation(
    model, x, category_id_2, reward_func=contrastive_reward, areas=[0.12], max_iter=2)
saliency = torch.cat((masks_1, masks_2))
plot_example(
    torch.cat((x, x)), saliency, 'extremal', [category_id_1, category_id_2], save_path='out/extremal.png')
""",
    "a pointing game of one's own": """
from torchray.attribution.gradient import gradient
from torchray.benchmark.pointing_game import PointingGame
from torchray.benchmark import get_example_data

model, x, category_id_1, category_id_2 = get_example_data()
game = PointingGame(num_classes=8, tolerance=15)
for class_id in (category_id_1, category_id_2):
    saliency = gradient(model, x, class_id, resize=True, smooth=0.02)
    _, i = torch.max(saliency.view(-1), 0)
    point = (i.item() % saliency.shape[3], i.item() // saliency.shape[3])
    hit = game.evaluate(scene.class_mask(class_id), point)
    game.aggregate(hit, class_id)
print(game)
assert game.hits.sum() + game.misses.sum() == 2
accuracy = game.accuracy
""",
    "VOC": """
from torchray.attribution.linear_approx import linear_approx
from torchray.benchmark.pointing_game import PointingGameBenchmark
from torchray.benchmark import get_example_data
from torchvision.datasets import VOCDetection
from torchvision.transforms import ToTensor

model, _, _, _ = get_example_data()
dataset = VOCDetection(root, year='2007', image_set='test', transform=ToTensor())
game = PointingGameBenchmark(dataset, tolerance=3)
for x, label in dataset:
    names = sorted({found['name'] for found in label['annotation']['object']})
    for class_id in map(classes.index, names):
        saliency = linear_approx(model, x[None], class_id % 8, saliency_layer='', resize=tuple(x.shape[:0:-1]))
        i = saliency.view(-1).argmax().item()
        hit = game.evaluate(label, class_id, (i % saliency.shape[3], i // saliency.shape[3]))
        game.aggregate(hit, class_id)
print(game)
assert game.hits.sum() + game.misses.sum() == 3
accuracy = game.accuracy
""",
}
PHOTOS = {
    "000001": [("cat", (3, 2, 11, 10)), ("dog", (20, 12, 40, 30)), ("cow", (1, 1, 9, 9), True)],
    "000002": [("dog", (1, 1, 9, 30))],
}


def changed(script):
    for theirs, ours in IMPORTS:
        script = re.sub(rf"^from {theirs} import", f"from {ours} import", script, flags=re.MULTILINE)
    assert not re.search(r"^(from|import) torchray", script, flags=re.MULTILINE)
    return script


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_with_the_import_changed(name, tmp_path, monkeypatch, capsys):
    voc_tree(tmp_path, PHOTOS)
    monkeypatch.chdir(tmp_path)
    known = {"torch": torch, "scene": make_scene(2), "root": str(tmp_path), "classes": VOC_CLASSES}
    exec(compile(changed(SCRIPTS[name]), name, "exec"), known)
    pictures = list((tmp_path / "out").glob("*.png"))
    if "plot_example" in SCRIPTS[name]:
        (path,) = pictures
        with Image.open(path) as picture:
            assert min(picture.size) > 100
        assert known["saliency"].isfinite().all()
        assert known["saliency"].max() > known["saliency"].min()
    else:
        assert 0 <= known["accuracy"] <= 1
        assert "%" in capsys.readouterr().out


def test_six_scripts():
    assert len(SCRIPTS) == 6


def test_the_disc_is_closed_and_a_class_that_was_not_played_has_no_accuracy():
    game, mask = PointingGame(3, tolerance=5), torch.zeros(20, 20, dtype=torch.bool)
    mask[10, 10] = True
    points = [(10, 15), (13, 14), (7, 6), (10, 16), (14, 14)]  # at distances 5, 5, 5, 6 and 5.7
    assert [game.evaluate(mask, point) for point in points] == [1, 1, 1, -1, -1]
    assert game.evaluate(mask.to(torch.uint8), torch.tensor([10, 15])) == 1
    assert game.evaluate(mask & False, (10, 10)) == 0
    assert game.accuracy.isnan()
    for hit, label in ((1, 0), (1, 0), (-1, 0), (-1, 2), (0, 1)):
        game.aggregate(hit, label)
    assert game.class_accuracies.tolist() == pytest.approx([2 / 3, float("nan"), 0], nan_ok=True)
    assert game.mean_class_accuracy.item() == game.accuracy.item() == pytest.approx(1 / 3)
    assert str(game) == "33.3% [0:66.7% 2: 0.0%]"
    game.reset()
    assert game.hits.sum() == game.misses.sum() == 0


def test_a_benchmark_of_coco_and_of_a_data_set_of_the_package(tmp_path):
    from torchvision.datasets import CocoDetection

    outline = [[4, 4, 10, 4, 10, 10, 4, 10]]
    cat, dog = (COCO_IDS[COCO_CLASSES.index(name)] for name in ("cat", "dog"))
    objects = [
        {"category_id": cat, "bbox": [2, 2, 10, 10], "segmentation": outline},
        {"category_id": dog, "bbox": [0, 12, 40, 18], "segmentation": [[0, 12, 40, 12, 40, 30, 0, 30]]},
    ]
    coco_tree(tmp_path, {"a.jpg": objects})
    folder = str(tmp_path / "val2014")
    dataset = CocoDetection(folder, str(tmp_path / "annotations" / "instances_val2014.json"))
    (_, label), (cat, dog) = dataset[0], map(COCO_CLASSES.index, ("cat", "dog"))
    game, hard = PointingGameBenchmark(dataset, tolerance=1), PointingGameBenchmark(dataset, 1, difficult=True)
    assert game.num_classes == 80
    # Inside, at the edge, and in the box but outside of the outline.
    assert [game.evaluate(label, cat, point) for point in ((5, 5), (10, 5), (2, 2))] == [1, 1, -1]
    assert (game.evaluate(label, dog, (5, 20)), game.evaluate(label, 0, (5, 20))) == (1, 0)
    assert (hard.evaluate(label, cat, (5, 5)), hard.evaluate(label, dog, (5, 20))) == (1, 0)
    assert game.evaluate([], cat, (5, 5)) == 0
    scenes = load_dataset("scenes", scenes=3)
    of_scenes = PointingGameBenchmark(scenes)
    annotation = scenes.annotations[2]
    mask = make_scene(2).class_mask(annotation.instances[0].label)
    y, x = mask.nonzero()[0].tolist()
    assert of_scenes.evaluate(annotation, annotation.instances[0].label, (x, y)) == 1


def test_a_class_of_which_all_objects_are_difficult_is_no_case(tmp_path):
    from torchvision.datasets import VOCDetection

    voc_tree(tmp_path, PHOTOS)
    dataset = VOCDetection(str(tmp_path), year="2007", image_set="test")
    game = PointingGameBenchmark(dataset, tolerance=0)
    _, label = dataset[0]
    cat, cow, dog = map(VOC_CLASSES.index, ("cat", "cow", "dog"))
    # Boxes count from 1 and hold their last pixel: the cat is at x 2 to 10 and y 1 to 9.
    assert [game.evaluate(label, cat, point) for point in ((2, 1), (10, 9), (1, 1), (11, 9))] == [1, 1, -1, -1]
    assert game.evaluate(label, cow, (3, 3)) == 0
    assert PointingGameBenchmark(dataset, 0, difficult=True).evaluate(label, dog, (30, 20)) == 0  # over a quarter


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PointingGame(0), "num_classes=0"),
        (lambda: PointingGame(3, -1), "tolerance=-1"),
        (lambda: PointingGame(3).aggregate(2, 0), "hit=2 is not a result"),
        (lambda: PointingGame(3).aggregate(1, 3), "class_id=3 is not a class; expected 0 to 2"),
        (lambda: PointingGame(3).evaluate(torch.ones(3), (1, 1)), "mask=a tensor of shape"),
        (lambda: PointingGame(3).evaluate(torch.ones(3, 3), (1,)), "point="),
        (lambda: PointingGame(3).evaluate(torch.ones(3, 3), None), "point=None"),
        (lambda: PointingGameBenchmark(3), "dataset=3 has no annotations"),
        (lambda: PointingGameBenchmark(load_dataset("scenes", scenes=1)).evaluate({}, 0, (1, 1)), "label={} cannot"),
        (lambda: PointingGameBenchmark(load_dataset("scenes", scenes=1)).evaluate(3, 0, (1, 1)), "label=3 cannot"),
        (lambda: get_example_data(shape=0), "shape=0"),
        (lambda: get_example_data("vgg"), "arch='vgg'"),
        (lambda: plot_example(torch.ones(1, 3, 4, 4), torch.ones(2, 1, 4, 4), "m", 3), "saliency=a tensor"),
        (lambda: plot_example(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4), 3, 3), "method=3"),
        (lambda: plot_example(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4), "m", None), "category_id=None"),
        (lambda: plot_example(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4), "m", torch.tensor(0.5)), "category_id=a"),
        (lambda: plot_example(torch.ones(0, 3, 4, 4), torch.ones(0, 1, 4, 4), "m", 3), "input=a tensor"),
        (lambda: plot_example(torch.ones(1, 3, 0, 4), torch.ones(1, 1, 4, 4), "m", 3), "input=a tensor"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_example_of_another_network_and_photo(tmp_path):
    from saliency.images import to_picture

    path = tmp_path / "photo.png"
    to_picture(make_scene(4).image).save(path)
    model, x, first, second = get_example_data(photo=path)
    assert (x.shape, {first, second}) == ((1, 3, 128, 128), {3, 6})
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model, x, *_ = get_example_data("squeezenet1_1", 64, weights=None)
    assert (model(x).shape, x.shape) == ((1, 1000), (1, 3, 64, 64))


@pytest.mark.parametrize("classes", [3, [3], torch.tensor(3), torch.tensor([3, 3]), (torch.tensor(3),)])
def test_classes_of_an_example_and_bytes(classes):
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    figure = plot_example(pixels, torch.rand(2, 1, 4, 4), "grad_cam", classes)
    assert [axis.get_ylabel() for axis in figure.axes] == ["category 3", "", "category 3", ""]


def test_a_window_is_opened_where_there_is_one(monkeypatch):
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().canvas.manager.canvas.figure))
    figure = plot_example(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 4, 4), "grad_cam", 3, show_plot=True)
    assert shown == [figure]
    pyplot.close("all")
