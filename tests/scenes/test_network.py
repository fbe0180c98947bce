"""The embedded networks: their weights, their layers, and how well they know scenes they never saw."""

from pathlib import Path

import pytest
import torch

from saliency import find_layer
from saliency.scenes import CLASSES, SceneNet, SceneTransformer, make_scene, make_scenes, scene_network
from saliency.scenes.network import VIT_WEIGHTS, WEIGHTS
from saliency.scenes.precision import average_precision

# The name of the embedded weights, their class and file, and the mean average precision that is asked of them.
NETWORKS = {True: (SceneNet, WEIGHTS, 0.97), "vit": (SceneTransformer, VIT_WEIGHTS, 0.95)}
BOTH = pytest.mark.parametrize("name", NETWORKS, ids=["resnet", "vit"])


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(1_000)


def test_average_precision_is_the_mean_precision_at_the_positives() -> None:
    scores = torch.tensor([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1]])
    expected = [(1 / 1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2]
    assert average_precision(scores, labels).tolist() == pytest.approx(expected)
    assert average_precision(scores, torch.zeros(4, 2)).isnan().all()
    with pytest.raises(ValueError, match=r"^scores=\(4, 2\) .*; expected .*\.$"):
        average_precision(scores, labels[:2])


@BOTH
def test_a_network_knows_a_thousand_scenes_it_never_saw(name, scenes) -> None:
    network, images = scene_network(name), torch.stack([scene.image for scene in scenes])
    with torch.no_grad():
        scores = torch.cat([network(batch) for batch in images.split(100)])
    assert average_precision(scores, torch.stack([scene.labels for scene in scenes])).mean() >= NETWORKS[name][2]


@BOTH
def test_removing_an_object_removes_its_class(name) -> None:
    """The logit of a class must come from its object, not from its surroundings: paint the object over and it falls."""
    network, fell = scene_network(name), []
    for scene in (scene for scene in make_scenes(60, seed=2_000) if len(scene.objects) == 1):
        item = scene.objects[0]
        x0, y0, x1, y1 = item.box
        plain = scene.image.clone()
        plain[:, max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = scene.image[:, ~item.mask].mean(1)[:, None, None]
        with torch.no_grad():
            before, after = network(torch.stack([scene.image, plain]))[:, item.label]
        fell.append(bool(after < before))
    assert len(fell) >= 8
    assert sum(fell) >= 0.9 * len(fell)


@BOTH
def test_weights_are_small_and_load_strictly(name) -> None:
    build, path, _ = NETWORKS[name]
    state = torch.load(path, weights_only=True)
    assert path.stat().st_size <= 1_000_000
    result = build().load_state_dict(state, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(torch.isfinite(value).all() for value in state.values())


@BOTH
def test_network_is_in_eval_mode_and_float32(name) -> None:
    network = scene_network(name)
    assert type(network) is NETWORKS[name][0]
    assert not any(module.training for module in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(make_scene(0).image[None]).shape == (1, len(CLASSES))


def test_layers_have_the_names_of_a_resnet_and_unequal_sides() -> None:
    network, shapes = SceneNet().eval(), {}
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    network(torch.rand(2, 3, 128, 128))
    assert list(shapes) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert shapes["layer4"] == (2, 80, 16, 16)
    assert all(channels not in sides for _, channels, *sides in shapes.values())


def test_tokens_are_a_grid_behind_a_class_token_and_cams_look_at_the_last_that_count() -> None:
    """Only the class token is read behind the last attention: what stands before it is the last map of a gradient."""
    network, image = SceneTransformer().eval(), torch.rand(2, 3, 128, 128)
    shapes = []
    for layer in (network.patch_embed, *network.blocks):
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    network(image)
    assert shapes == [(2, 64, 16, 16), *[(2, 257, 64)] * 4]
    assert find_layer(network, image, target=1) == "blocks.3.norm1"
    kept = {}
    for name in ("blocks.3.norm1", "blocks.3"):
        network.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: kept.update({name: output}))
    before, behind = torch.autograd.grad(
        network(image)[:, 1].sum(), [kept[name] for name in ("blocks.3.norm1", "blocks.3")]
    )
    assert (before[:, 1:] != 0).any(2).all()
    assert not behind[:, 1:].any()
    assert network(torch.rand(1, 3, 64, 96)).shape == (1, len(CLASSES))


@pytest.mark.parametrize("build", [SceneNet, SceneTransformer])
def test_random_weights_and_weights_of_a_file(build, tmp_path: Path) -> None:
    network = build().eval()
    path = tmp_path / "own.pt"
    torch.save(network.state_dict(), path)
    image = torch.rand(1, 3, 128, 128)
    for weights in (path, str(path)):
        assert torch.equal(scene_network(weights)(image), network(image))
    assert not torch.equal(scene_network(False)(image), network(image))


@pytest.mark.parametrize("content", [None, b"", b"not a state dict"])
def test_missing_or_broken_weights_raise_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^weights=.*broken\.pt.*; expected .*\.$"):
        scene_network(path)


def test_weights_that_are_no_path_raise_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"^weights=None .*; expected .*\.$"):
        scene_network(None)  # type: ignore[arg-type]


def test_weights_of_another_network_raise_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"^weights=.*other\.pt.*; expected .*\.$"):
        scene_network(path)
