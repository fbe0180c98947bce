"""Published results of the pointing game, to be read beside your own numbers."""

import re

PUBLISHED_IN = "Fong, Patrick and Vedaldi, Understanding Deep Networks via Extremal Perturbations, ICCV 2019, Table 1"
TOLERANCE = 15  # pixels

# Accuracy in %, mean over classes, of all images and of the difficult ones: VGG16, ResNet50 on VOC, then on COCO.
_DATASETS = {"voc": "VOC07 test", "coco": "COCO14 val"}
_IMAGES = {"VOC07 test": 4952, "COCO14 val": 40137}  # with an object in them
_NETWORKS = {"vgg": "VGG16", "resnet": "ResNet50"}
_SETTINGS = (("VOC07 test", "VGG16"), ("VOC07 test", "ResNet50"), ("COCO14 val", "VGG16"), ("COCO14 val", "ResNet50"))
_TABLE = {
    "centre": ((69.6, 42.4), (69.6, 42.4), (27.8, 19.5), (27.8, 19.5)),
    "gradient": ((76.3, 56.9), (72.3, 56.8), (37.7, 31.4), (35.0, 29.4)),
    "deconvnet": ((67.5, 44.2), (68.6, 44.7), (30.7, 23.0), (30.0, 21.9)),
    "guided_backprop": ((75.9, 53.0), (77.2, 59.4), (39.1, 31.4), (42.1, 35.3)),
    "excitation_backprop": ((77.1, 56.6), (84.4, 70.8), (39.8, 32.8), (49.6, 43.9)),
    "contrastive_excitation_backprop": ((79.9, 66.5), (90.7, 82.1), (49.7, 44.3), (58.5, 53.6)),
    "rise": ((86.9, 75.1), (86.4, 78.8), (50.8, 45.3), (54.7, 50.0)),
    "grad_cam": ((86.6, 74.0), (90.4, 82.3), (54.2, 49.0), (57.3, 52.3)),
    "extremal_perturbation": ((88.0, 76.1), (88.9, 78.7), (51.5, 45.9), (56.5, 51.5)),
}


def published_accuracy(dataset: str, arch: str) -> dict[str, tuple[float, float]]:
    """Return the published accuracy in %, mean over classes, of each method: (all images, difficult images).

    Empty where the paper has no setting of this kind: neither VOC nor COCO, or neither a VGG nor a ResNet.

    >>> published_accuracy("coco2014", "resnet50")["grad_cam"], published_accuracy("scenes", "scenes")
    ((57.3, 52.3), {})
    """
    setting = published_setting(dataset, arch)
    return {name: values[_SETTINGS.index(setting)] for name, values in _TABLE.items()} if setting else {}


def published_setting(dataset: str, arch: str) -> tuple[str, str] | None:
    """Return the nearest data set and network of the paper, or None where none is of the kind.

    >>> published_setting("coco2017", "resnet101")
    ('COCO14 val', 'ResNet50')
    """
    data = next((name for kind, name in _DATASETS.items() if kind in dataset.lower()), None)
    network = next((name for kind, name in _NETWORKS.items() if kind in arch.lower()), None)
    return (data, network) if data and network else None


def published_method(method: str) -> str:
    """Return the method's name in the published table, where it has one: the centre is spelled in several ways.

    >>> published_method("center_point"), published_method("rise")
    ('centre', 'rise')
    """
    return "centre" if re.match("cent(er|re)", method.lower()) else method


def setting_differences(dataset: str, arch: str, weights: str, images: int, tolerance: float | None) -> list[str]:
    """Return the differences between a run and the nearest published setting, each in a sentence.

    >>> setting_differences("voc2007", "vgg16_voc", "DEFAULT", 100, 15)
    ['The run has 100 images, VOC07 test has 4952.']
    """
    setting = published_setting(dataset, arch)
    if not setting:
        return []
    data, network = setting
    found = []
    if "".join(re.findall(r"\d+", dataset))[-2:] != re.sub(r"\D", "", data) or "train" in dataset.lower():
        found.append(f"The run's data set is {dataset}, the paper's {data}.")
    kind = next(kind for kind, name in _DATASETS.items() if name == data)
    if arch.lower() != f"{network}_{kind}".lower():
        own = f"{arch} with the weights {weights or 'unknown'}"
        found.append(f"The run's network is {own}, the paper's a {network} tuned on {kind.upper()}.")
    if tolerance not in (None, TOLERANCE):
        found.append(f"The run's tolerance is {tolerance} px, the paper's {TOLERANCE} px.")
    if images < _IMAGES[data]:
        found.append(f"The run has {images} images, {data} has {_IMAGES[data]}.")
    return found
