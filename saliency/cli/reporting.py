"""``saliency report``: tables as CSV and Markdown, and one HTML page with curves and pictures, of a benchmark."""

from argparse import Namespace

from saliency.cli.parsing import Parser, say
from saliency.evaluation.report import write_report


def add_report(parser: Parser) -> None:
    """Add the arguments of ``saliency report``."""
    parser.description = (
        "Report a run as CSV, Markdown and one HTML page. Exit code 2 says that the folder holds no run."
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="what 'saliency benchmark' was told to write to")
    add("--method", action="append", metavar="NAME", help="a row of the report, repeatable (all)")
    add("--out", metavar="DIR", help="where to write the report (the same folder)")
    parser.set_defaults(run=report)


def report(arguments: Namespace) -> None:
    """Write the report and say where it is."""
    for path in write_report(arguments.folder, arguments.out, arguments.method):
        say(str(path))
