"""The names that TorchRay's scripts import besides its methods: an example and its picture, and the pointing game.

They run with the imports changed: ``torchray.benchmark`` and ``torchray.benchmark.pointing_game`` to this module,
``torchray.attribution.…`` to :mod:`saliency`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import Module

from saliency.engine.checks import check_count, check_flag, check_tensor, check_type, is_int, shown
from saliency.engine.outputs import main_output
from saliency.evaluation.pointing_game import PointingGame, PointingGameBenchmark
from saliency.images import read_image
from saliency.networks.models import DEFAULT, SCENES, load_network, preprocessing
from saliency.networks.preprocessing import preprocess
from saliency.plot import display, save_figure, show
from saliency.scenes import SceneNet, make_scene, scene_network

__all__ = ["PointingGame", "PointingGameBenchmark", "get_example_data", "plot_example"]

EXAMPLE = 2  # a scene with a heart and a square


class _NumberedLayers(nn.Module):
    """The embedded network, its layers at the places where TorchRay's examples look for VGG16's."""

    def __init__(self, network: SceneNet) -> None:
        super().__init__()
        stages = {0: network.conv1, 1: network.bn1, 2: network.relu}
        stages |= {4: network.layer1, 9: network.layer2, 16: network.layer3, 29: network.layer4}
        head = {0: network.avgpool, 1: nn.Flatten(1), 6: network.fc}
        self.features = nn.Sequential(*(stages.get(place, nn.Identity()) for place in range(31)))
        self.classifier = nn.Sequential(*(head.get(place, nn.Identity()) for place in range(7)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, 8)."""
        scores: Tensor = self.classifier(self.features(x))
        return scores


def get_example_data(
    arch: str | None = None,
    shape: int | None = None,
    photo: str | Path | None = None,
    weights: str | Path | None = DEFAULT,
) -> tuple[Module, Tensor, int, int]:
    """A network in evaluation mode, an input (1, 3, H, W), and the two classes with the highest scores.

    Without arguments nothing is downloaded: the embedded network, whose layers have the names of TorchRay's VGG16
    (``features.29``), and a scene with two objects. ``arch`` is the name of another network, with its ``weights``;
    ``photo`` the file of another image. ``shape`` is the shorter side of the input in pixels, None the network's own.
    Raises ``ValueError`` as ``load_network`` and ``read_image``.

    >>> model, x, category_id_1, category_id_2 = get_example_data()
    >>> x.shape, [(item.label in (category_id_1, category_id_2)) for item in make_scene(EXAMPLE).objects]
    (torch.Size([1, 3, 128, 128]), [True, True])
    """
    if shape is not None:
        check_count("shape", shape)
    model = _NumberedLayers(scene_network()).eval() if arch is None else load_network(arch, weights)
    image = make_scene(EXAMPLE).image if photo is None else read_image(photo)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.requires_grad_(False).to(device)
    x = preprocess(image, preprocessing(arch or SCENES, shape))[None].to(device)
    with torch.no_grad():
        scores = main_output(model(x))[0]  # of a network as TorchRay's, at every position
    first, second = scores.reshape(len(scores), -1).mean(1).topk(2).indices.tolist()
    return model, x, first, second


def plot_example(
    input: Tensor,
    saliency: Tensor,
    method: str,
    category_id: int | Sequence[int] | Tensor,
    show_plot: bool = False,
    save_path: str | Path | None = None,
) -> object:
    """A figure of matplotlib: each image of ``input`` (N, 3, H, W), and beside it its map of ``saliency`` (N, 1, h, w).

    ``method`` is the title, ``category_id`` the class of all images or of each in turn. The values of an image are
    shown from its least to its largest. The picture is written to ``save_path``, whose folder is created;
    ``show_plot`` opens a window. Raises ``ValueError`` where there are not as many maps as images, and for a path that
    cannot be written to.
    """
    for argument, value in (("input", input), ("saliency", saliency)):
        check_tensor(argument, value)
        if value.ndim != 4 or len(value) != len(input) or not value.numel() or value.is_complex():
            raise ValueError(f"{argument}={shown(value)} does not fit; expected (N, C, H, W) for {len(input)} images.")
    check_type("method", method, str, "the name of a method")
    check_flag("show_plot", show_plot)
    given = category_id.tolist() if isinstance(category_id, Tensor) else category_id
    classes = list(given) if isinstance(given, Sequence) else [given]
    classes = [one.tolist() if isinstance(one, Tensor) else one for one in classes]
    if not classes or not all(map(is_int, classes)):
        raise ValueError(
            f"category_id={shown(category_id)} is not a class; expected its number, or one for each image."
        )
    pixels = input.detach().float()
    least, most = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    images = (pixels - least) / (most - least).clamp(min=torch.finfo(pixels.dtype).tiny)
    titles = [f"category {int(classes[place % len(classes)])}" for place in range(len(input))]
    figure = show(list(images), {method: list(saliency.detach())}, titles)
    if save_path is not None:
        save_figure(figure, save_path, "save_path")
    if show_plot:
        display(figure)
    return figure
