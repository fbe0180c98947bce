"""TorchRay's benchmark: networks from files in its format, its preprocessing, annotations and difficult cases."""

import importlib
import re
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import saliency
from saliency.evaluation.cases import class_mask, is_difficult, labels_of
from saliency.evaluation.datasets import load_dataset
from saliency.networks.models import load_network, preprocessing
from saliency.networks.preprocessing import input_size, preprocess
from tests.evaluation.trees import COCO_IDS, coco_tree, voc_tree

pytest.importorskip("torchray")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained'|Arguments other than a weight enum:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),  # pycocotools
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]

SHARED = Path(__file__).parents[3] / "shared" / "data"
CLASSES = {"voc": 20, "coco": 80}


def peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it opens its files as Python 3.11 no longer likes
        return importlib.import_module(f"torchray.benchmark.{name}")


def random_tensors(shapes):
    """Kaiming's weights, so that activations neither vanish nor explode; statistics and biases near 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            found[name] = torch.randn(shape, generator=generator).mul_((2 / shape[1:].numel()) ** 0.5)
        elif name.endswith("running_var") or (".1.weight" in name and "bn" in name):
            found[name] = torch.rand(shape, generator=generator) * 0.5 + 0.5
        else:
            found[name] = torch.randn(shape, generator=generator) * 0.1
    return found


def caffe_resnet50(classes):
    """A checkpoint in TorchRay's format: every normalisation is two layers, statistics and scale."""

    def split(name):
        part = "0" if "running" in name else "1"
        return re.sub(r"(bn\d|downsample\.1)\.", rf"\1.{part}.", name)

    model = torchvision.models.resnet50(num_classes=classes)
    shapes = {split(name): tensor.shape for name, tensor in model.state_dict().items() if tensor.ndim}
    return random_tensors({**shapes, "conv1.bias": torch.Size([64])})


def caffe_vgg16(classes):
    """A checkpoint in TorchRay's format: no dropout layers are counted, and the classifier holds convolutions."""
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    widths |= {17: (256, 512), **dict.fromkeys((19, 21, 24, 26, 28), (512, 512))}
    layers = {f"features.{place}": (out, given, 3, 3) for place, (given, out) in widths.items()}
    heads = {
        "classifier.0": (4096, 512, 7, 7),
        "classifier.2": (4096, 4096, 1, 1),
        "classifier.4": (classes, 4096, 1, 1),
    }
    shapes = {}
    for name, shape in {**layers, **heads}.items():
        shapes |= {f"{name}.weight": torch.Size(shape), f"{name}.bias": torch.Size(shape[:1])}
    return random_tensors(shapes)


CHECKPOINTS = {"resnet50": caffe_resnet50, "vgg16": caffe_vgg16}


def photos(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    ("arch", "dataset"),
    [("resnet50", "voc"), ("resnet50", "coco"), pytest.param("vgg16", "voc", marks=pytest.mark.slow)],
)
def test_networks(arch, dataset, monkeypatch, tmp_path):
    """From the same file, at every place of photos that are not square, and on average."""
    state = CHECKPOINTS[arch](CLASSES[dataset])
    urls = []

    def download(url, **_):
        urls.append(url)
        return {name: tensor.clone() for name, tensor in state.items()}

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    theirs = peer("models").get_model(arch, dataset, convert_to_fully_convolutional=True)
    ours = load_network(f"{arch}_{dataset}", "DEFAULT", pooled=False)
    assert urls[0] == urls[1]
    assert not ours.training
    inputs = photos((224, 288), (239, 224))
    with torch.no_grad():
        expected = [theirs(input) for input in inputs]
        for input, output in zip(inputs, expected, strict=True):
            assert output.shape[:2] == (1, CLASSES[dataset])
            torch.testing.assert_close(ours(input), output, rtol=1e-5, atol=1e-5 * output.abs().max())
        if arch == "resnet50":
            torch.save(state, tmp_path / "resnet50.pth.tar")
            pooled = load_network(f"{arch}_{dataset}", tmp_path / "resnet50.pth.tar")
        else:
            pooled = load_network(f"{arch}_{dataset}", "DEFAULT")
            assert expected[0].shape[3] > 1
        averages = expected[0].mean((2, 3))
        torch.testing.assert_close(pooled(inputs[0]), averages, rtol=1e-5, atol=1e-5 * averages.abs().max())


