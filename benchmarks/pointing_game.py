"""How good are the maps? ``python -m benchmarks.pointing_game`` is ``saliency benchmark``, under torchrun as well."""

import sys
from collections.abc import Sequence

from saliency.cli.benchmarking import add_benchmark
from saliency.cli.ending import run_command
from saliency.cli.parsing import Parser


def build_parser() -> Parser:
    """The arguments of ``saliency benchmark``."""
    parser = Parser(prog="pointing_game")
    add_benchmark(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
