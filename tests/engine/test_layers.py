"""Layers: found by name through every wrapper; the default is the one that a person would choose."""

import pytest
import torch
from torch import nn

import saliency
from saliency import find_layer, get_module
from saliency.engine.layers import resolve_layer, unwrap
from tests import cases
from tests.cases import MODEL_CASES


def model() -> nn.Module:
    return cases.RESIDUAL.model()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def test_get_module_by_the_names_of_named_modules():
    net = cases.TRANSFORMER.model()
    for name, module in net.named_modules():
        assert get_module(net, name) is module
        assert resolve_layer(net, name) is module
        assert get_module(net, module) is module
    assert get_module(net, "blocks.0.norm") is None
    assert get_module(net, "blocks.7") is None
    assert get_module(net, "forward") is None
    assert get_module(net, "token") is None


def test_a_module_without_children_is_still_a_module():
    """The empty Sequential of a shortcut counts as false."""
    net = model()
    assert len(net.shortcut) == 0
    assert get_module(net, "shortcut") is net.shortcut
    assert saliency.gradient(net, cases.RESIDUAL.input(), 1, "shortcut").shape == (2, 1, 6, 7)


def test_one_module_under_two_names():
    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential()
    net.first, net.second = shared, nn.Sequential(shared)
    for name in ("first", "second.0"):
        assert get_module(net, name) is shared
        assert resolve_layer(net, name) is shared


@pytest.mark.parametrize(
    "wrap", [compiled, nn.DataParallel, lambda m: nn.DataParallel(compiled(m)), lambda m: compiled(nn.DataParallel(m))]
)
def test_wrappers(wrap):
    net = model()
    wrapped = wrap(net)
    assert unwrap(wrapped) is net
    for name in ("conv", "module.conv", "_orig_mod.conv", "module._orig_mod.conv", "_orig_mod.module.conv"):
        assert get_module(wrapped, name) is net.conv, name
        assert resolve_layer(wrapped, name) is net.conv, name
    assert resolve_layer(wrapped, net.conv) is net.conv
    assert resolve_layer(wrapped, wrapped) is net


def test_a_compiled_layer_goes_by_its_plain_name():
    net = cases.IN_PLACE.model()
    inner = net.features
    net.features = compiled(inner)
    for name in ("features", "features._orig_mod"):
        assert resolve_layer(net, name) is inner
    for name in ("features.0", "features._orig_mod.0"):
        assert resolve_layer(net, name) is inner[0]
    assert resolve_layer(net, net.features) is inner


def test_a_child_called_module():
    net = nn.Sequential()
    net.module = nn.Sequential(nn.ReLU())
    assert get_module(net, "module.0") is net.module[0]
    assert get_module(nn.DataParallel(net), "module.0") is net.module[0]
    assert get_module(nn.DataParallel(net), "module.module.0") is net.module[0]


def test_distributed_wrappers_are_unwrapped():
    net = model()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = net
    assert unwrap(wrapped) is net


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("layr", "layer"),
        ("block.1", "blocks.1"),
        ("blocks.1.atention", "blocks.1.attention"),
        ("Head", "head"),
        ("patch", "patches"),
    ],
)
def test_did_you_mean(name, near):
    net = cases.TRANSFORMER.model()
    net.layer = nn.Identity()
    with pytest.raises(ValueError, match=rf"saliency_layer='{name}' .*did you mean '{near}'\?.*expected .*\.$"):
        resolve_layer(net, name)
    with pytest.raises(ValueError, match=rf"^contrast_layer='{name}' "):
        resolve_layer(net, name, "contrast_layer")


@pytest.mark.parametrize("wrong", [0, 1.5, True, ("conv",), b"conv", object, nn.ReLU])
def test_what_is_no_layer(wrong):
    with pytest.raises(ValueError, match=r"^saliency_layer=.*expected .*\.$"):
        resolve_layer(model(), wrong)


def test_a_layer_of_another_model():
    with pytest.raises(ValueError, match=r"^saliency_layer=Conv2d is not part of the model"):
        resolve_layer(model(), model().conv)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match=r"^saliency_layer='conv' .*expected .*\.$"):
        resolve_layer(nn.ReLU(), "conv")


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
def test_find_layer_on_tiny_models(case):
    input, options = case.input(), case.options(torch.float64)
    inputs = input if isinstance(input, tuple) else (input,)
    extra = (options["additional_forward_args"],) if options else ()
    net = case.model()
    found = find_layer(net, *inputs, *extra, **options.get("forward_kwargs", {}))
    assert found == case.layers[1]
    assert get_module(net, found) is not None


def test_find_layer_passes_over_poolings_and_single_positions():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 5, 1),
        nn.Flatten(),
    )
    assert find_layer(net, torch.rand(2, 3, 8, 10)) == "1"
    assert find_layer(compiled(net), torch.rand(2, 3, 8, 10)) == "1"
    assert find_layer(nn.DataParallel(net), torch.rand(2, 3, 8, 10)) == "1"


def test_find_layer_without_grid():
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), nn.Flatten()):
        with pytest.raises(ValueError, match=r"saliency_layer=None .*expected .*\.$"):
            find_layer(net, torch.rand(2, 3, 2, 2))


# What a person would choose: the last block before the grid is averaged away (the activation behind it where that is a
# module of its own); in a ViT the normalisation before the last attention: behind it the class token is alone.
TORCHVISION = {
    "resnet18": ("layer4", 64),
    "vgg11": ("features", 64),
    "densenet121": ("features", 64),
    "mobilenet_v3_small": ("features", 64),
    "squeezenet1_1": ("classifier.2", 64),
    "convnext_tiny": ("features", 64),
    "swin_t": ("permute", 64),
    "vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", 224),
    "googlenet": ("inception5b", 64),
    "efficientnet_b0": ("features", 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_find_layer_on_torchvision_models(name):
    models = pytest.importorskip("torchvision.models")
    expected, size = TORCHVISION[name]
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = getattr(models, name)(weights=None, **options).eval()
    if name == "vit_b_16":
        nn.init.normal_(net.heads.head.weight, std=0.02)  # made as zeros: no score would depend on anything
    assert find_layer(net, torch.randn(1, 3, size, size)) == expected
