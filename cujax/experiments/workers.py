"""The processes of one command on one machine, which divide its units, each with its share of the cores."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from cujax.experiments.jobs import Unit, is_settled
from cujax.progress import Progress
from cujax.storage.locks import POLL_SECONDS
from cujax.storage.preemption import Interruption
from cujax.storage.workdir import Notify

# In the environment of a process that another one of the same command started: since when failures count.
_SINCE = "CUJAX_WORKER_SINCE"
# So many times the number of workers may be killed before a unit is settled: each ends as many processes as a unit may.
_MOST_KILLED = 2
_THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def started_since() -> float | None:
    """The time since which failures count in the command that started this process as a worker; None if none did."""
    since = os.environ.get(_SINCE)
    return None if since is None else float(since)


def shares(cores: Sequence[int], jobs: int) -> list[list[int]]:
    """The cores of each process, divided as equally as possible; with more processes than cores, some share one.

    >>> shares([0, 1, 2, 3, 4], 2)
    [[0, 1, 2], [3, 4]]
    >>> shares([0, 1], 3)
    [[0], [1], [0]]
    """
    if jobs >= len(cores):
        return [[cores[number % len(cores)]] for number in range(jobs)]
    edges = [-(-number * len(cores) // jobs) for number in range(jobs + 1)]
    return [list(cores[begin:end]) for begin, end in itertools.pairwise(edges)]


def own_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """Context manager in which processes are started on these cores, if the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _started(command: Sequence[str], cores: Sequence[int], since: float, notify: Notify) -> subprocess.Popen[str]:
    """A worker whose thread pools are as large as its share. It does not receive Ctrl-C, and ends when its input closes."""
    threads = dict.fromkeys(_THREADS, str(len(cores)))
    with _on(cores):
        worker = subprocess.Popen(
            [sys.executable, "-m", "cujax", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**os.environ, **threads, _SINCE: repr(since)},
        )
    threading.Thread(target=_show, args=(worker, notify), daemon=True).start()
    return worker


def _show(worker: subprocess.Popen[str], notify: Notify) -> None:
    """Forwards a worker's messages, except while it is ending."""
    assert worker.stdin is not None
    assert worker.stderr is not None
    with worker.stderr:
        for line in worker.stderr:
            if not worker.stdin.closed:
                notify(line.rstrip())


def end_with_starter(interruption: Interruption) -> None:
    """Asks a worker to end, as SIGTERM does, when the process that started it ends or closes the worker's input."""

    def watch() -> None:
        sys.stdin.read()
        if not interruption.asked:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def once_each(notify: Notify) -> Notify:
    """Shows each message only once, since all workers report the same remarks on the input that they share."""
    shown: set[str] = set()

    def show(sentence: str) -> None:
        if sentence and sentence not in shown:
            shown.add(sentence)
            notify(sentence)

    return show


def run_workers(
    command: Sequence[str], jobs: int, units: Sequence[Unit], since: float, progress: Progress, notify: Notify
) -> None:
    """Divides the units among worker processes, and waits for them; failures are noted next to the units.

    A worker that is killed is replaced, unless too many were killed since a unit was settled. When this process is
    interrupted, all workers first save their progress and end; when it is killed, they do so too.

    Args:
        command: The command line of a worker, without `cujax`.
        jobs: The number of workers, at most the number of units left.
        units: The units to divide.
        since: Failures noted before this time are retried.
        progress: Shows how many units are settled.
        notify: Receives the workers' messages, until they are asked to end.
    """
    left = [unit for unit in units if not is_settled(unit, since)]
    if not left:
        return
    every_share, killed = shares(own_cores(), min(jobs, len(left))), 0
    workers: dict[int, subprocess.Popen[str]] = {}
    with progress("computed", len(units)) as advance, _ended(workers):
        advance(len(units) - len(left))
        for number, cores in enumerate(every_share):
            workers[number] = _started(command, cores, since, notify)
        while workers:
            time.sleep(POLL_SECONDS)
            still = [unit for unit in left if not is_settled(unit, since)]
            advance(len(left) - len(still))
            killed = killed if len(still) == len(left) else 0
            left = still
            for number, status in [(number, worker.poll()) for number, worker in workers.items()]:
                if status is None:
                    continue
                ended = workers.pop(number)
                if status >= 0 or not left:
                    continue
                killed += 1
                notify(f"Worker process {ended.pid} was killed (signal {-status}); its work is started again.")
                if killed <= _MOST_KILLED * len(every_share):
                    workers[number] = _started(command, every_share[number], since, notify)


@contextlib.contextmanager
def _ended(workers: dict[int, subprocess.Popen[str]]) -> Iterator[None]:
    """On exit, asks every worker to end and waits for it; a second interruption kills them."""
    try:
        yield
    finally:
        try:
            for worker in workers.values():
                assert worker.stdin is not None
                worker.stdin.close()
            for worker in workers.values():
                worker.wait()
        except BaseException:
            for worker in workers.values():
                worker.kill()
            raise
