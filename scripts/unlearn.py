"""The command `cujax unlearn`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("unlearn", sys.argv[1:]))
