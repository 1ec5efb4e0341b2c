"""Command lines: a configuration file, flags that override its fields, and errors that a person can act on."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import tyro

from cujax.data.requests import ForgetClass, ForgetWhere
from cujax.experiment import Experiment, Run, load_python_file, prepare
from cujax.progress import bar, silent
from cujax.sharding import MultihostError, is_first_host, start_multihost, unused_accelerator

INTERRUPTED = 130
DEFAULT_CONFIG = "digits_class"


class BadInputError(ValueError):
    """What was asked for cannot be done; raised by work that has not computed anything yet."""


def main(work: Callable[[Run], None], *, configs: Path, description: str, arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, prepares the experiment, does the work, and gives the exit status.

    Status 0: done. 1: the computation failed. 2: bad input, told before anything was computed. 130: interrupted.

    Args:
        work: What to do with the prepared run.
        configs: Folder of the configurations that `--config NAME` finds.
        description: What the script does; shown by `--help`.
        arguments: The command line, `sys.argv[1:]` where not given.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        experiment = parse(arguments, configs=configs, description=description)
        if experiment.multihost:
            start_multihost()
        keep_compilations()
        warning = unused_accelerator()
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        run = prepare(experiment, bar if is_first_host() else silent)
    except (ValueError, OSError, MultihostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted before anything was computed.", file=sys.stderr)
        return INTERRUPTED
    profile = experiment.profile
    try:
        with (
            jax.profiler.trace(profile, create_perfetto_trace=True) if profile else contextlib.nullcontext(),
            contextlib.nullcontext() if is_first_host() else _silenced(),
        ):
            work(run)
    except KeyboardInterrupt:
        saved = sorted(path.name for path in (run.workdir / "checkpoints").glob("*") if "." not in path.name)
        print(
            f"\nInterrupted. Complete and kept in {run.workdir}: {', '.join(saved) or 'nothing yet'}. "
            "Run the same command again to continue.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInputError) else 1
    return 0


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def keep_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next run starts at once.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cujax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def parse(arguments: Sequence[str], *, configs: Path, description: str) -> Experiment:
    """The experiment that a command line describes.

    Raises:
        ValueError: if the configuration does not exist, or is not one.
        SystemExit: with status 2, after a message, if flags are wrong; with 0 after `--help`.
    """
    names = sorted(path.stem for path in configs.glob("*.py") if path.stem != "__init__")
    config, rest = take_option(arguments, "--config")
    config = config or DEFAULT_CONFIG
    path = Path(config) if config.endswith(".py") else configs / f"{config}.py"
    if not path.is_file():
        raise ValueError(
            f"configuration {config!r} does not exist; choose one of {', '.join(names)}, or give a path to your own .py "
            "file with CONFIG = Experiment(...)."
        )
    default = getattr(load_python_file(path), "CONFIG", None)
    if not isinstance(default, Experiment):
        raise ValueError(f"{path} must define CONFIG = cujax.experiment.Experiment(...), but it does not.")
    help_text = (
        f"{description}\n\n--config NAME or PATH.py sets the defaults below (now: {config}; there are {', '.join(names)}); "
        "give it first."
    )
    # A predicate cannot come from a command line: it stays as configured unless another request is named.
    keeps_predicate = isinstance(default.forget, ForgetWhere) and not any(word.startswith("forget:") for word in rest)
    experiment = tyro.cli(
        Experiment,
        args=rest,
        default=replace(default, forget=ForgetClass()) if isinstance(default.forget, ForgetWhere) else default,
        description=help_text,
        config=(tyro.conf.ConsolidateSubcommandArgs,),
    )
    return replace(experiment, forget=default.forget) if keeps_predicate else experiment


def take_option(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Takes `OPTION X` or `OPTION=X` off the arguments: its value, None where it is not given, and the others.

    Raises:
        ValueError: if the option has no value.
    """
    arguments = list(arguments)
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}="), arguments[:position] + arguments[position + 1 :]
        if argument == option:
            if position + 1 == len(arguments):
                raise ValueError(f"{option} needs a value.")
            return arguments[position + 1], arguments[:position] + arguments[position + 2 :]
    return None, arguments
