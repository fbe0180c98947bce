"""``python -m saliency``."""

import sys

import saliency

if __name__ == "__main__":
    # PAIR-code's distribution has the same import name; installed later, it overwrites files of this one.
    if not hasattr(saliency, "METHODS"):
        path = saliency.__file__
        sys.exit(f"saliency: error: {path} is of another distribution; uninstall that, and reinstall saliency-torch.")
    from saliency.cli import main

    sys.exit(main())
