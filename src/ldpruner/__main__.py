"""`python -m ldpruner` does what the command `ldpruner` does."""

import sys

from ldpruner.cli import main

if __name__ == "__main__":
    sys.exit(main())
