"""How a command ends: its exit code, and the one line of what went wrong."""

import errno
import os
import sys
from collections.abc import Sequence

from torch.distributed import DistError

from saliency.cli.parsing import Parser
from saliency.evaluation.printing import one_line
from saliency.evaluation.running.compute import FATAL
from saliency.evaluation.running.ranks import RankError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what no other argument would have avoided
ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, DistError, *FATAL)


def run_command(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse the arguments, run what they ask for, and return the exit code.

    It is the command's own, or 2 after one line about wrong arguments on stderr, 1 after one about a disk or a device
    that failed, 130 after Ctrl-C. Of several ranks, the first says what is wrong with the arguments.
    """
    try:
        arguments = parser.parse_args(argv)
        code: int = arguments.run(arguments) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader left (`saliency layers | head`): point stdout elsewhere, to exit quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ERRORS as error:
        if own_rank() == 0 or not isinstance(error, ValueError) or isinstance(error, RankError):
            lost = "the process that kept the ranks together is gone: " if isinstance(error, DistError) else ""
            sys.stderr.write(f"{parser.prog}: error: {lost}{one_line(error)}\n")
        wrong = isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno not in FULL)
        return 2 if wrong else 1
    return code


def own_rank() -> int:
    """The number of this process among those that ``torchrun`` started."""
    return int(os.environ.get("RANK", "0"))
