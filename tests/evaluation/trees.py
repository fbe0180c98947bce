"""Data sets in their original layouts, made of tiny photos."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from saliency.networks.class_names import COCO_CLASSES

# COCO's ids have gaps: these are the 80 of its 90 that are used, by its own list of categories.
COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def write_photo(path: Path, size=(30, 40), **options) -> Path:
    """A JPEG of (height, width) in which every pixel differs from its neighbours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)
    return path


def truncate(path: Path, kept=0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])


def describe_in_xml(filename, size, objects) -> str:
    """VOC's XML; an object is (class, (xmin, ymin, xmax, ymax)) or that and True if it is difficult."""
    height, width = size
    corners = ("xmin", "ymin", "xmax", "ymax")
    parts = [f"<filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"]
    for name, box, *difficult in objects:
        edges = "".join(f"<{corner}>{edge}</{corner}>" for corner, edge in zip(corners, box, strict=True))
        flag = int(bool(difficult))
        parts.append(f"<object><name>{name}</name><difficult>{flag}</difficult><bndbox>{edges}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def voc_tree(root: Path, photos, split="test") -> Path:
    """VOC 2007; ``photos`` are objects by name, in photos of 30 x 40 pixels."""
    kit = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main"):
        (kit / folder).mkdir(parents=True, exist_ok=True)
    for name, objects in photos.items():
        write_photo(kit / "JPEGImages" / f"{name}.jpg")
        (kit / "Annotations" / f"{name}.xml").write_text(describe_in_xml(f"{name}.jpg", (30, 40), objects))
    (kit / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in photos))
    return kit


def coco_json(photos, categories=None) -> dict:
    """COCO's JSON; ``photos`` are lists of objects by file name, an object is a dict without the ids."""
    if categories is None:
        categories = [{"id": key, "name": name} for key, name in zip(COCO_IDS, COCO_CLASSES, strict=True)]
    images, annotations = [], []
    for key, (name, objects) in enumerate(photos.items(), 7):
        images.append({"id": key, "file_name": name, "height": 30, "width": 40})
        for entry in objects:
            annotations.append({"id": len(annotations), "image_id": key, "iscrowd": 0, **entry})
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_tree(root: Path, photos, split="val2014", categories=None) -> dict:
    """COCO; returns its JSON, to be changed and written again."""
    for name in photos:
        write_photo(root / split / name)
    content = coco_json(photos, categories)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    write_json(root, content, split)
    return content


def write_json(root: Path, content, split="val2014") -> None:
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def imagenet_tree(root: Path, photos, rows=None) -> Path:
    """ImageNet's localisation task of three classes; ``rows`` are those of the solutions where they differ."""
    (root / "LOC_synset_mapping.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02012849 crane\n")
    lists = root / "ILSVRC" / "ImageSets" / "CLS-LOC"
    boxes = root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    for folder in (lists, boxes):
        folder.mkdir(parents=True, exist_ok=True)
    answers = ["ImageId,PredictionString"]
    for name, objects in photos.items():
        write_photo(root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / f"{name}.JPEG", format="JPEG")
        (boxes / f"{name}.xml").write_text(describe_in_xml(name, (30, 40), objects))
        words = " ".join(f"{synset} {' '.join(map(str, box))}" for synset, box in objects)
        answers.append(f"{name},{(rows or {}).get(name, words)} ")
    (root / "LOC_val_solution.csv").write_text("\n".join(answers) + "\n")
    (lists / "val.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(photos, 1)))
    return root
