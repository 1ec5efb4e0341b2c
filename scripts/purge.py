"""The command `cujax purge`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("purge", sys.argv[1:]))
