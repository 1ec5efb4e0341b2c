"""The command `cujax tune`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("tune", sys.argv[1:]))
