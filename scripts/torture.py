"""Kills scripts/unlearn.py with SIGKILL at random moments, again and again, and compares the results.

One run is not interrupted. Others are killed and restarted until they are done, with progress saved so often that many
kills happen during a save. Their parameters, metadata, metrics and report must then be those of the first run, except for
times. Status 1 if one differs or fails by itself.
"""

import hashlib
import json
import math
import multiprocessing
import os
import random
import runpy
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from cujax._ranges import Count, Seed, check_fields
from cujax.progress import bar
from cujax.storage.checkpoints import load_checkpoint, to_plain

# Exit statuses of runs that computed everything; 3: the verdict is not good enough.
ENDED = (0, 3)
# What differs between equal runs: times, and digests of checkpoints, which hold times.
TIMES = ("seconds", "created", "lineage", "checkpoints", "seconds_to_judge", "next_step")
LOADING = "loading or reporting"
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Torture:
    """How often to kill, and what.

    Attributes:
        folder: Folder of the runs; it must not exist yet.
        kills: Total number of kills.
        seed: Seed of the moments.
        flags: Flags of scripts/unlearn.py, as in --flags="--seed 3 --save-steps 20".
    """

    folder: Path = Path("runs/torture")
    kills: Count = 50
    seed: Seed = 0
    flags: str = "--save-steps 10"

    def __post_init__(self) -> None:
        check_fields(self)


def unlearn(folder: Path, flags: str) -> None:
    """Runs scripts/unlearn.py in a folder, in its own process, with its output in a file there."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    sys.argv = ["unlearn.py", "--workdir", "run", *shlex.split(flags)]
    runpy.run_path(str(Path(__file__).resolve().with_name("unlearn.py")), run_name="__main__")


def attempt(torture: Torture, folder: Path, before: float = math.inf, computing: float = math.inf) -> int | None:
    """Runs the command in a folder; returns its exit status, or None if it was killed.

    Args:
        torture: What to run.
        folder: Where to run it.
        before: Kill it this many seconds after its start.
        computing: Kill it this many seconds after it is first seen computing, if that is earlier.
    """
    # Forked from a server that has imported everything, so that the time goes into computing.
    process = PROCESSES.Process(target=unlearn, args=(folder.resolve(), torture.flags))
    started = time.time()
    process.start()
    deadline, seen = started + before, False
    while process.is_alive() and time.time() < deadline:
        time.sleep(0.01)
        if not seen and where(folder / "run", started) != LOADING:
            deadline, seen = min(deadline, time.time() + computing), True
    process.kill()
    process.join()
    return None if process.exitcode == -signal.SIGKILL else process.exitcode


def timeless(value: Any) -> Any:
    """The same data without times, and without digests of checkpoints, which cover times."""
    if isinstance(value, dict):
        kept = {name: child for name, child in value.items() if name not in TIMES}
        return {name: timeless(child) for name, child in kept.items()}
    return [timeless(child) for child in value] if isinstance(value, list | tuple) else value


def outcome(run: Path) -> dict[str, Any]:
    """The results of a finished run, by file."""
    found: dict[str, Any] = {"report": timeless(json.loads((run / "report.json").read_text()))}
    for path in sorted((run / "checkpoints").iterdir()):
        checkpoint = load_checkpoint(path)
        arrays = hashlib.sha256(b"".join(array.tobytes() for array in to_plain(checkpoint.variables).values()))
        found[path.name] = [arrays.hexdigest(), timeless(asdict(checkpoint.metadata))]
    for path in sorted((run / "metrics").iterdir()):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["left over"] = [str(path.relative_to(run)) for path in run.rglob("*-tmp*")] + (
        ["progress"] * (run / "progress").exists()
    )
    return found


def where(run: Path, since: float) -> str:
    """What a killed process was doing."""
    files = [path for path in (run / "metrics").glob("*.jsonl") if path.stat().st_mtime > since]
    if files:
        return max(files, key=lambda path: path.stat().st_mtime).stem
    return LOADING


def main(torture: Torture) -> int:
    """Runs everything and prints the results."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(torture.folder.resolve() / "xla"))
    rng, places, torn, failures, runs = random.Random(torture.seed), Counter[str](), 0, list[str](), 0
    PROCESSES.set_forkserver_preload(["cujax.cli", "cujax.reports.run_report"])
    reference = torture.folder / "reference"
    reference.mkdir(parents=True)
    started = time.time()
    if attempt(torture, reference) not in ENDED:
        sys.exit(f"the run without kills failed: see {reference / 'output.txt'}")
    duration = time.time() - started
    expected = outcome(reference / "run")
    with bar("kills", torture.kills) as advance:
        while places.total() < torture.kills:
            folder = torture.folder / f"killed_{runs}"
            folder.mkdir()
            runs, status = runs + 1, None
            while status is None:
                started = time.time()
                moments = duration * rng.uniform(0.1, 1), duration * rng.uniform(0, 0.15)
                status = attempt(torture, folder, *(moments if places.total() < torture.kills else ()))
                if status is None:
                    places[where(folder / "run", started)] += 1
                    torn += any((folder / "run").rglob("*.orbax-checkpoint-tmp*"))
                    advance(1, f"run {runs}")
            if status not in ENDED:
                failures.append(f"{folder} ended with status {status}")
            else:
                found = outcome(folder / "run")
                failures += [
                    f"{folder}: {name} differs"
                    for name in expected.keys() | found.keys()
                    if expected.get(name) != found.get(name)
                ]
    print(f"{places.total()} kills over {runs} runs, {torn} of them in the middle of a save; uninterrupted {duration:.1f} s")
    print("  while at:", ", ".join(f"{place} {count}" for place, count in sorted(places.items())))
    print("\n".join(failures) or "Every run ended with the same parameters, metadata, metrics and report.")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Torture, description=__doc__)))
