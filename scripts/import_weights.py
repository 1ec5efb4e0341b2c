"""The command `cujax import`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("import", sys.argv[1:]))
