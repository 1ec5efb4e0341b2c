"""The command `cujax train`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
