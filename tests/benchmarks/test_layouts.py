"""VOC and COCO in their original layouts, from the command line; the centre's figures are worked out by hand.

Photos are 40 pixels wide and 30 high, so the centre is the pixel (20, 15); the disc has a radius of 5 pixels.
"""

import pytest

from benchmarks.pointing_game import main
from tests.evaluation.trees import coco_tree, truncate, voc_tree

NETWORK = """
import torch
from saliency.networks.preprocessing import Preprocessing

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(6, {classes}))
    return model, Preprocessing(32, 8, False, (0.5,) * 3, (0.5,) * 3, (), True)
"""


@pytest.fixture
def played(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def play(classes, *arguments):
        (tmp_path / f"own_{classes}.py").write_text(NETWORK.format(classes=classes))
        code = main(["--import", f"own_{classes}:build", "--root", str(tmp_path), "--tolerance", "5", *arguments])
        shown = capsys.readouterr()
        table = [line.strip("| ").split(" | ") for line in shown.out.splitlines() if line.startswith("| pointing_game")]
        return code, {line[1]: line[2:] for line in table}, shown.err

    return play


def test_voc(played, tmp_path):
    photos = {
        # Pixels 15 to 24, 10 to 19: the centre is among them. From the person's nearest, (30, 4), it is 14.9 away.
        "000001": [("dog", (16, 11, 25, 20)), ("person", (31, 1, 40, 5))],
        # The dog is difficult, and makes no case. The cat's nearest pixel is (25, 15), 5 away.
        "000002": [("dog", (1, 1, 40, 30), True), ("cat", (26, 16, 30, 16))],
        # One person is difficult but covers the centre: the other makes the case, and both count as hit.
        "000003": [("person", (18, 12, 22, 18), True), ("person", (1, 1, 3, 3))],
        # The nearest pixel is (26, 15), 6 away.
        "000004": [("cat", (27, 16, 30, 16))],
    }
    voc_tree(tmp_path, photos)
    code, table, _ = played(20, "--dataset", "voc2007", "--method", "centre", "--method", "gradient")
    assert code == 0
    # Hits: dog 1 of 1, person 1 of 2, cat 1 of 2. Small and beside another class: all of 000001, and the cat of 000002.
    mean, over_classes, difficult = 3 / 5, (1 + 1 / 2 + 1 / 2) / 3, (1 + 0 + 1) / 3
    assert table["centre"] == [f"{mean:.4f}", f"{over_classes:.4f}", f"{difficult:.4f}", "5", "0"]
    assert table["gradient"][3:] == ["5", "0"]


def test_coco(played, tmp_path):
    def instance(category, box, **more):
        x, y, width, height = box
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        return {"category_id": category, "bbox": list(box), "segmentation": [corners], **more}

    person, dog, everything = 1, 18, {"size": [30, 40], "counts": [0, 1200]}
    photos = {
        "a.jpg": [instance(person, (10, 8, 20, 14)), instance(dog, (0, 0, 5, 5))],
        # A crowd of dogs that covers the photo, as a run-length code.
        "b.jpg": [{**instance(dog, (0, 0, 40, 30)), "segmentation": everything, "iscrowd": 1}],
        # Around the centre there is a person's box, but the mask is a corner of it.
        "c.jpg": [{**instance(person, (10, 8, 20, 20)), "segmentation": [[28, 26, 30, 26, 30, 28, 28, 28]]}],
        "d.jpg": [instance(person, (16, 12, 8, 6))],
    }
    coco_tree(tmp_path, photos, "val2017")
    truncate(tmp_path / "val2017" / "d.jpg")
    code, table, _ = played(80, "--dataset", "coco2017", "--method", "centre", "--method", "grad_cam")
    assert code == 1  # the photo that is cut off
    # Person: a hit in a.jpg, a miss in c.jpg. Dog: a miss in a.jpg, a hit in b.jpg. Difficult: both of a.jpg.
    assert table["centre"] == [f"{2 / 4:.4f}", f"{(1 / 2 + 1 / 2) / 2:.4f}", f"{1 / 2:.4f}", "4", "1"]
    assert table["grad_cam"][3:] == ["4", "1"]


def test_what_is_missing_is_named(played, tmp_path):
    kit = voc_tree(tmp_path, {"000001": [("dog", (16, 11, 25, 20))], "000002": [("dgo", (1, 1, 9, 9))]})
    (kit / "ImageSets" / "Main" / "test.txt").write_text("000001\n000002\n000003\n")
    code, table, said = played(20, "--dataset", "voc2007", "--method", "centre")
    assert (code, table["centre"][3]) == (0, "1")
    assert "left out (2" in said
    assert "dgo" in said
    assert "000003" in said
    code, _, said = played(20, "--dataset", "voc2007", "--method", "centre", "--on-error", "refuse")
    assert code == 2
    assert "2 problems" in said
