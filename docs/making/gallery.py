"""The gallery: `examples/` as sphinx-gallery takes it, a folder for every chapter and a heading for every script."""

import re
from pathlib import Path
from typing import Any

from docs.making.families import FAMILIES, family_of

TASKS = ("Tasks", "What a day's work asks for, each in a short script.")
HEADING = re.compile(r'"""([^\n"]+)((?:"""|\n).*)', re.DOTALL)


def stage(examples: Path, folder: Path) -> None:
    """Write the scripts of ``examples`` to the gallery's own folder, where what did not change is left untouched."""
    chapters = {"tasks": TASKS} | {key: (family.title, family.about) for key, family in FAMILIES.items()}
    write(folder / "GALLERY_HEADER.rst", chapter("Gallery", "Every script runs as it stands, without a download.", "="))
    for key, (title, about) in chapters.items():
        write(folder / key / "GALLERY_HEADER.rst", chapter(title, about))
    for path in sorted(examples.glob("*.py")):
        write(folder / family_of(path.stem.removesuffix("_manual")) / path.name, headed(path.read_text("utf-8")))
    for path in sorted((examples / "tasks").glob("*.py")):
        write(folder / "tasks" / path.name, headed(path.read_text("utf-8")))


def chapter(title: str, about: str, line: str = "-") -> str:
    return f"{title}\n{line * len(title)}\n\n{about}\n"


def headed(script: str) -> str:
    """The script, the first line of its docstring made a heading, and of what stands behind a colon a sentence.

    >>> print(headed('\"\"\"Grad-CAM by hand: a probe on the layer.\"\"\"'))
    \"\"\"
    Grad-CAM by hand
    ================
    <BLANKLINE>
    A probe on the layer.
    \"\"\"
    """
    first, rest = HEADING.match(script).groups()
    title, _, more = first.rstrip(".").partition(": ")
    said = f"\n{more[0].upper()}{more[1:]}{'' if more.endswith('?') else '.'}\n" if more else ""
    return f'"""\n{title}\n{"=" * len(title)}\n{said}{rest}'


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def pictures(block: Any, names: dict[str, Any], conf: dict[str, Any]) -> str:
    """What a script has written under its own name, for the page (a scraper of sphinx-gallery)."""
    from sphinx_gallery.scrapers import figure_rst  # the tests read this file without the extra `docs`

    written = Path(names["src_file"]).with_suffix(".png")
    if not written.exists():
        return ""
    shown = next(names["image_path_iterator"])
    written.replace(shown)
    return str(figure_rst([shown], conf["src_dir"]))
