"""The command line: ``saliency explain``, ``saliency methods`` and ``saliency layers``."""

import os
import sys
from collections.abc import Sequence

from saliency.cli.explaining import add_explain
from saliency.cli.listing import layers_table, methods_table
from saliency.cli.parsing import Parser, say
from saliency.evaluation.printing import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 after one line of error on stderr, or 130 after Ctrl-C.

    >>> main(["explain", "nowhere.jpg"])
    2
    """
    try:
        arguments = build_parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader left (`saliency layers | head`): point stdout elsewhere, to exit quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"saliency: error: {one_line(error)}\n")
        return 2
    return 0


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="saliency", description="Saliency maps of image classifiers.")
    commands = parser.add_subparsers(title="commands", metavar="{explain,methods,layers}", required=True)
    add_explain(commands.add_parser("explain", help="write maps and overlays of photos"))
    methods = commands.add_parser("methods", help="list the methods")
    methods.add_argument("--model", metavar="ARCH", help="also show lrp's rules for a network, such as resnet50")
    methods.set_defaults(run=lambda arguments: say(methods_table(arguments.model)))
    layers = commands.add_parser("layers", help="list the layers of a network, with the shapes of their outputs")
    layers.add_argument("--arch", default="resnet50", help="'scenes[_vit]' or a classifier of torchvision (resnet50)")
    layers.set_defaults(run=lambda arguments: say(layers_table(arguments.arch)))
    return parser
