"""The directive {picture}: a block of code, and the picture that it makes while the site is built."""

from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.making import blocks

FOLDER = "_pictures"


class Picture(SphinxDirective):
    """The code, and behind it the picture; the argument says what there is to see."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        code = "\n".join(self.content)
        number = self.env.metadata[self.env.docname].setdefault("pictures", 0)
        self.env.metadata[self.env.docname]["pictures"] = number + 1
        caption = self.arguments[0]
        file = name(self.env.docname, number)
        image = nodes.image(
            uri=f"/{FOLDER}/{file}", alt=caption, width=shown_width(Path(self.env.srcdir) / FOLDER / file)
        )
        figure = nodes.figure("", image, nodes.caption(caption, caption))
        return [nodes.literal_block(code, code, language="python"), figure]


def name(page: str, number: int) -> str:
    """The file of a page's picture."""
    return f"{page.replace('/', '-')}-{number}.png"


def make_pictures(app: Sphinx, page: str, source: list[str]) -> None:
    """Run a page that shows pictures, and write them; without them, the tests run it."""
    if not any(block.kind == "{picture}" for block in blocks.blocks(source[0])):
        return
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(blocks.run(Path(app.srcdir) / f"{page}.md")):
        write(picture, folder / name(page, number))


def shown_width(path: Path) -> str:
    """Two thirds of the pixels that the picture has: sharp on a dense screen."""
    with Image.open(path) as picture:
        return f"{2 * picture.width // 3}px"


def write(picture: Any, path: Path) -> None:
    """Write a figure of matplotlib or a picture of Pillow, whose pixels are drawn large."""
    if hasattr(picture, "savefig"):
        picture.savefig(path, facecolor="white")
    else:
        picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(path)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    app.connect("source-read", make_pictures)
    return {"parallel_read_safe": True}
