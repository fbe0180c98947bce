"""From a photo to maps in one call: the same maps as the methods give, preprocessed as the network's own transform."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights, ViT_B_16_Weights, mobilenet_v2, resnet18

import saliency
from saliency import METHODS, Explanation, Preprocessing, compare, explain, preprocessing_of, smooth_grad
from saliency.explaining.viewer import viewer_page
from saliency.images import as_image, to_picture
from saliency.networks.libraries import build_elsewhere
from saliency.networks.preprocessing import preprocess
from saliency.networks.published import as_preprocessing, processor_preprocessing, timm_preprocessing
from saliency.scenes import CLASSES, make_scene, scene_network

pytestmark = pytest.mark.filterwarnings("ignore:saliency_layer=")  # of maps that are zero
IMAGE = make_scene(1).image
SHARED = ["gradient", "guided_backprop", "grad_cam", "excitation_backprop", "layer_cam"]


@pytest.fixture(scope="module")
def network():
    return scene_network()


def photo(height=90, width=120):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("target", [2, ["circle", 2, "top2"], lambda output: output[:, 0] - output[:, 1]])
def test_the_maps_are_those_of_the_methods(network, target):
    found = explain(network, IMAGE, target, SHARED)
    for name in SHARED:
        expected = METHODS[name].function(network, found.input, found.target, found.layer[name])
        assert found.maps[name].shape[:2] == (1, len(found.scores))
        torch.testing.assert_close(found.maps[name], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.input, IMAGE[None])


def test_methods_share_one_forward_pass(network):
    passes = []
    hook = network.register_forward_pre_hook(lambda *_: passes.append(1))
    explain(network, IMAGE, None, SHARED)
    passes.clear()
    explain(network, IMAGE, None, SHARED)  # the layer is remembered
    hook.remove()
    assert len(passes) == 1


def test_targets_by_index_by_name_and_by_score(network):
    with torch.no_grad():
        scores = network(IMAGE[None])[0].sigmoid()
    best = int(scores.argmax())
    found = explain(network, IMAGE)
    assert found.target == best
    assert found.scores[0].name == CLASSES[best]
    assert found.scores[0].value == pytest.approx(float(scores[best]), rel=1e-5)
    assert [score.class_index for score in found.predicted] == scores.argsort(descending=True)[:5].tolist()
    assert "highest score" in found.why[1]
    assert explain(network, IMAGE, CLASSES[3]).target == 3
    assert explain(network, IMAGE, [CLASSES[3], 1]).target.tolist() == [[3, 1]]


def test_layers_by_method_and_in_a_list(network):
    found = explain(network, IMAGE, 0, ["grad_cam", "gradient"], {"grad_cam": ["layer3", "layer4"]})
    assert found.layer == {"grad_cam layer3": "layer3", "grad_cam layer4": "layer4", "gradient": ""}
    torch.testing.assert_close(found.maps["grad_cam layer3"], saliency.grad_cam(network, found.input, 0, "layer3"))


def test_functions_wrapped_methods_and_options(network):
    calm = smooth_grad(saliency.gradient, n_samples=2)
    found = explain(network, IMAGE, 0, {"calm": calm, "rise": saliency.rise_class}, num_masks=20, smooth=0.02)
    torch.testing.assert_close(found.maps["calm"], calm(network, IMAGE[None], 0, smooth=0.02))
    torch.testing.assert_close(
        found.maps["rise"], saliency.rise_class(network, IMAGE[None], 0, num_masks=20, smooth=0.02)
    )
    mine = explain(network, IMAGE, 0, [lambda model, input, target: input[:, :1]])
    assert torch.equal(mine.maps["lambda"], IMAGE[None, :1])


def test_what_refuses_is_left_out_with_a_warning(network):
    with pytest.warns(UserWarning, match=r"^attention_rollout is left out: model=SceneNet has no attention"):
        found = explain(network, IMAGE, 0, ["attention_rollout", "gradient"])
    assert list(found.maps) == ["gradient"]
    assert list(found.refused) == ["attention_rollout"]
    with pytest.raises(ValueError, match="has no attention"):
        explain(network, IMAGE, 0, ["attention_rollout"])


def test_every_way_to_hold_an_image(network, tmp_path):
    picture = to_picture(IMAGE)
    picture.save(tmp_path / "scene.png")
    pixels = np.asarray(picture)
    expected = explain(network, tmp_path / "scene.png", 0)
    assert expected.photo == "scene"
    ways = [picture, pixels, pixels / np.float32(255), torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    ways += [str(tmp_path / "scene.png"), as_image(picture)[None], pixels.transpose(2, 0, 1)]
    for way in ways:
        torch.testing.assert_close(explain(network, way, 0).maps["grad_cam"], expected.maps["grad_cam"])


def test_a_normalised_tensor_is_the_input_itself():
    preprocessing = Preprocessing(128, 16, False, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), CLASSES)
    input = preprocess(IMAGE, preprocessing)[None]
    found = explain(scene_network(), input, 0, preprocessing=preprocessing)
    assert torch.equal(found.input, input)
    torch.testing.assert_close(found.picture, IMAGE)
    with pytest.raises(ValueError, match=r"^image=a tensor .* outside \[0, 1\], as a normalised image does"):
        explain(scene_network(), input, 0)


def test_a_network_of_grey_images():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    found = explain(model, torch.rand(20, 30), 1, ["gradient"], mean=(0.1,), std=(0.3,), size=20, classes=list("abcd"))
    assert found.input.shape == (1, 1, 20, 30)
    assert found.scores[0].name == "b"


ASKED = {"mean": 0.5, "std": 0.5, "size": 16}
REFUSED = {
    "preprocessing=None is not known of model=Sequential; expected mean=, std= and size=": {},
    "preprocessing=3 says nothing of a size": {"preprocessing": 3},
    "mean='a' does not fit 3 channels": {**ASKED, "mean": "a"},
    "size=0 is not a positive number": {**ASKED, "size": 0},
    "methods='gradcam' is unknown; did you mean 'grad_cam'?": {**ASKED, "methods": "gradcam"},
    "methods=[] is empty": {**ASKED, "methods": []},
    "n_step=3 is an option of none of the methods (did you mean 'n_steps'?)": {
        **ASKED,
        "methods": "conductance",
        "n_step": 3,
    },
    "saliency_layer='layr' is not a layer of the model": {**ASKED, "saliency_layer": "layr"},
    "saliency_layer='gradcam' is unknown; did you mean 'grad_cam'?": {**ASKED, "saliency_layer": {"gradcam": "0"}},
    "target='tabbi' is unknown": {**ASKED, "target": "tabbi", "classes": ["tabby", "dog", "cow"]},
    "image=a tensor of shape (2, 3, 20, 20) holds 2 images": {**ASKED, "image": torch.rand(2, 3, 20, 20)},
    "photo='nowhere.png' is not a file": {**ASKED, "image": "nowhere.png"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_errors_name_the_argument(message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    given = {"image": torch.rand(3, 20, 20), **REFUSED[message]}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        explain(model, **given)


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1])
@pytest.mark.parametrize("size", [(300, 410), (120, 90), (40, 500)])
def test_preprocessed_as_torchvisions_transform(weights, size):
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    preprocessing = as_preprocessing(weights, nn.Identity())
    found = preprocess(image.float() / 255, preprocessing, crop=True)
    torch.testing.assert_close(found, weights.transforms()(image), atol=0.51 / 255 / 0.22, rtol=0)  # it rounds to bytes
    assert preprocessing.classes[243] == "bull mastiff"


def test_networks_are_recognised():
    preprocessing, source = preprocessing_of(resnet18(num_classes=7))  # a head of one's own
    assert source == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert (preprocessing.resize, preprocessing.size) == (256, 224)
    assert preprocessing_of(mobilenet_v2())[1] == "torchvision's MobileNet_V2_Weights.IMAGENET1K_V2"
    assert preprocessing_of(scene_network())[0].classes == CLASSES
    assert preprocessing_of(nn.Identity()) is None


class Processor:
    """As transformers' have it."""

    image_mean, image_std, do_normalize, resample = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2], True, 3

    def __init__(self, **own):
        vars(self).update(own)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"size": {"height": 32, "width": 32}}, (32, None, True)),
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
            (32, 40, True),
        ),
        ({"size": {"shortest_edge": 28}, "crop_pct": 0.875}, (28, 32, True)),
    ],
)
def test_preprocessing_of_processors(own, expected):
    found = processor_preprocessing(Processor(**own), ["a"])
    assert (found.size, found.resize, found.square) == expected
    assert (found.mean, found.interpolation) == ((0.5, 0.4, 0.3), "bicubic")


