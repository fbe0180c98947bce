"""The report of a run: tables as CSV and Markdown, and one HTML page with curves and pictures.

    python -m benchmarks.report DIR [--out DIR]

DIR is what a benchmark was told to write to. Exit code 2 says that it holds no run.
"""

import argparse
import sys
from collections.abc import Sequence

from saliency.evaluation.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and print where it is."""
    parser = argparse.ArgumentParser(description="Report a run as CSV, Markdown and one HTML page.")
    parser.add_argument("folder", metavar="DIR", help="the folder of a run")
    parser.add_argument("--out", metavar="DIR", help="where to write the report; default: the same folder")
    options = parser.parse_args(argv)
    try:
        paths = write_report(options.folder, options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
