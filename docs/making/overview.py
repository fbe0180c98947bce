"""The first picture: one scene by every method, `examples/methods.jpg`. Drawn by ``python -m docs.making.overview``."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from docs.making.families import FAMILIES
from saliency import METHODS, explain, overlay
from saliency.images import to_picture
from saliency.scenes import make_scene, scene_network

PATH = Path(__file__).parents[2] / "examples" / "methods.jpg"
SCENE, TARGET = 9, "star"
OF_A_BATCH = ("feature_permutation",)  # which one image has not
LAYERS = {"internal_influence": "layer3"}  # behind layer4 the network is linear: the same everywhere
COLUMNS, SIDE, TEXT, GAP = 7, 196, 44, 6


def names() -> list[str]:
    """The methods that explain one image, a family after the other."""
    return [name for family in FAMILIES.values() for name in family.methods if name not in OF_A_BATCH]


def panels() -> Iterator[tuple[str, Image.Image]]:
    """The scene, and its map by each method; attention is the transformer's."""
    photo = make_scene(SCENE).image
    yield "image", to_picture(photo)
    networks = {False: scene_network(), True: scene_network("vit")}
    for name in names():
        found = explain(networks[METHODS[name].needs_attention], photo, TARGET, [name], LAYERS.get(name))
        yield name, overlay(photo, found.maps[name])


def two_lines(name: str) -> str:
    """A long name, broken at the underscore that is nearest to its middle.

    >>> two_lines("contrastive_excitation_backprop"), two_lines("grad_cam")
    ('contrastive_\\nexcitation_backprop', 'grad_cam')
    """
    ends = [place + 1 for place, letter in enumerate(name) if letter == "_"]
    if len(name) <= 16 or not ends:
        return name
    end = min(ends, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:end]}\n{name[end:]}"


def draw() -> Image.Image:
    """All panels, each under its name."""
    drawn = list(panels())
    rows = -(-len(drawn) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 17)
    for place, (name, picture) in enumerate(drawn):
        left, top = GAP + place % COLUMNS * (SIDE + GAP), GAP + place // COLUMNS * (SIDE + TEXT + GAP)
        middle = (left + SIDE / 2, top + TEXT - 3)
        pen.multiline_text(middle, two_lines(name), "black", font, anchor="md", align="center", spacing=2)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + TEXT))
    return sheet


if __name__ == "__main__":
    draw().save(PATH, quality=68, comment=" ".join(names()))
