"""The command `cujax`: `cujax COMMAND ...`, and the scripts of a checkout, which run the same commands.

A command is a module of this package with a `main(arguments) -> exit status`; its docstring is what `--help` says.
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
    "audit": "look harder at an unlearned model",
    "compare": "compare methods with each other and with models retrained from scratch",
    "tune": "choose the settings of methods on validation data",
    "train": "train the original and the retrained models alone",
    "import-weights": "make an original of weights trained elsewhere",
    "lineage": "show what a checkpoint was made from, and verify it",
    "purge": "remove what still holds forgotten samples",
    "prepare-data": "download and prepare a TFDS data set",
    "benchmark": "time the steps on this machine",
}
_USAGE = "usage: cujax COMMAND [flags]; cujax COMMAND --help explains its flags"


def run(command: str, arguments: Sequence[str]) -> int:
    """Runs one command and gives its exit status.

    Args:
        command: A key of `COMMANDS`.
        arguments: Its flags.
    """
    handlers = end_while_importing()
    module = importlib.import_module(f"cujax.commands.{command.replace('-', '_')}")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    status: int = module.main(list(arguments))
    return status


def main() -> int:
    """The entry point of the command `cujax`: 0 done, 2 where there is no such command, else what the command gives."""
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
    """Has Ctrl-C and SIGTERM end the process with a sentence, as imports take seconds; gives the handlers before."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        print("\nInterrupted before anything was computed.", file=sys.stderr, flush=True)
        os._exit(130 if number == signal.SIGINT else 143)

    return {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
