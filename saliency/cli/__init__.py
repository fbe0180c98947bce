"""The command line: ``saliency explain``, ``benchmark``, ``report``, ``methods`` and ``layers``."""

from collections.abc import Sequence

from saliency.cli.benchmarking import add_benchmark
from saliency.cli.ending import run_command
from saliency.cli.explaining import add_explain
from saliency.cli.listing import layers_table, methods_table
from saliency.cli.parsing import Parser, say
from saliency.cli.reporting import add_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: see :func:`saliency.cli.ending.run_command`.

    >>> main(["explain", "nowhere.jpg"])
    2
    """
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="saliency", description="Saliency maps of image classifiers, and how good they are.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_explain(commands.add_parser("explain", help="write maps and overlays of photos"))
    add_benchmark(commands.add_parser("benchmark", help="measure how good the maps are, on a data set"))
    add_report(commands.add_parser("report", help="write the report of a benchmark"))
    methods = commands.add_parser("methods", help="list the methods")
    methods.add_argument("--model", metavar="ARCH", help="also show lrp's rules for a network, such as resnet50")
    methods.set_defaults(run=lambda arguments: say(methods_table(arguments.model)))
    layers = commands.add_parser("layers", help="list the layers of a network, with the shapes of their outputs")
    layers.add_argument("--arch", default="resnet50", help="'scenes[_vit]' or a classifier of torchvision (resnet50)")
    layers.set_defaults(run=lambda arguments: say(layers_table(arguments.arch)))
    return parser
