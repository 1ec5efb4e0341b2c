"""`python -m cujax` is the command `cujax`."""

import sys

from cujax.commands import main

if __name__ == "__main__":
    sys.exit(main())
