"""Decides who computes the units of a command: worker processes, a cluster, or this process as one of several workers."""

import os
from collections.abc import Sequence

import jax

from cujax.experiments.cluster import Command, check_cluster, run_on_cluster
from cujax.experiments.config import Setup
from cujax.experiments.jobs import Unit, work_through
from cujax.experiments.workers import run_workers, started_since
from cujax.progress import Progress
from cujax.storage.locks import has_locks
from cujax.storage.workdir import Notify


def is_divided(setup: Setup) -> bool:
    """Whether more than one process computes."""
    return (setup.jobs or 1) > 1 or setup.worker or setup.cluster is not None


def prepare_devices(setup: Setup) -> None:
    """Makes the processes of one machine share a GPU's memory. Has an effect only before the first computation."""
    if (setup.jobs or 1) > 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def check_division(setup: Setup, units: Sequence[Unit]) -> None:
    """Raises ValueError if the requested processes cannot divide the units."""
    if setup.cluster is not None:
        check_cluster(setup.cluster)
        return
    if (setup.jobs or 1) > 1 and jax.default_backend() == "tpu":
        raise ValueError(f"jobs is {setup.jobs}, but only one process can use a TPU; leave out --jobs.")
    for unit in units:
        if not has_locks(unit.folder):
            raise ValueError(
                f"{unit.folder} is in a bucket, which has no locks, so workers cannot divide the work there; leave out "
                "--jobs and --worker, give a folder on this machine or on a shared file system, or use a Dask cluster with "
                "--cluster tcp://HOST:PORT."
            )


def divide(
    setup: Setup,
    units: Sequence[Unit],
    since: float,
    program: Sequence[str],
    command: Command,
    progress: Progress,
    notify: Notify,
) -> None:
    """Computes the units; failures are noted next to them.

    Args:
        setup: The setup, which says who computes.
        units: The units, each after those that it needs.
        since: Failures noted before this time are retried.
        program: The part of a `cujax` command line before the arguments.
        command: The rest of the command line, and its meaning.
        progress: Shows how many units are settled, if others compute.
        notify: Receives messages for the user.
    """
    if setup.cluster is not None:
        run_on_cluster(setup.cluster, command, units, progress, notify)
    elif started_since() is None and (setup.jobs or 1) > 1:
        jobs = min(setup.jobs or 1, max(len(units), 1))
        worker = [] if setup.worker else ["--worker"]
        run_workers([*program, *worker, *command.arguments], jobs, units, since, progress, notify)
    else:
        work_through(units, since, notify)
