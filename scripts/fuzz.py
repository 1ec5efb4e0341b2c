"""Draws command lines for all scripts, mostly valid ones with one odd value, and checks how they end.

Each must be accepted, or rejected with exit status 2 and a message, before anything is computed: no traceback, no other
status, nothing written outside its folder. All run in this process; nothing is trained. Exit status 1: some violated this;
they are printed with the seed that reproduces them.

    uv run scripts/fuzz.py --draws 300 --seed 1
"""

import contextlib
import io
import os
import random
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets  # noqa: F401 - its lazy imports and those of the bar's thread are not to meet
import tyro

from cujax._ranges import Count, Seed, check_fields
from cujax.cli import main, parse_setup
from cujax.commands import audit, import_weights, lineage, purge
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.experiments.tune import Tuning, prepare_tuning
from cujax.methods.registry import method_names
from cujax.progress import bar

CONFIGS = Path(__file__).parents[1] / "configs"
_SECONDS = 120

# Values as people type them by mistake, or as programs pass them on.
ODD = (
    *("", " ", "0", "-1", "1.5", "nan", "inf", "1e99", "2147483648", "None", "null", "True", "[]", "é", "日本", "a b", "'"),
    *("../..", "/dev/null", "/nonexistent/x", "x.npz", "x.py", "x.py:f", "s3://bucket/x", "class:5", "name:", "--", "-h?"),
    "x" * 300,
)
# Flags that every experiment takes, each with values that are valid.
COMMON = {
    "--network": ("small_cnn", "cnn"),
    "--dtype": ("float32", "bfloat16"),
    "--data.limit": ("300", "900"),
    "--data.label-noise": ("0", "0.1"),
    "--data.source": ("digits", "./own.npz", "./pictures/"),
    "--data.data-dir": ("elsewhere",),
    "--data.image-size": ("8", "12"),
    "--data.background": ("white", "#000000"),
    "--data.layout": ("nhwc",),
    "--data.memory-gb": ("4", "0.5"),
    "--training.epochs": ("1", "3"),
    "--training.batch-size": ("16", "32"),
    "--training.learning-rate": ("0.001", "0.01"),
    "--training.optimizer": ("sgd", "adamw"),
    "--retrained": ("0", "2"),
    "--retain-tolerance": ("0.05", "1"),
    "--stop-rule": ("accuracy", "loss", "none"),
    "--seed": ("0", "7"),
    "--workdir": ("w", "runs/w"),
    "--original": (),
    "--validation-ids": ("ids.txt",),
    "--save-seconds": ("None", "10"),
    "--save-steps": ("None", "10"),
    "--steps-per-call": ("1", "4"),
    "--profile": ("profile",),
    "--config": ("digits_class", "digits_sample"),
}
RUN = COMMON | {
    "--audit": ("none", "quick", "standard"),
    "--require": ("no_trace", "hidden"),
    "--requested-by": ("A. Person",),
    "--ticket": ("17",),
}
AUDIT = RUN | {"--level": ("quick",), "--oracles": ("shared",), "--unlearned": ()}
SEVERAL = COMMON | {"--methods": ("mask_logit", "contrastive")}
COMPARE = SEVERAL | {"--requests": ("class:5", "random:0.1", "class:3+keep", "ids:ids.txt"), "--seeds": ("0", "1")}
TUNE = SEVERAL | {"--request": ("class:5", "random:0.1"), "--trials": ("2", "5"), "--sampler": ("halton",)}
# Those whose values the parser takes as they are, so that what reads them is reached.
TEXTS = (
    *("--network", "--data.source", "--data.background", "--data.data-dir", "--workdir", "--original", "--validation-ids"),
    *("--profile", "--config", "--stop-rule", "--requested-by", "--ticket", "--oracles", "--unlearned", "--methods"),
    *("--requests", "--request", "--level"),
)
REQUESTS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("forget:class", {"--forget.label": ("5", "0", "05", "name:3"), "--forget.copies": ("keep", "with")}),
    ("forget:classes", {"--forget.labels": ("1", "2")}),
    ("forget:random", {"--forget.count": ("1", "20"), "--forget.fraction": ("0.1",), "--forget.seed": ("3",)}),
    ("forget:ids", {"--forget.path": ("ids.txt", "ids.csv")}),
)


@dataclass(frozen=True)
class Fuzz:
    """What to draw.

    Attributes:
        draws: Number of command lines.
        seed: Seed of the draws; the same seed gives the same command lines.
    """

    draws: Count = 40
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


def _nothing(*arguments: Any, **keywords: Any) -> None:
    """Replaces the work of a script."""


