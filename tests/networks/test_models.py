"""Networks of TorchRay's format: their files, shapes and preprocessing. The command line's tests have the others."""

from urllib.error import URLError

import pytest
import torch
from torch import nn

from saliency.networks.caffe import CAFFE_ARCHS, caffe_network, from_caffe
from saliency.networks.class_names import COCO_CLASSES, VOC_CLASSES
from saliency.networks.models import load_network, networks, preprocessing


def shapeless(arch, pooled=True):
    """The network without memory for its weights."""
    with torch.device("meta"):
        return caffe_network(arch, pooled).eval()


def on_meta(*size):
    return torch.zeros(1, 3, *size, device="meta")


def test_are_networks_with_a_preprocessing():
    assert set(CAFFE_ARCHS) == {"vgg16_voc", "vgg16_coco", "resnet50_voc", "resnet50_coco"} <= set(networks())
    for arch in CAFFE_ARCHS:
        wanted = preprocessing(arch)
        assert wanted.classes == (VOC_CLASSES if arch.endswith("voc") else COCO_CLASSES)
        assert (wanted.size, wanted.square, wanted.multi_label, wanted.caffe_resize) == (224, False, True, True)
        assert [value * 255 for value in wanted.mean] == pytest.approx([123.68, 116.779, 103.939])
        assert [value * 255 for value in wanted.std] == pytest.approx([1, 1, 1])
        assert shapeless(arch).get_submodule(wanted.layer)
    assert preprocessing("resnet50").layer is None
    assert not preprocessing("resnet50").caffe_resize


@pytest.mark.parametrize("arch", CAFFE_ARCHS)
def test_the_least_size(arch):
    least = preprocessing(arch).min_size
    assert preprocessing(arch, least).size == least
    with pytest.raises(ValueError, match=rf"size={least - 1} does not fit arch='{arch}'; .* {least} or more"):
        preprocessing(arch, least - 1)
    classes = len(preprocessing(arch).classes)
    assert shapeless(arch)(on_meta(least, least)).shape == (1, classes)
    if arch.startswith("vgg16"):
        with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
            shapeless(arch)(on_meta(least - 1, least))


@pytest.mark.parametrize(
    ("arch", "size", "shape"),
    [
        ("vgg16_voc", (224, 224), (1, 20, 1, 1)),
        ("vgg16_voc", (224, 298), (1, 20, 1, 4)),  # ceil(298 / 32) - 6
        ("vgg16_coco", (257, 225), (1, 80, 3, 2)),
        ("resnet50_voc", (224, 298), (1, 20, 1, 1)),
        ("resnet50_coco", (224, 224), (1, 80, 1, 1)),
    ],
)
def test_scores_of_every_place_or_their_mean(arch, size, shape):
    assert shapeless(arch, pooled=False)(on_meta(*size)).shape == shape
    assert shapeless(arch)(on_meta(*size)).shape == shape[:2]


def test_pooling_rounds_up_and_the_first_convolution_strides():
    network = shapeless("resnet50_voc")
    # 225 -> 113 by the first convolution; windows of 3 by steps of 2 without padding: ceil((113 - 3) / 2) + 1 = 56.
    assert network.maxpool(network.conv1(on_meta(225, 226))).shape[2:] == (56, 56)
    for layer in (network.layer2, network.layer3, network.layer4):
        assert (layer[0].conv1.stride, layer[0].conv2.stride) == ((2, 2), (1, 1))
    assert all(module.ceil_mode for module in shapeless("vgg16_voc").modules() if isinstance(module, nn.MaxPool2d))


def test_only_these_score_every_place():
    with pytest.raises(ValueError, match=r"pooled=False does not go with arch='resnet50'; expected one of vgg16_voc"):
        load_network("resnet50", pooled=False)


class TestFiles:
    def test_names_of_a_resnet(self):
        network = shapeless("resnet50_voc")
        renamed = {
            "conv1.weight": "conv1.weight",
            "bn1.0.running_mean": "bn1.running_mean",
            "bn1.1.weight": "bn1.weight",
            "layer1.0.bn2.1.bias": "layer1.0.bn2.bias",
            "layer1.0.downsample.0.weight": "layer1.0.downsample.0.weight",
            "layer1.0.downsample.1.0.running_var": "layer1.0.downsample.1.running_var",
            "layer1.0.downsample.1.1.weight": "layer1.0.downsample.1.weight",
        }
        assert set(renamed.values()) <= set(network.state_dict())
        state = {name: torch.zeros(network.state_dict()[new].shape) for name, new in renamed.items()}
        assert list(from_caffe(state, network)) == list(renamed.values())

    def test_names_and_shapes_of_vgg(self):
        network = shapeless("vgg16_voc")
        state = {
            "features.28.bias": torch.zeros(512),
            "classifier.0.weight": torch.zeros(4096, 25088, device="meta"),
            "classifier.2.weight": torch.zeros(4096, 4096, device="meta"),
            "classifier.4.weight": torch.zeros(20, 4096),
            "classifier.4.bias": torch.zeros(20),
        }
        found = {name: tensor.shape for name, tensor in from_caffe(state, network).items()}
        assert found == {
            "features.28.bias": (512,),
            "classifier.0.weight": (4096, 512, 7, 7),
            "classifier.3.weight": (4096, 4096, 1, 1),
            "classifier.6.weight": (20, 4096, 1, 1),
            "classifier.6.bias": (20,),
        }

    @pytest.mark.parametrize(("arch", "first"), [("vgg16_coco", "features.0.weight"), ("resnet50_voc", "conv1.weight")])
    def test_the_first_layer_takes_blue_green_red(self, arch, first):
        network = shapeless(arch)
        weight = torch.randn(network.state_dict()[first].shape)
        (found,) = from_caffe({first: weight}, network).values()
        for ours, theirs in ((0, 2), (1, 1), (2, 0)):
            assert torch.equal(found[:, ours], weight[:, theirs])

    def test_a_file_of_another_network(self, tmp_path):
        torch.save(load_network("squeezenet1_1").state_dict(), tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"weights='.*weights\.pth' do not fit arch='resnet50_voc'"):
            load_network("resnet50_voc", tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"weights='nowhere\.pth\.tar' is not a file"):
            load_network("resnet50_voc", "nowhere.pth.tar")

    def test_default_is_what_torchray_publishes(self, monkeypatch):
        urls = []

        def download(url, **options):
            urls.append(url)
            assert options["weights_only"]
            raise URLError("no network")

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
        for arch in ("resnet50_voc", "resnet50_coco"):
            with pytest.raises(ValueError, match=rf"could not be downloaded for arch='{arch}' \(.*no network"):
                load_network(arch, "DEFAULT")
        assert [url.split("/")[-1].split("-")[0] for url in urls] == ["resnet50_voc", "resnet50_coco"]
        assert all(url.startswith("https://dl.fbaipublicfiles.com/torchray/") for url in urls)
