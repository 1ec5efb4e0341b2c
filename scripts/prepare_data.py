"""The command `cujax prepare-data`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("prepare-data", sys.argv[1:]))
