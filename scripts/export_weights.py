"""The command `cujax export`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))