def _commands() -> dict[str, tuple[Callable[[list[str]], int], dict[str, tuple[str, ...]]]]:
    """Each script by name: how it is run here, and its flags."""
    run = partial(main, _nothing, configs=CONFIGS, description="")

    def several(kind: type, prepare: Callable[..., Any]) -> Callable[[list[str]], int]:
        reader = partial(parse_setup, kind)
        return lambda arguments: run(arguments=arguments, parse=reader, prepare=prepare)

    return {
        "unlearn": (lambda arguments: run(arguments=arguments), RUN),
        "train": (lambda arguments: run(arguments=arguments), RUN),
        "audit": (audit.main, AUDIT),
        "compare": (several(Comparison, prepare_comparison), COMPARE),
        "tune": (several(Tuning, prepare_tuning), TUNE),
        "lineage": (lineage.main, {}),
        "purge": (purge.main, {"--references": ("shared",)}),
        "import_weights": (import_weights.main, {"--network": ("resnet8", "resnet18_linear")}),
    }


def _draw(rng: random.Random, name: str, flags: dict[str, tuple[str, ...]]) -> list[str]:
    """A command line: some valid flags, and mostly one with an odd value."""
    words = []
    if name in ("lineage", "purge", "import_weights"):
        words = [rng.choice((*ODD, "own.npz", "pictures")) for _ in range(2 if name == "import_weights" else 1)]
    given = {flag: rng.choice(values) for flag, values in flags.items() if values and rng.random() < 0.12}
    request, method = [], []
    if name in ("unlearn", "train", "audit") and rng.random() < 0.7:
        kind, fields = rng.choice(REQUESTS)
        chosen = {flag: rng.choice(values) for flag, values in fields.items() if rng.random() < 0.6}
        if rng.random() < 0.4:
            chosen[rng.choice(list(fields))] = rng.choice(ODD)
        request = [kind, *(word for pair in chosen.items() for word in pair)]
        if rng.random() < 0.3:
            method = [f"method:{rng.choice(method_names())}"]
    if flags and rng.random() < 0.8:
        texts = [flag for flag in flags if flag in TEXTS]
        given[rng.choice(texts if texts and rng.random() < 0.7 else list(flags))] = rng.choice(ODD)
    own = [word for pair in given.items() for word in pair]
    return words + own + method + request


@contextlib.contextmanager
def _in_a_folder(rng: random.Random) -> Iterator[Path]:
    """A new folder with a few files of a user, which is the current one."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "here"
        folder.mkdir()
        os.chdir(folder)
        pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (60, 8, 8), dtype=np.uint8)
        np.savez("own.npz", images=pixels, labels=np.arange(60) % 6)
        Path("ids.txt").write_text("train_00003\n")
        Path("ids.csv").write_text("id\ntrain_00003\n")
        Path("pictures").mkdir()
        try:
            yield folder
        finally:
            os.chdir(before)


def outcome(run: Callable[[list[str]], int], words: Sequence[str], rng: random.Random) -> str | None:
    """What is wrong with the way a command line ends; None if nothing is."""

    def too_long(number: int, frame: Any) -> None:
        del frame
        raise TimeoutError(f"signal {number}")

    said = io.StringIO()
    environment = dict(os.environ)
    signal.signal(signal.SIGALRM, too_long)
    with _in_a_folder(rng) as folder:
        signal.alarm(_SECONDS)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status: Any = run(list(words))
        except SystemExit as ended:
            status = ended.code
        except TimeoutError:
            return f"ran for more than {_SECONDS} s"
        except BaseException:  # whatever it is, a user would see it as a traceback
            return traceback.format_exc()
        finally:
            signal.alarm(0)
            os.environ.clear()
            os.environ.update(environment)
        outside = [path.name for path in folder.parent.iterdir() if path != folder]
    text = said.getvalue()
    if outside:
        return f"wrote {outside} outside of its folder"
    if status not in (0, 2):
        return f"status {status}: {text[-500:]}"
    if status == 2 and not text.strip():
        return "status 2 without a word"
    if "Traceback" in text:
        return text[-2000:]
    if status == 2 and "error:" in text and "is not" not in text and len(text.split("error:", 1)[1].split()) < 3:
        return f"too short a sentence: {text}"
    return None


def fuzz(asked: Fuzz) -> list[str]:
    """Draws and runs command lines; reports each one that ended in a wrong way."""
    rng = random.Random(asked.seed)
    commands, wrong = _commands(), []
    with bar("drawing command lines", asked.draws) as advance:
        for number in range(asked.draws):
            name = rng.choice(list(commands))
            run, flags = commands[name]
            words = _draw(rng, name, flags)
            problem = outcome(run, words, rng)
            if problem is not None:
                wrong.append(f"draw {number} of seed {asked.seed}: {name} {shlex.join(words)}\n{problem}")
            advance()
    return wrong


if __name__ == "__main__":
    found = fuzz(tyro.cli(Fuzz, description=__doc__))
    for account in found:
        print(account, end="\n\n")
    print(f"{len(found)} command lines ended as none should." if found else "All command lines ended as they should.")
    sys.exit(bool(found))
