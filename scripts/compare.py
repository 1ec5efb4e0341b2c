"""The command `cujax compare`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("compare", sys.argv[1:]))
