"""The command `cujax`: `cujax COMMAND ...`, and the scripts of a checkout, which run the same commands.

A command is a module of this package with a `main(arguments) -> exit status`; `--help` shows its docstring.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

COMMANDS = {
    "unlearn": "train, unlearn, audit, and end with a verdict",
    "audit": "examine an unlearned model in more depth",
    "compare": "compare methods with each other and with models retrained from scratch",
    "tune": "choose the settings of methods on validation data",
    "train": "train only the original and the retrained models",
    "import": "import weights trained with another program as an original",
    "export": "write the weights of a checkpoint for other programs",
    "lineage": "show where a checkpoint comes from, and verify it",
    "purge": "remove files that contain forgotten samples or were trained on them",
    "prepare-data": "download and prepare a TFDS data set",
    "benchmark": "time the steps on this machine",
}
# The module of this package, and the script, of a command whose name is no module's.
MODULES = {"import": "import_weights", "export": "export_weights", "prepare-data": "prepare_data"}
_USAGE = "usage: cujax COMMAND [flags]; cujax COMMAND --help explains its flags"


def run(command: str, arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status.

    Args:
        command: A key of `COMMANDS`.
        arguments: Its flags.
    """
    handlers = end_while_importing()
    module = importlib.import_module(f"cujax.commands.{MODULES.get(command, command)}")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    status: int = module.main(list(arguments))
    return status


def main() -> int:
    """The entry point of the command `cujax`: returns 2 if there is no such command, otherwise the command's exit status."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        sys.argv[0] = f"cujax {command}"
        return run(command, arguments)
    listed = "\n".join(f"  {name:<15} {what}" for name, what in COMMANDS.items())
    if command in ("-h", "--help"):
        print(f"{_USAGE}\n\n{listed}\n\nStart with: cujax unlearn")
        return 0
    print(f"error: there is no command {command!r}.\n{_USAGE}\n\n{listed}", file=sys.stderr)
    return 2


def end_while_importing() -> dict[int, Any]:
    """Makes Ctrl-C and SIGTERM end the process with a message, as imports take seconds; returns the previous handlers."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        print("\nInterrupted before anything was computed.", file=sys.stderr, flush=True)
        os._exit(130 if number == signal.SIGINT else 143)

    return {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
