"""The report of a run: ``python -m benchmarks.report DIR`` is ``saliency report DIR``."""

import sys
from collections.abc import Sequence

from saliency.cli.ending import run_command
from saliency.cli.parsing import Parser
from saliency.cli.reporting import add_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; a folder without a run ends the process."""
    parser = Parser(prog="report")
    add_report(parser)
    return run_command(parser, argv) and sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
