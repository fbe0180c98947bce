"""How a command ends: its exit code, and its error in one line."""

import os
import sys
import warnings
from collections.abc import Sequence

from torch.distributed import DistError

from saliency.cli.parsing import Parser
from saliency.evaluation.explainers import FATAL
from saliency.evaluation.printing import one_line
from saliency.evaluation.running.ranks import RankError
from saliency.images import FULL

WRONG = (ValueError, ImportError)  # ImportError: of a package that an extra installs
ERRORS: tuple[type[Exception], ...] = (*WRONG, OSError, DistError, *FATAL)


def run_command(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse the arguments, run what they ask for, and return the exit code.

    It is the command's own, or 2 after one line about wrong arguments on stderr, 1 after one about a disk or a device
    that failed, 130 after Ctrl-C. Of several ranks, the first reports faulty arguments.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: tell_warning(parser.prog, message)
            arguments = parser.parse_args(argv)
            code: int = arguments.run(arguments) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader left (`saliency layers | head`): point stdout elsewhere, to exit quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ERRORS as error:
        if own_rank() == 0 or not isinstance(error, WRONG) or isinstance(error, RankError):
            lost = "the process that kept the ranks together is gone: " if isinstance(error, DistError) else ""
            sys.stderr.write(f"{parser.prog}: error: {lost}{one_line(error)}\n")
        wrong = isinstance(error, WRONG) or (isinstance(error, OSError) and error.errno not in FULL)
        return 2 if wrong else 1
    return code


def tell_warning(prog: str, message: Warning | str) -> None:
    """Write a warning to stderr as one line, without the line of code that a user of the command has not written."""
    sys.stderr.write(f"{prog}: warning: {one_line(message)}\n")


def own_rank() -> int:
    """The number of this process among those that ``torchrun`` started."""
    return int(os.environ.get("RANK", "0"))
