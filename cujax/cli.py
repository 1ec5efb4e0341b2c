"""Command lines: a configuration file, flags that override its fields, and errors that a user can act on."""

import contextlib
import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import tyro
from etils import epath

from cujax.data.images import Source
from cujax.data.requests import ForgetClass, ForgetWhere
from cujax.experiments.cluster import Command
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.default_jobs import default_jobs
from cujax.experiments.division import check_division, divide, is_divided, prepare_devices
from cujax.experiments.jobs import Unit, failures
from cujax.experiments.run import prepare
from cujax.experiments.sweep import SeveralRuns
from cujax.experiments.user_files import load_python_file
from cujax.experiments.workers import end_with_starter, once_each, started_since
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.registry import find_method, method_names
from cujax.methods.traits import method_name
from cujax.model import Model
from cujax.progress import bar, silent
from cujax.sharding import MultihostError, is_first_host, start_multihost, unused_accelerator
from cujax.storage.preemption import Interruption, Preempted

INTERRUPTED = 130
PREEMPTED = 143
DEFAULT_CONFIG = "digits_class"
# In a checkout, or inside an installed wheel.
CONFIGS = next(path for path in (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs") if path.is_dir())


class BadInputError(ValueError):
    """Raised if a command cannot do what was requested, before it has computed anything."""


def profiled(folder: str | None) -> AbstractContextManager:
    """Context manager that writes a profile of the computation inside it to a folder, if one is given."""
    if folder is None:
        return contextlib.nullcontext()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python functions would be most of the file, and of the time to write it
    return jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def notify(sentence: str) -> None:
    """Shows a sentence on stderr."""
    print(sentence, file=sys.stderr)


def _what_is_kept(workdir: epath.Path) -> str:
    """What is complete and what is begun in a folder: models by name, or their number if there are many."""
    is_bucket = "://" in str(workdir)

    def below(pattern: str) -> list[str]:
        found = workdir.glob(pattern) if is_bucket else Path(workdir).rglob(pattern)  # a bucket is not searched as a whole
        return [path.relative_to(workdir).as_posix() for path in found]

    complete, begun = (
        [name.replace(f"{folder}/", "") for name in below(f"{folder}/*")] for folder in ("checkpoints", "progress")
    )
    complete, begun = (sorted(name for name in names if "." not in name.rpartition("/")[2]) for names in (complete, begun))
    found = _counted(complete, "models")
    cells = len(below("audit-*.json"))
    tuned = len([name for name in below("*-*.json") if name.startswith("tuning/") and "/settings" not in name])
    kinds = [found] * bool(found) + [f"{cells} measured models"] * bool(cells) + [f"trials of {tuned} methods"] * bool(tuned)
    return f"Complete and kept in {workdir}: {', '.join(kinds) or 'nothing yet'}." + (
        f" Begun, with saved progress: {_counted(begun, 'models')}." * bool(begun)
    )


_MOST_NAMED = 12


def _counted(names: Sequence[str], kind: str) -> str:
    return ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} {kind}"


def compute_deterministically() -> None:
    """Makes XLA use only deterministic operations on GPUs. Has an effect only before the first computation."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def keep_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next run starts immediately.

    JAX_COMPILATION_CACHE_DIR sets another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cujax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def parse(arguments: Sequence[str], *, configs: Path, description: str) -> Experiment:
    """The experiment that a command line describes.

    Raises:
        ValueError: if the configuration does not exist or is invalid.
        SystemExit: with status 2, after a message, if flags are wrong; with 0 after `--help`.
    """
    default, explanation, rest = _configuration(arguments, configs)
    default, rest = _choose_method(default, rest)
    help_text = (
        f"{description}\n\n{explanation}\n\nmethod:NAME chooses another unlearning method, and the --method flags are then "
        f"its settings (now: {method_name(default.method)}; available: {', '.join(method_names())})."
    )
    # A predicate cannot be given on a command line: it stays as configured unless another request is named.
    keeps_predicate = isinstance(default.forget, ForgetWhere) and not any(word.startswith("forget:") for word in rest)
    experiment = tyro.cli(
        Experiment,
        args=rest,
        default=replace(default, forget=ForgetClass()) if isinstance(default.forget, ForgetWhere) else default,
        description=help_text,
        config=(tyro.conf.ConsolidateSubcommandArgs,),
    )
    return replace(experiment, forget=default.forget) if keeps_predicate else experiment


def parse_setup[Kind: SeveralRuns](kind: type[Kind], arguments: Sequence[str], *, configs: Path, description: str) -> Kind:
    """The setup of several runs that a command line describes; takes its defaults from a configuration.

    Raises:
        ValueError: if the configuration does not exist or is invalid.
        SystemExit: with status 2, after a message, if flags are wrong; with 0 after `--help`.
    """
    default, explanation, rest = _configuration(arguments, configs)
    return tyro.cli(kind, args=rest, default=kind.of(default), description=f"{description}\n\n{explanation}")


def _configuration(arguments: Sequence[str], configs: Path) -> tuple[Experiment, str, list[str]]:
    """The configuration that `--config` names, its description for `--help`, and the other arguments."""
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
        raise ValueError(f"{path} must define CONFIG = cujax.experiments.config.Experiment(...), but it does not.")
    explanation = (
        f"--config NAME or PATH.py sets the defaults of the flags below (now: {config}; available: {', '.join(names)})."
    )
    return default, explanation, rest


def _choose_method(default: Experiment, arguments: list[str]) -> tuple[Experiment, list[str]]:
    """The experiment with the method that `method:NAME` names, and the arguments without that word.

    The arguments after it are moved to the front: the flags of a request come last.
    """
    chosen = [position for position, word in enumerate(arguments) if word.startswith("method:")]
    if not chosen:
        return _with_settings_of_0_1(default, arguments), arguments
    if len(chosen) > 1:
        raise ValueError(f"give one method, not {' and '.join(arguments[position] for position in chosen)}.")
    (start,) = chosen
    end = next((at for at in range(start, len(arguments)) if arguments[at].startswith("forget:")), len(arguments))
    method = find_method(arguments[start].removeprefix("method:"))
    if not isinstance(default.method, method):
        default = replace(default, method=method())
    return default, arguments[start + 1 : end] + arguments[:start] + arguments[end:]


def _with_settings_of_0_1(default: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with `contrastive`, the default of 0.1, if `--method` flags are settings of it alone."""
    words = (word.removeprefix("--method.") for word in arguments if word.startswith("--method."))
    given = {re.split(r"[.=]", word)[0].replace("-", "_") for word in words}

    def has_all(kind: Any) -> bool:
        return is_dataclass(kind) and given <= {item.name for item in fields(kind)}

    if has_all(type(default.method)) or not has_all(ContrastiveUnlearning):
        return default
    notify(
        f"--method.{min(given)} is a setting of contrastive and not of {method_name(default.method)}, the method of the "
        "configuration: this runs contrastive, the default of version 0.1. Write method:contrastive to choose it."
    )
    return replace(default, method=ContrastiveUnlearning())


def take_option(arguments: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Removes `OPTION X` or `OPTION=X` from the arguments; returns its value (None if not given) and the others.

    Raises:
        ValueError: if the option has no value.
    """
    arguments = list(arguments)
    for position, argument in enumerate(arguments):
        if argument.partition("=")[0] != option:
            continue
        _, given, value = argument.partition("=")
        value = value if given else next(iter(arguments[position + 1 :]), "")
        if not value.strip():
            raise ValueError(f"{option} needs a value.")
        return value, arguments[:position] + arguments[position + (1 if given else 2) :]
    return None, arguments


def _end_of_worker(failed: Sequence[str], *, is_child: bool) -> int:
    """Prints a worker's final message, when nothing is left for it, and returns its exit status."""
    if is_child:
        return 0
    notify(
        ("Nothing is left to compute here. " if not failed else f"{len(failed)} failed: {'; '.join(failed)}. ")
        + "For tables and reports, run the same command without --worker."
    )
    return int(bool(failed))


class Prepared(Protocol):
    """Work that is ready to compute: a run, a tuning run, a comparison."""

    @property
    def workdir(self) -> epath.Path: ...

    @property
    def source(self) -> Source: ...

    @property
    def model(self) -> Model: ...


def main[Ready: Prepared](
    work: Callable[[Ready], int | None],
    *,
    configs: Path,
    description: str,
    arguments: Sequence[str] | None = None,
    also_kept_in: Sequence[str] = (),
    parse: Callable[..., Setup] = parse,
    prepare: Callable[..., Ready] = prepare,  # type: ignore[assignment]
    command: Sequence[str] = (),
    units: Callable[[Ready], Sequence[Unit]] | None = None,
) -> int:
    """Parses the command line, prepares the experiment, does the work, and returns the exit status.

    Status 0: done, or the status that the work returns (3: a verdict that is not good enough). 1: the computation failed, or
    its results could not be written. 2: bad input, or a workdir that another process uses; nothing was computed. 130:
    interrupted by Ctrl-C. 143: ended by SIGTERM, as on a preempted machine. After both, progress was saved, and the same
    command resumes from there.

    Args:
        work: The work to do on what was prepared; may return the exit status.
        configs: Folder in which `--config NAME` finds configurations.
        description: What the script does; shown by `--help`.
        arguments: The command line, by default `sys.argv[1:]`.
        also_kept_in: Other folders in which models are stored; an interrupted command reports their contents.
        parse: Reads the command line.
        prepare: Checks it, and prepares what the work is done on.
        command: The part of a `cujax` command line before the arguments; used to start workers.
        units: The units that workers divide; None if the command cannot be divided.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    interruption, began = Interruption(), started_since() or time.time()
    is_child = started_since() is not None
    if is_child:
        end_with_starter(interruption)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # the exception reports the failure once
    with interruption.handled():
        try:
            experiment = parse(arguments, configs=configs, description=description)
            if experiment.deterministic:
                compute_deterministically()
            divided = units if is_divided(experiment) else None
            if is_divided(experiment) and units is None:
                raise ValueError(
                    "this command cannot be divided between processes; leave out --jobs, --worker and --cluster."
                )
            prepare_devices(experiment)
            if experiment.multihost:
                start_multihost()
            keep_compilations()
            warning = unused_accelerator()
            if warning:
                notify(f"warning: {warning}")
            show = bar if is_first_host() and not is_child else silent
            tell = notify if divided is None else once_each(notify)
            ready = prepare(experiment, show, tell, interruption)
            for image in ready.source.skipped:
                tell(f"left out: {image}")
            if units is not None and experiment.jobs is None and divided is None:
                jobs, seconds = default_jobs(experiment, ready.model, ready.source, units(ready))
                if jobs > 1:
                    divided, tell, experiment = units, once_each(notify), replace(experiment, jobs=jobs)
                    notify(
                        f"{jobs} processes share about {seconds / 60:.0f} minutes of work; give --jobs 1 to use a single "
                        "process."
                    )
            models = [] if divided is None else list(divided(ready))
            check_division(experiment, models)
        except (ValueError, OSError, MultihostError) as error:
            notify(f"error: {error}")
            return 2
        except (KeyboardInterrupt, Preempted) as stopped:
            notify("\nInterrupted before anything was computed.")
            return PREEMPTED if isinstance(stopped, Preempted) else INTERRUPTED
        try:
            with profiled(experiment.profile), contextlib.nullcontext() if is_first_host() else _silenced():
                if divided is not None:
                    read = partial(parse, configs=configs, description="")
                    meaning = Command(tuple(arguments), read, prepare, divided, str(Path.cwd()))
                    divide(experiment, models, began, command, meaning, show, tell)
                failed = failures(models, began)
                if experiment.worker:
                    return _end_of_worker(failed, is_child=is_child)
                if failed and not isinstance(experiment, SeveralRuns):  # those list them
                    raise ValueError("; ".join(failed))
                status = work(ready)
        except (KeyboardInterrupt, Preempted) as stopped:
            places = [ready.workdir, *(epath.Path(folder) for folder in also_kept_in if epath.Path(folder).exists())]
            kept = " ".join(map(_what_is_kept, places))
            if not is_child:  # the parent process prints it for all
                notify(f"\nInterrupted. {kept} Run the same command again to continue.")
            return PREEMPTED if isinstance(stopped, Preempted) else INTERRUPTED
        except (FloatingPointError, ValueError, OSError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            notify(f"error: {error}" + ". Free space and run the same command again: completed work is kept." * full)
            return 2 if isinstance(error, BadInputError) else 1
    return status or 0