def test_a_processor_to_bgr_is_refused():
    own = {"size": {"shortest_edge": 32}, "do_flip_channel_order": True}
    with pytest.raises(ValueError, match=r"^preprocessing=Processor makes BGR of a photo; expected RGB, or"):
        explain(resnet18(), torch.rand(3, 32, 32), preprocessing=Processor(**own))


@pytest.mark.zoo
def test_timm_and_transformers(tmp_path):
    """Preprocessed as the libraries' own transforms do, 8-bit rounding aside."""
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    model = timm.create_model("resnet18.a1_in1k", pretrained=False).eval()
    preprocessing, source = preprocessing_of(model)
    assert (source, preprocessing.classes[243]) == ("timm's resnet18", "bull mastiff")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    soft = photo(260, 330).point(lambda value: 64 + value // 2)  # Pillow cuts overshoots off between its two passes
    ours = preprocess(as_image(soft), preprocessing, crop=True)
    torch.testing.assert_close(ours, transform(soft), atol=0.03, rtol=0)
    assert timm_preprocessing(model.pretrained_cfg).resize == preprocessing.resize

    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    config.image_size, config.id2label = 32, {0: "cat", 1: "dog"}
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    loaded, preprocessing = saliency.load_network(f"hf:{tmp_path}", "DEFAULT"), saliency.preprocessing(f"hf:{tmp_path}")
    expected = processor(photo(32, 32), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(as_image(photo(32, 32)), preprocessing), expected, atol=1e-4, rtol=0)
    found = explain(loaded, photo(), "dog", ["attention_rollout", "gradient"], preprocessing=processor)
    assert list(found.maps) == ["attention_rollout", "gradient"]


def test_libraries_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^arch='timm:resnet18' needs timm, which is not installed"):
        build_elsewhere("timm:resnet18", False)


def test_compare_networks(network):
    found = compare({"a": network, "b": scene_network(False)}, IMAGE, None, ["gradient", "grad_cam"], "layer3")
    assert isinstance(found, Explanation)
    assert list(found.maps) == ["a gradient", "a grad_cam", "b gradient", "b grad_cam"]
    own = explain(network, IMAGE, None, ["gradient"], "layer3")
    torch.testing.assert_close(found.maps["a gradient"], own.maps["gradient"])
    assert found.target == own.target
    assert list(compare([network, network], IMAGE, 0).maps) == ["SceneNet grad_cam", "SceneNet 2 grad_cam"]
    assert list(compare(network, IMAGE, 0, ["gradient", "rise"], num_masks=10).maps) == ["gradient", "rise"]


@pytest.mark.parametrize("suffix", ["png", "npz", "html"])
def test_saving(network, tmp_path, suffix):
    found = explain(network, IMAGE, [0, 1], ["grad_cam", "gradient"])
    found.save(tmp_path / "new" / f"found.{suffix}")
    if suffix == "npz":
        with np.load(tmp_path / "new/found.npz") as maps:
            assert all(np.array_equal(maps[name], found.maps[name].numpy()) for name in ("grad_cam", "gradient"))
    elif suffix == "png":
        with Image.open(tmp_path / "new/found.png") as picture:
            assert picture.width <= 1600
            assert picture.height <= 900
        assert found._repr_png_().startswith(b"\x89PNG")
        assert len(found.figure().axes) == 5
        assert repr(found).startswith(f"image: {found.scores[0]}, {found.scores[1]}")
    else:
        assert (tmp_path / "new/found.html").read_text("utf-8") == viewer_page([found.viewed()])
    with pytest.raises(ValueError, match=r"has no known suffix; expected \.html, \.npz or one of"):
        found.save(tmp_path / "found.doc")


def test_many_methods_fit_on_a_screen(network):
    found = explain(network, IMAGE, [0, 1], dict.fromkeys(map(str, range(20)), saliency.gradient))
    width, height = found.figure().bbox.size
    assert width <= 1600
    assert height <= 900


def test_the_package_imports_torch_alone():
    code = (
        "import sys, saliency\n"
        "loaded = [name for name in ('PIL', 'torchvision', 'matplotlib') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert 'explain' in dir(saliency) and 'saliency.images' not in sys.modules\n"
        "assert saliency.explain is saliency.explain and 'saliency.images' in sys.modules\n"
        "try: saliency.nothing\n"
        "except AttributeError as error: assert str(error) == \"module 'saliency' has no attribute 'nothing'\"\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_careless_names_and_deviations_are_refused(network):
    def one(model, input, target):
        return torch.zeros(1, 1, 2, 2)

    def two(model, input, target):
        return torch.ones(1, 1, 2, 2)

    two.__name__ = "one"
    with pytest.raises(ValueError, match="methods='one' is the name of two of them"):
        explain(network, IMAGE, 0, [one, two])
    with pytest.raises(ValueError, match="std=0 is not a deviation"):
        explain(network, IMAGE, std=0)


def test_modules_and_tensors_are_what_their_names_and_indices_are(network):
    layers = ["layer3", "layer4"]
    named = explain(network, IMAGE, [0, 1], ["grad_cam"], layers)
    given = explain(network, IMAGE, torch.tensor([[0, 1]]), ["grad_cam"], [network.layer3, network.layer4])
    assert given.layer == named.layer == {f"grad_cam {name}": name for name in layers}
    assert all(torch.equal(given.maps[name], maps) for name, maps in named.maps.items())
    with pytest.raises(ValueError, match="saliency_layer"):
        explain(network, IMAGE, 0, ["grad_cam"], nn.ReLU())
