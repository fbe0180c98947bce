"""Scenes are reproducible, their masks and boxes exact, and no class or place is privileged."""

import hashlib

import pytest
import torch

from saliency.scenes import CLASSES, Scene, make_scene, make_scenes

# Written down once: the digest of a seed's pixels and masks must be the same on every machine and in every release.
DIGESTS = {
    0: "da00c6a038b9cdff506200dca25a94afdfae68471be45dba0f19ff6634f0800f",
    7: "3d41d1255345492a88eebdf7f42ce7d5012c44ada71ea93bd93f937614abb510",
    1_000_000: "0ee6dc0abd78b197834a835890796da54012c68d39b5da94fd8a7223770a53a3",
    2**32 - 1: "6e18a365896f456919ff8e1007b61304bb7edc33e475766c9123e1d0b26d8a92",
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(300, seed=5_000)


def digest(scene: Scene) -> str:
    code = hashlib.sha256((scene.image * 255).round().to(torch.uint8).numpy().tobytes())
    for item in scene.objects:
        code.update(repr((item.label, item.box)).encode() + item.mask.numpy().tobytes())
    return code.hexdigest()


@pytest.mark.parametrize("seed", DIGESTS)
def test_a_seed_gives_the_pinned_scene(seed: int) -> None:
    assert digest(make_scene(seed)) == DIGESTS[seed]


def test_scenes_of_a_range_are_those_of_its_seeds() -> None:
    assert [digest(scene) for scene in make_scenes(3, seed=40)] == [digest(make_scene(seed)) for seed in (40, 41, 42)]
    assert make_scenes(0) == []


def test_different_seeds_give_different_scenes(scenes: list[Scene]) -> None:
    assert len({digest(scene) for scene in scenes}) == len(scenes)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    before = torch.get_rng_state()
    first = digest(make_scene(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert digest(make_scene(3)) == first


def test_images_are_eight_bit_values_between_zero_and_one(scenes: list[Scene]) -> None:
    for scene in scenes[:50]:
        assert scene.image.shape == (3, 128, 128)
        assert scene.image.dtype == torch.float32
        assert torch.equal(scene.image, (scene.image * 255).round() / 255)
        assert scene.image.min() >= 0
        assert scene.image.max() <= 1
        assert scene.image.std() > 0.01


def test_boxes_bound_their_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        for item in scene.objects:
            y, x = item.mask.nonzero(as_tuple=True)
            assert item.mask.shape == (128, 128)
            assert item.mask.dtype == torch.bool
            assert item.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_masks_of_one_scene_are_disjoint(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 4
        assert torch.stack([item.mask for item in scene.objects]).sum(0).max() == 1


def test_labels_and_class_masks_follow_the_objects(scenes: list[Scene]) -> None:
    for scene in scenes:
        present = {item.label for item in scene.objects}
        assert scene.labels.tolist() == [float(label in present) for label in range(8)]
        for label in range(8):
            expected = sum(item.mask.long() for item in scene.objects if item.label == label)
            assert torch.equal(scene.class_mask(label).long(), expected + torch.zeros(128, 128, dtype=torch.long))


# The area of each shape in units of its squared radius, by plane geometry, at the proportions its docstring gives.
AREAS = {
    "circle": torch.pi * 0.9**2,
    "square": 1.4**2,
    "triangle": 0.75 * 3**0.5,
    "cross": 2 * 1.8 * 0.56 - 0.56**2,
    "ring": torch.pi * (1 - 0.55**2),
}


def test_at_least_sixty_percent_of_each_object_is_visible(scenes: list[Scene]) -> None:
    smallest, largest = 10.0, 28.0
    for scene in scenes:
        for item in scene.objects:
            area = AREAS.get(CLASSES[item.label])
            if area is not None:
                assert 0.6 * area * smallest**2 * 0.95 <= item.mask.sum() <= area * largest**2 * 1.05


def test_a_circle_alone_and_whole_fills_its_box_as_a_disc_does(scenes: list[Scene]) -> None:
    ratios = []
    for scene in scenes:
        item = scene.objects[0]
        x0, y0, x1, y1 = item.box
        if len(scene.objects) == 1 and CLASSES[item.label] == "circle" and min(x0, y0) > 0 and max(x1, y1) < 128:
            ratios.append(float(item.mask.sum()) / ((x1 - x0) * (y1 - y0)))
    assert ratios
    assert ratios == pytest.approx([torch.pi / 4] * len(ratios), rel=0.08)


def test_every_class_occurs_and_several_objects_share_one(scenes: list[Scene]) -> None:
    labels = torch.tensor([item.label for scene in scenes for item in scene.objects])
    counts = torch.bincount(labels, minlength=8)
    expected = len(labels) / 8
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    assert any(len({item.label for item in scene.objects}) < len(scene.objects) for scene in scenes)


def test_the_centre_is_not_privileged(scenes: list[Scene]) -> None:
    covered = torch.stack([torch.stack([item.mask for item in scene.objects]).any(0) for scene in scenes]).double()
    everywhere = covered.mean()
    assert covered[:, 48:80, 48:80].mean() < 1.35 * everywhere
    thirds = [covered[:, :, start : start + 32].mean() for start in (0, 32, 64, 96)]
    thirds += [covered[:, start : start + 32].mean() for start in (0, 32, 64, 96)]
    assert min(thirds) > 0.6 * everywhere


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^seed=-1 .*; expected .*\.$"):
        make_scene(-1)
    with pytest.raises(ValueError, match=r"^seed=4294967296 "):
        make_scene(2**32)
    with pytest.raises(ValueError, match=r"^seed=1.5 "):
        make_scene(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^n=-2 .*; expected .*\.$"):
        make_scenes(-2)
    with pytest.raises(ValueError, match=r"^label=8 .*; expected .*\.$"):
        make_scene(0).class_mask(8)
