"""Data sets read from their original layouts: what is in them, and what becomes of what is wrong with them."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saliency.evaluation.cases import class_boxes, class_mask, describe, is_difficult, labels_of
from saliency.evaluation.datasets import DATASETS, load_dataset
from saliency.evaluation.datasets.segmentation import draw_mask, run_lengths, segmentation_problem
from saliency.networks.class_names import COCO_CLASSES, VOC_CLASSES
from saliency.scenes import make_scene
from tests.evaluation.trees import (
    COCO_IDS,
    coco_json,
    coco_tree,
    describe_in_xml,
    imagenet_tree,
    truncate,
    voc_tree,
    write_json,
    write_photo,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not here")

DOG, PERSON = VOC_CLASSES.index("dog"), VOC_CLASSES.index("person")


def pixels_in(box, size=(30, 40)):
    """A mask by counting: pixel (x, y) is inside where x0 <= x < x1 and y0 <= y < y1."""
    x0, y0, x1, y1 = box
    return torch.tensor([[x0 <= x < x1 and y0 <= y < y1 for x in range(size[1])] for y in range(size[0])])


def stored(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / np.float32(255)).permute(2, 0, 1)


def check_problems(name, root, expected, **options):
    """Every problem is named, and with on_error='refuse' the first ones are in the error."""
    dataset = load_dataset(name, root, **options)
    assert len(dataset.problems) == len(expected), dataset.problems
    for problem, pattern in zip(dataset.problems, expected, strict=True):
        assert re.search(pattern, problem), (problem, pattern)
    first = expected[0].removeprefix("^")
    with pytest.raises(ValueError, match=rf"root=.* holds {len(expected)} problems: \(1\) {first}"):
        load_dataset(name, root, on_error="refuse", **options)
    return dataset


class TestScenes:
    def test_are_the_scenes_of_the_seeds(self):
        dataset = load_dataset("scenes", scenes=3, seed=5)
        assert [entry.name for entry in dataset.annotations] == ["scene5", "scene6", "scene7"]
        for index, entry in enumerate(dataset.annotations):
            scene = make_scene(5 + index)
            assert torch.equal(dataset.image(index), scene.image)
            assert entry.size == scene.image.shape[1:]
            assert labels_of(entry) == sorted({item.label for item in scene.objects})
            for label in labels_of(entry):
                assert torch.equal(class_mask(entry, label), scene.class_mask(label))
                boxes = [list(item.box) for item in scene.objects if item.label == label]
                assert class_boxes(entry, label).tolist() == boxes

    def test_masks_are_own_copies(self):
        (entry,) = load_dataset("scenes", scenes=1).annotations
        entry.instances[0].mask().fill_(False)
        assert entry.instances[0].mask().any()

    def test_beyond_the_last(self):
        with pytest.raises(IndexError):
            load_dataset("scenes", scenes=2).image(2)


class TestVoc:
    def test_boxes_are_one_based_and_inclusive(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": [("dog", (1, 1, 40, 30)), ("dog", (3, 5, 3, 9))], "000004": []})
        dataset = load_dataset("voc2007", tmp_path)
        assert dataset.classes == VOC_CLASSES
        assert dataset.problems == ()
        assert [entry.name for entry in dataset.annotations] == ["000001", "000004"]
        first, empty = dataset.annotations
        assert first.size == (30, 40)
        assert class_boxes(first, DOG).tolist() == [[0, 0, 40, 30], [2, 4, 3, 9]]
        assert labels_of(empty) == []
        assert torch.equal(dataset.image(1), stored(kit / "JPEGImages" / "000004.jpg"))

    def test_difficult_objects(self, tmp_path):
        objects = [("dog", (1, 1, 4, 4), True), ("person", (1, 1, 2, 2)), ("person", (5, 5, 9, 9), True)]
        voc_tree(tmp_path, {"000001": objects})
        (entry,) = load_dataset("voc2007", tmp_path).annotations
        assert labels_of(entry) == [PERSON]
        assert torch.equal(class_mask(entry, PERSON), pixels_in((0, 0, 2, 2)) | pixels_in((4, 4, 9, 9)))
        assert is_difficult(entry, PERSON)

    def test_the_split(self, tmp_path):
        voc_tree(tmp_path, {"000001": []})
        voc_tree(tmp_path, {"000005": [], "000007": []}, split="trainval")
        assert len(load_dataset("voc2007", tmp_path, split="trainval").annotations) == 2
        with pytest.raises(ValueError, match=r"root=.* is not a VOC 2007 folder .*expected"):
            load_dataset("voc2007", tmp_path, split="val")
        with pytest.raises(ValueError, match=r"root=.* is not a VOC 2007 folder .*expected"):
            load_dataset("voc2007", tmp_path, split="tset")

    def test_what_is_wrong_is_named_and_skipped(self, tmp_path):
        good = [("dog", (1, 1, 9, 9))]
        names = ["good", "gone", "no_xml", "cut", "other", "mixed", "wordy", "good"]
        kit = voc_tree(tmp_path, dict.fromkeys(names, good))
        notes = kit / "Annotations"
        (kit / "ImageSets/Main/test.txt").write_text("\n".join(names))
        (kit / "JPEGImages/gone.jpg").unlink()
        (notes / "no_xml.xml").unlink()
        truncate(notes / "cut.xml")
        (notes / "other.xml").write_text(describe_in_xml("good.jpg", (30, 40), good))
        objects = [("god", (1, 1, 9, 9)), ("dog", (9, 1, 1, 9)), ("cat", (1, 1, 60, 9)), *good]
        (notes / "mixed.xml").write_text(describe_in_xml("mixed.jpg", (30, 40), objects))
        (notes / "wordy.xml").write_text(describe_in_xml("wordy.jpg", (30, 40), [("dog", ("one", 1, 9, 9))]))
        expected = [
            r"^gone: the file .*gone\.jpg does not exist",
            r"^no_xml: the annotation .* cannot be read .*No such file",
            r"^cut: the annotation .*cut\.xml cannot be read",
            r"^other: the annotation .* is of another photo, 'good'",
            r"^mixed: object 1 is of the unknown class 'god'",
            r"^mixed: a 'dog' has the box \(8\.0, 0\.0, 1\.0, 9\.0\) without area",
            r"^mixed: a 'cat' has the box \(0\.0, 0\.0, 60\.0, 9\.0\) outside of its image of 40 x 30 pixels",
            r"^wordy: a 'dog' has the box \(nan, 0\.0, 9\.0, 9\.0\) without area",
            r"^good: it is listed twice",
        ]
        dataset = check_problems("voc2007", tmp_path, expected)
        assert [entry.name for entry in dataset.annotations] == ["good", "mixed", "wordy"]
        assert [len(entry.instances) for entry in dataset.annotations] == [1, 1, 0]

    def test_an_entity_bomb_is_a_broken_file(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": [], "000002": []})
        bomb = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation><filename>&c;</filename></annotation>'
        (kit / "Annotations/000001.xml").write_text(bomb)
        check_problems("voc2007", tmp_path, [r"^000001: the annotation .* cannot be read"])

    def test_without_a_size_the_photo_has_it(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": [("dog", (1, 1, 40, 30))], "000002": []})
        for name in ("000001", "000002"):
            path = kit / f"Annotations/{name}.xml"
            path.write_text(re.sub("<size>.*</size>", "", path.read_text()))
        (kit / "JPEGImages/000002.jpg").write_bytes(b"no photo")
        dataset = check_problems("voc2007", tmp_path, [r"^000002: photo='.*000002\.jpg' cannot be read"])
        assert dataset.annotations[0].size == (30, 40)

    def test_nothing_left(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": []})
        (kit / "JPEGImages/000001.jpg").unlink()
        with pytest.raises(ValueError, match=r"no sound photo of 'voc2007' \(1 problems, the first: 000001: the file"):
            load_dataset("voc2007", tmp_path)
        (kit / "ImageSets/Main/test.txt").write_text("")
        with pytest.raises(ValueError, match=r"no sound photo of 'voc2007'; expected a folder"):
            load_dataset("voc2007", tmp_path)


class TestPhotos:
    def test_a_truncated_photo_raises_when_it_is_opened(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": [], "000002": []})
        truncate(kit / "JPEGImages/000001.jpg", 0.9)
        dataset = load_dataset("voc2007", tmp_path)
        with pytest.raises(ValueError, match=r"photo='.*000001\.jpg' cannot be read .*truncated"):
            dataset.image(0)
        assert dataset.image(1).shape == (3, 30, 40)

    def test_a_photo_of_another_size(self, tmp_path):
        kit = voc_tree(tmp_path, {"000001": []})
        write_photo(kit / "JPEGImages/000001.jpg", (40, 30))
        with pytest.raises(ValueError, match=r"photo='.*000001\.jpg' is of size \(40, 30\).* \(30, 40\)"):
            load_dataset("voc2007", tmp_path).image(0)

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_pixels_are_those_that_are_stored(self, tmp_path, orientation):
        """Boxes refer to them: an EXIF orientation turns the photo for the eye only."""
        kit = voc_tree(tmp_path, {"000001": [("dog", (1, 1, 9, 9))]})
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = write_photo(kit / "JPEGImages/000001.jpg", exif=exif)
        with Image.open(path) as image:
            assert image.getexif()[0x0112] == orientation
        assert torch.equal(load_dataset("voc2007", tmp_path).image(0), stored(path))

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_other_colours(self, tmp_path, mode):
        kit = voc_tree(tmp_path, {"000001": []})
        path = kit / "JPEGImages/000001.jpg"
        Image.open(path).convert(mode).save(path)
        image = load_dataset("voc2007", tmp_path).image(0)
        assert image.shape == (3, 30, 40)
        assert 0 <= image.min() < image.max() <= 1


SQUARE = [2, 3, 10, 3, 10, 8, 2, 8]  # the pixels 2 <= x < 10, 3 <= y < 8
TRIANGLE = [20.5, 10.5, 35.5, 10.5, 35.5, 25.5]
# Down the columns: 30 x 5 pixels outside, then column 5 inside, the rest outside.
COLUMN = {"size": [30, 40], "counts": [150, 30, 1020]}


def instance(name="dog", box=(2, 3, 8, 5), segmentation=None, **more):
    return {
        "category_id": COCO_IDS[COCO_CLASSES.index(name)],
        "bbox": list(box),
        "segmentation": [SQUARE] if segmentation is None else segmentation,
        **more,
    }


class TestCoco:
    def test_polygons_crowds_and_classes(self, tmp_path):
        objects = [
            instance("toothbrush"),
            instance("person", (5, 0, 1, 30), COLUMN, iscrowd=1),
            instance("person", (20.5, 10.5, 15, 15), [TRIANGLE, SQUARE]),
        ]
        coco_tree(tmp_path, {"COCO_val2014_000000000007.jpg": objects, "b.jpg": []})
        dataset = load_dataset("coco2014", tmp_path)
        assert dataset.classes == COCO_CLASSES
        assert dataset.problems == ()
        entry = dataset.annotations[0]
        assert (entry.name, entry.size) == ("COCO_val2014_000000000007.jpg", (30, 40))
        assert labels_of(entry) == [0, 79]
        assert torch.equal(class_mask(entry, 79), pixels_in((2, 3, 10, 8)))
        assert [item.crowd for item in entry.instances] == [False, True, False]
        person = class_mask(entry, 0)
        square_or_column = pixels_in((2, 3, 10, 8)) | pixels_in((5, 0, 6, 30))
        assert person[square_or_column].all()
        rest = person & ~square_or_column
        inside = torch.tensor([[x - 19.5 > y - 9.5 and x < 35 and y >= 11 for x in range(40)] for y in range(30)])
        assert (rest & inside).sum() > 80
        assert not rest[:, :19].any()
        assert not rest[:10].any()
        assert class_boxes(entry, 0).tolist() == [[5, 0, 6, 30], [20.5, 10.5, 35.5, 25.5]]

    def test_years_and_splits(self, tmp_path):
        for split in ("val2014", "val2017", "train2017"):
            coco_tree(tmp_path, {f"{split}.jpg": [instance()]}, split)
        names = [
            load_dataset(name, tmp_path, **options).annotations[0].name
            for name, options in (("coco2014", {}), ("coco2017", {}), ("coco2017", {"split": "train2017"}))
        ]
        assert names == ["val2014.jpg", "val2017.jpg", "train2017.jpg"]
        other = tmp_path / "annotations/instances_train2017.json"
        with pytest.raises(ValueError, match=r"no sound photo .* train2017\.jpg: the file .*val2014.* does not exist"):
            load_dataset("coco2017", tmp_path, split="val2014", annotations=other)
        with pytest.raises(ValueError, match=r"annotations='.*instances_test\.json' is not a file; .*expected"):
            load_dataset("coco2014", tmp_path, split="test")

    def test_photos_come_by_rising_id(self, tmp_path):
        content = coco_tree(tmp_path, {"b.jpg": [], "a.jpg": [instance()]})
        content["images"].reverse()
        write_json(tmp_path, content)
        assert [entry.name for entry in load_dataset("coco2014", tmp_path).annotations] == ["b.jpg", "a.jpg"]

    def test_boxes_without_masks(self, tmp_path):
        objects = [instance("dog", (1, 2, 3, 4), []), {"category_id": 1, "bbox": [0, 0, 2, 2]}]
        coco_tree(tmp_path, {"a.jpg": objects})
        (entry,) = load_dataset("coco2014", tmp_path).annotations
        assert torch.equal(class_mask(entry, COCO_CLASSES.index("dog")), pixels_in((1, 2, 4, 6)))
        assert torch.equal(class_mask(entry, 0), pixels_in((0, 0, 2, 2)))

    def test_rounding_is_cut_off(self, tmp_path):
        coco_tree(tmp_path, {"a.jpg": [instance(box=(-0.25, 0, 40.5, 30.75))]})
        (entry,) = load_dataset("coco2014", tmp_path, on_error="refuse").annotations
        assert entry.instances[0].box == (0, 0, 40, 30)

    def test_what_is_wrong_is_named_and_skipped(self, tmp_path):
        nan = float("nan")
        size = [30, 40]
        wrong = [
            (r"is of the unknown category 12$", instance(category_id=12)),
            (r"is of the unknown category 91, 'hat'", instance(category_id=91)),
            (r"has the bbox None", instance(bbox=None)),
            (r"has the bbox \[1, 2, 3\]", instance(box=(1, 2, 3))),
            (r"has the bbox \['a'", instance(box=("a", 1, 2, 3))),
            (r"neither polygons nor", instance(segmentation=[[1, 2, 3, 4]])),
            (r"neither polygons nor", instance(segmentation=["x"])),
            (r"a polygon of other things than numbers", instance(segmentation=[[1, 2, 3, None, 5, 6]])),
            (r"a polygon far outside", instance(segmentation=[[1, 2, 3, 1e12, 5, 6]])),
            (r"a polygon far outside", instance(segmentation=[[1, 2, 3, nan, 5, 6]])),
            (
                r"a mask of size \[40, 30\] in an image of size",
                instance(segmentation={"size": [40, 30], "counts": [1200]}),
            ),
            (r"a mask that does not fill its image", instance(segmentation={"size": size, "counts": [1, 2]})),
            (r"a mask that does not fill its image", instance(segmentation={"size": size, "counts": "zzz"})),
            (r"a mask that does not fill its image", instance(segmentation={"size": size, "counts": [1210, -10]})),
            (r"a broken run-length code", instance(segmentation={"size": size, "counts": [None]})),
            (r"a broken run-length code", instance(segmentation={"size": size})),
        ]
        boxes = [
            instance(box=(0, 0, 0, 5)),
            instance(box=(0, 0, nan, 5)),
            instance(box=(35, 0, 9, 5)),
            instance(box=(0, -9, 5, 5)),
        ]
        content = coco_tree(
            tmp_path, {"a.jpg": [*(entry for _, entry in wrong), *boxes, instance()], "gone.jpg": [], "b.jpg": []}
        )
        (tmp_path / "val2014/gone.jpg").unlink()
        content["categories"].append({"id": 91, "name": "hat"})
        content["annotations"].append({"id": 900, "image_id": 77, "category_id": 1, "bbox": [1, 2, 3, 4]})
        content["images"] += [
            {"id": 40, "file_name": "b.jpg", "height": 30, "width": 40},
            {"id": 41, "height": 30, "width": 40},
            {"id": 42, "file_name": "no_photo.jpg"},
            {"id": 7, "file_name": "a.jpg", "height": 30, "width": 40},
        ]
        (tmp_path / "val2014/no_photo.jpg").write_bytes(b"nothing")
        write_json(tmp_path, content)
        expected = [
            r"^image id 7: it is listed 2 times",
            r"^annotation 900: its image id 77 is not listed",
            *(rf"^a\.jpg: annotation {number} .*{pattern}" for number, (pattern, _) in enumerate(wrong)),
            r"^a\.jpg: a 'dog' has the box \(0, 0, 0, 5\) without area",
            r"^a\.jpg: a 'dog' has the box \(0, 0, nan, 5\) without area",
            r"^a\.jpg: a 'dog' has the box \(35, 0, 44, 5\) outside of its image of 40 x 30 pixels",
            r"^a\.jpg: a 'dog' has the box \(0, -9, 5, -4\) outside",
            r"^gone\.jpg: the file .* does not exist",
            r"^b\.jpg: it is listed twice",
            r"^image id 41: it has no file_name",
            r"^no_photo\.jpg: photo='.*' cannot be read",
        ]
        dataset = check_problems("coco2014", tmp_path, expected)
        assert [entry.name for entry in dataset.annotations] == ["a.jpg", "b.jpg"]
        assert len(dataset.annotations[0].instances) == 1

    def test_without_a_size_the_photo_has_it(self, tmp_path):
        content = coco_tree(tmp_path, {"a.jpg": [instance(segmentation=COLUMN)]})
        del content["images"][0]["height"]
        write_json(tmp_path, content)
        (entry,) = load_dataset("coco2014", tmp_path, on_error="refuse").annotations
        assert entry.size == (30, 40)

    @pytest.mark.parametrize("damage", ["cut", "list", "no categories", "no image_id", "nameless", "ids", "empty"])
    def test_a_broken_file(self, tmp_path, damage):
        content = coco_tree(tmp_path, {"a.jpg": [instance()]})
        path = tmp_path / "annotations/instances_val2014.json"
        if damage == "no categories":
            del content["categories"]
        elif damage == "no image_id":
            del content["annotations"][0]["image_id"]
        elif damage == "nameless":
            del content["categories"][3]["name"]
        elif damage == "ids":
            content["images"].append(content["images"][0] | {"id": "one"})
        write_json(tmp_path, {"list": [content], "empty": {}}.get(damage, content))
        if damage == "cut":
            truncate(path)
        with pytest.raises(ValueError, match=r"annotations='.*instances_val2014\.json' cannot be read \("):
            load_dataset("coco2014", tmp_path)

    def test_nothing_is_printed(self, tmp_path, capfd):
        coco_tree(tmp_path, {"a.jpg": [instance()]})
        load_dataset("coco2014", tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_no_photo_is_opened(self, tmp_path, monkeypatch):
        coco_tree(tmp_path, {"a.jpg": [instance()]})
        voc_tree(tmp_path, {"000001": [("dog", (1, 1, 9, 9))]})
        imagenet_tree(tmp_path, {"val_1": [("n01440764", (0, 0, 9, 9))]})
        monkeypatch.setattr(Image, "open", None)
        for name in ("coco2014", "voc2007", "imagenet"):
            assert len(load_dataset(name, tmp_path, on_error="refuse").annotations) == 1


class TestFolder:
    CATEGORIES = ({"id": 9, "name": "cup"}, {"id": 2, "name": "spoon"})

    def make(self, root, photos, folder="", file="labels.json"):
        for name in photos:
            write_photo(root / folder / name)
        content = coco_json(photos, list(self.CATEGORIES))
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(content))

    @pytest.mark.parametrize("folder", ["", "train2017", "images"])
    @pytest.mark.parametrize("file", ["labels.json", "annotations/instances.json"])
    def test_photos_lie_in_the_folder_or_one_in_it(self, tmp_path, folder, file):
        objects = [{"category_id": 9, "bbox": [1, 2, 3, 4]}, {"category_id": 2, "bbox": [0, 0, 5, 5]}]
        self.make(tmp_path, {"a.jpg": objects, "b.png": []}, folder, file)
        (tmp_path / "empty").mkdir()
        dataset = load_dataset("folder", tmp_path, on_error="refuse")
        assert dataset.classes == ("spoon", "cup")
        assert labels_of(dataset.annotations[0]) == [0, 1]
        assert torch.equal(class_mask(dataset.annotations[0], 1), pixels_in((1, 2, 4, 6)))
        assert dataset.image(1).shape == (3, 30, 40)

    def test_one_folder_of_several_may_be_chosen(self, tmp_path):
        photo = {"a.jpg": [{"category_id": 9, "bbox": [1, 2, 3, 4]}]}
        self.make(tmp_path, photo, "first")
        self.make(tmp_path, photo, "second")
        path = write_photo(tmp_path / "second" / "a.jpg", quality=10)
        assert torch.equal(load_dataset("folder", tmp_path, split="second").image(0), stored(path))

    def test_which_json_counts(self, tmp_path):
        photo = {"a.jpg": [{"category_id": 9, "bbox": [1, 2, 3, 4]}]}
        self.make(tmp_path, photo)
        (tmp_path / "other.json").write_text('{"cup": [504]}')
        (tmp_path / "list.json").write_text("[]")
        assert load_dataset("folder", tmp_path).problems == ()
        self.make(tmp_path, photo, file="annotations/more.json")
        with pytest.raises(ValueError, match=r"annotations=None .* \(labels\.json, more\.json\); expected its path"):
            load_dataset("folder", tmp_path)
        assert load_dataset("folder", tmp_path, annotations=tmp_path / "labels.json").problems == ()
        with pytest.raises(ValueError, match=r"annotations=None .* \(none\)"):
            load_dataset("folder", write_photo(tmp_path / "empty" / "a.jpg").parent)


class TestImageNet:
    def test_boxes_count_from_zero_and_are_inclusive(self, tmp_path):
        photos = {"val_2": [("n02012849", (0, 0, 39, 29)), ("n02012849", (3, 4, 3, 9))], "val_1": []}
        photos["val_1"] = [("n01440764", (5, 5, 40, 30))]
        imagenet_tree(tmp_path, photos)
        dataset = load_dataset("imagenet", tmp_path, on_error="refuse")
        assert dataset.classes == ("tench, Tinca tinca", "goldfish", "crane")
        assert [entry.name for entry in dataset.annotations] == ["val_2", "val_1"]
        assert class_boxes(dataset.annotations[0], 2).tolist() == [[0, 0, 40, 30], [3, 4, 4, 10]]
        assert class_boxes(dataset.annotations[1], 0).tolist() == [[5, 5, 40, 30]]
        assert dataset.image(1).shape == (3, 30, 40)

    def test_either_file_is_enough(self, tmp_path):
        photos = {"val_1": [("n01440764", (0, 0, 9, 9))], "val_2": [("n01443537", (1, 1, 9, 9))]}
        imagenet_tree(tmp_path, photos)
        both = load_dataset("imagenet", tmp_path)
        (tmp_path / "ILSVRC/Annotations/CLS-LOC/val/val_1.xml").unlink()
        (tmp_path / "ILSVRC/ImageSets/CLS-LOC/val.txt").unlink()
        assert load_dataset("imagenet", tmp_path, on_error="refuse").annotations == both.annotations
        imagenet_tree(tmp_path, photos)
        (tmp_path / "LOC_val_solution.csv").unlink()
        assert load_dataset("imagenet", tmp_path, on_error="refuse").annotations == both.annotations

    def test_what_is_wrong_is_named_and_skipped(self, tmp_path):
        objects = [("n01440764", (0, 0, 9, 9))]
        names = ["good", "gone", "differs", "class", "words", "cut", "neither"]
        rows = {
            "differs": "n01440764 0 0 9 8",
            "class": "n00000000 0 0 9 9",
            "words": "n01440764 0 0",
        }
        imagenet_tree(tmp_path, dict.fromkeys(names, objects), rows)
        notes = tmp_path / "ILSVRC/Annotations/CLS-LOC/val"
        (tmp_path / "ILSVRC/Data/CLS-LOC/val/gone.JPEG").unlink()
        truncate(notes / "cut.xml")
        (notes / "neither.xml").unlink()
        solution = tmp_path / "LOC_val_solution.csv"
        solution.write_text(re.sub("neither,.*\n", "", solution.read_text()))
        expected = [
            r"^gone: the file .*gone\.JPEG does not exist",
            r"^differs: .*differs\.xml and the solution 'n01440764 0 0 9 8 ' differ",
            r"^class: the solution .* has the unknown class 'n00000000'",
            r"^words: the solution .* is not a list of classes and boxes",
            r"^cut: the annotation .* cannot be read",
            r"^neither: the annotation .* cannot be read",
        ]
        dataset = check_problems("imagenet", tmp_path, expected)
        assert [entry.name for entry in dataset.annotations] == ["good"]

    def test_a_row_without_an_answer_and_an_empty_line(self, tmp_path):
        imagenet_tree(tmp_path, {name: [("n01440764", (0, 0, 9, 9))] for name in ("good", "cut")})
        listing, solution = tmp_path / "ILSVRC/ImageSets/CLS-LOC/val.txt", tmp_path / "LOC_val_solution.csv"
        listing.write_text(listing.read_text().replace("\n", "\n\n"))
        solution.write_text(re.sub("cut,.*\n", "cut\n", solution.read_text()))
        expected = [r"^cut: the solution '' is not a list of classes and boxes"]
        assert [entry.name for entry in check_problems("imagenet", tmp_path, expected).annotations] == ["good"]
        listing.unlink()
        check_problems("imagenet", tmp_path, expected)

    def test_a_missing_list_of_classes(self, tmp_path):
        imagenet_tree(tmp_path, {"val_1": [("n01440764", (0, 0, 9, 9))]})
        (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764\n")
        with pytest.raises(ValueError, match=r"root=.* has no list of classes"):
            load_dataset("imagenet", tmp_path)
        with pytest.raises(ValueError, match=r"split='train' .* expected 'val'"):
            load_dataset("imagenet", tmp_path, split="train")


class TestRealData:
    """Where the shared photographs are."""

    @needs_shared
    def test_imagenet(self):
        dataset = load_dataset("imagenet", SHARED / "imagenet", on_error="refuse")
        assert len(dataset.annotations) == 500
        assert len(dataset.classes) == 1000
        assert dataset.classes[0] == "tench, Tinca tinca"
        assert all(entry.size == (227, 227) and len(labels_of(entry)) == 1 for entry in dataset.annotations)
        assert sum(len(entry.instances) for entry in dataset.annotations) == 758
        assert dataset.image(499).shape == (3, 227, 227)

    @needs_shared
    def test_coco_as_a_folder_and_by_name(self):
        folder = load_dataset("folder", SHARED / "coco", on_error="refuse")
        named = load_dataset("coco2017", SHARED / "coco", split="train2017", on_error="refuse")
        assert folder.classes == named.classes == COCO_CLASSES
        assert (describe(folder)["images"], describe(folder)["instances"]) == (107, 844)
        assert describe(folder)["annotations"] == describe(named)["annotations"]
        content = json.loads((SHARED / "coco/annotations/instances_train2017.json").read_text())
        areas = {entry["id"]: entry["area"] for entry in content["annotations"]}
        found = [instance.mask().sum().item() for entry in named.annotations[:20] for instance in entry.instances]
        ids = [
            note["id"]
            for image in sorted(content["images"], key=lambda image: image["id"])[:20]
            for note in content["annotations"]
            if note["image_id"] == image["id"]
        ]
        # Its own areas are the polygons', ours count pixels.
        torch.testing.assert_close(
            torch.tensor(found).float(), torch.tensor([areas[i] for i in ids]), rtol=0.1, atol=30
        )


class TestSegmentation:
    def test_a_list_of_runs_goes_down_the_columns(self):
        mask = draw_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
        assert mask.int().tolist() == [[0, 1, 0], [1, 0, 0]]

    def test_runs_as_text_are_pycocotools(self):
        coder = pytest.importorskip("pycocotools.mask")
        generator = np.random.default_rng(0)
        for _ in range(30):
            height, width = map(int, generator.integers(1, 90, 2))
            mask = np.asfortranarray(generator.random((height, width)) < generator.random(), np.uint8)
            code = {"size": [height, width], "counts": coder.encode(mask)["counts"].decode()}
            assert segmentation_problem(code, (height, width)) == ""
            assert np.array_equal(draw_mask(code, (height, width)).numpy(), mask == 1)

    def test_a_run_of_negative_difference(self):
        assert run_lengths([3, 4]) == [3, 4]
        assert run_lengths(b"") == []


def test_data_sets_are_named():
    assert list(DATASETS) == ["scenes", "voc2007", "coco2014", "coco2017", "imagenet", "folder"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["voc2006"], {}, r"dataset='voc2006' is unknown; did you mean 'voc2007'\? expected one of"),
        (["voc2007"], {}, r"root=None is not a folder; .*expected"),
        (["coco2014", "nowhere"], {}, r"root='nowhere' is not a folder; .*expected"),
        (["scenes"], {"on_error": "ignore"}, r"on_error='ignore' is unknown; .*expected"),
        (["scenes", "."], {}, r"root='\.' does not go with 'scenes'.*; expected"),
        (["scenes"], {"scenes": 0}, r"scenes=0 is not a number of scenes; .*expected"),
        (["scenes"], {"seed": -1}, r"seed=-1 is not a valid seed"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(*arguments, **options)


def test_data_sets_can_be_sent_to_other_processes(tmp_path):
    coco_tree(tmp_path, {"a.jpg": [instance(), instance("person", segmentation=COLUMN, iscrowd=1)]})
    for dataset in (load_dataset("coco2014", tmp_path), load_dataset("scenes", scenes=1)):
        copy = pickle.loads(pickle.dumps(dataset))
        entry, twin = dataset.annotations[0], copy.annotations[0]
        assert all(torch.equal(class_mask(entry, label), class_mask(twin, label)) for label in labels_of(entry))
        assert torch.equal(dataset.image(0), copy.image(0))


def test_the_description_hangs_on_the_masks(tmp_path):
    content = coco_tree(tmp_path, {"a.jpg": [instance()]})
    before = describe(load_dataset("coco2014", tmp_path))
    assert before["root"] == str(tmp_path.resolve())
    content["annotations"][0]["segmentation"] = [TRIANGLE]
    write_json(tmp_path, content)
    after = describe(load_dataset("coco2014", tmp_path))
    assert before["annotations"] != after["annotations"]
    assert {**before, "annotations": ""} == {**after, "annotations": ""}