def test_pointing_gradient(monkeypatch):
    """The maps that its published figures are made of."""
    state = caffe_resnet50(20)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: dict(state))
    theirs, ours = (
        peer("models").get_model("resnet50", "voc", True),
        load_network("resnet50_voc", "DEFAULT", pooled=False),
    )
    common, gradient = (importlib.import_module(f"torchray.attribution.{name}") for name in ("common", "gradient"))
    (input,) = photos((224, 256))
    pieces = {"saliency_layer": "layer3", "resize": True, "smooth": 0.02}
    expected = gradient.gradient(theirs, input, 5, get_backward_gradient=common.get_pointing_gradient, **pieces)
    found = saliency.gradient(ours, input, 5, get_backward_gradient=saliency.get_pointing_gradient, **pieces)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (480, 640), (333, 334), (100, 100), (60, 91), (640, 427)])
def test_preprocessing(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = peer("models").get_transform("voc", 224)(Image.fromarray(pixels))
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for arch in ("vgg16_voc", "resnet50_coco"):
        found = preprocess(image, preprocessing(arch))
        assert found.shape[1:] == input_size(size, preprocessing(arch))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_voc_annotations(tmp_path):
    photos = {
        "000001": [("dog", (1, 1, 40, 30)), ("person", (3, 5, 7, 9)), ("person", (20, 20, 30, 29), True)],
        "000004": [("tvmonitor", (40, 30, 40, 30), True), ("sofa", (2, 2, 2, 30))],
        "000008": [("chair", (9, 9, 12, 13), True), ("chair", (2, 2, 2, 30), True)],
    }
    voc_tree(tmp_path, photos)
    data = peer("datasets")
    theirs = torchvision.datasets.VOCDetection(tmp_path, "2007", "test")  # TorchRay's own class fails by now
    game = peer("pointing_game").PointingGameBenchmark(theirs)
    ours = load_dataset("voc2007", tmp_path)
    assert list(ours.classes) == data.VOC_CLASSES
    for index, entry in enumerate(ours.annotations):
        image, label = theirs[index]
        assert data.voc_as_image_name(label) == entry.name
        assert data.voc_as_image_size(label)[::-1] == entry.size
        torch.testing.assert_close(torchvision.transforms.functional.to_tensor(image), ours.image(index))
        present = data.voc_as_class_ids(label)
        skipped = {key for key in present if game.evaluate(label, key, (0, 0)) == 0}
        assert set(present) - skipped == set(labels_of(entry))
        for key in present:
            assert torch.equal(data.voc_as_mask(label, key), class_mask(entry, key))


def test_coco_annotations(tmp_path):
    polygons = [[2, 3, 10.5, 3, 10, 8.7, 2, 8]], [[20.5, 10.5, 35.5, 10.5, 35.5, 25.5], [1, 1, 5, 1, 5, 5]]
    crowd = {"size": [30, 40], "counts": [150, 30, 1020]}
    entries = [
        {"category_id": COCO_IDS[label], "segmentation": segmentation, "bbox": [1, 1, 5, 5], "iscrowd": flag}
        for label, segmentation, flag in ((0, polygons[0], 0), (0, crowd, 1), (79, polygons[1], 0), (12, crowd, 1))
    ]
    coco_tree(tmp_path, {"COCO_val2014_000000000007.jpg": entries})
    theirs = peer("datasets").get_dataset("coco", "val2014", tmp_path, tmp_path / "annotations")
    ours = load_dataset("coco2014", tmp_path)
    (entry,) = ours.annotations
    image, label = theirs[0]
    torch.testing.assert_close(torchvision.transforms.functional.to_tensor(image), ours.image(0))
    assert sorted(theirs.as_class_ids(label)) == labels_of(entry) == [0, 12, 79]
    for key in (0, 12, 79):
        assert torch.equal(theirs.as_mask(label, key), class_mask(entry, key))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")
def test_difficult_cases_are_those_of_its_list():
    """Photos of COCO train2017 that are in val2014: the flags come with TorchRay, from the paper's authors."""
    lines = (resources.files("torchray.benchmark") / "pointing_game_ebp_coco_difficult.txt").read_text().splitlines()
    flags = {name: [flag == "1" for flag in rest] for name, *rest in (line.split("\t") for line in lines)}
    dataset = load_dataset("coco2017", SHARED / "coco", split="train2017")
    listed = {f"COCO_val2014_{Path(entry.name).stem}": entry for entry in dataset.annotations}
    cases = [
        (is_difficult(entry, label), flags[name][label])
        for name, entry in listed.items()
        if name in flags
        for label in labels_of(entry)
    ]
    assert len(cases) == 119
    assert sum(flag for _, flag in cases) == 93
    assert all(ours == theirs for ours, theirs in cases)
