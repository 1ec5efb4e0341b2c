"""The command `cujax audit`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("audit", sys.argv[1:]))
