"""The command `cujax benchmark`, from a checkout."""

import sys

from cujax.commands import run

if __name__ == "__main__":
    sys.exit(run("benchmark", sys.argv[1:]))
