"""The command `cujax lineage`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("lineage", sys.argv[1:]))
