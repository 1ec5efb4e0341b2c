"""The command `cujax import-weights`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("import-weights", sys.argv[1:]))
