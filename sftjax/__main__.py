"""`python -m sftjax` is the command `sftjax`, for whoever's PATH does not hold it."""

import sys

from sftjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
