"""``saliency report``: tables as CSV and Markdown, and one HTML page with curves and pictures, of a benchmark."""

from argparse import Namespace
from pathlib import Path

from saliency.cli.parsing import Parser, say
from saliency.engine.checks import did_you_mean
from saliency.evaluation.report import write_report


def add_report(parser: Parser) -> None:
    """Add the arguments of ``saliency report``."""
    parser.description = (
        "Report a run as CSV, Markdown and one HTML page. The exit code is 2 if the folder holds no run."
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="the --out folder of 'saliency benchmark'")
    add("--method", action="append", metavar="NAME", help="a row of the report, repeatable (all)")
    add("--out", metavar="DIR", help="where to write the report (the same folder)")
    parser.set_defaults(run=report)


def report(arguments: Namespace) -> None:
    """Write the report and say where it is."""
    folder = Path(arguments.folder)
    if not folder.is_dir():
        hint = did_you_mean(str(folder), map(str, folder.parent.glob("*/")))
        raise ValueError(f"folder={arguments.folder!r} is not a folder{hint}; expected the folder of a run.")
    try:
        paths = write_report(folder, arguments.out, arguments.method)
    except OSError as error:
        out, reason = arguments.out or arguments.folder, error.strerror or error
        raise ValueError(f"out={out!r} cannot be written to ({reason}); expected a folder of one's own.") from error
    for path in paths:
        say(str(path))
