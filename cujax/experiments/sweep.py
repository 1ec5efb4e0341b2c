"""Several runs in one folder, which share what they have in common: data, original models, retrained models."""

import abc
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self

from etils import epath

from cujax.data.images import Source
from cujax.data.requests import ForgetRandom, Request, Split, make_split, with_numbers
from cujax.data.sources import load_source
from cujax.experiments.checks import check_extras, check_one_task
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.identity import digest_of, identity
from cujax.experiments.jobs import Unit
from cujax.experiments.request_words import parse_request
from cujax.experiments.run import Run, load_given_original, prepare
from cujax.experiments.user_files import abstract_arrays, build_model, network_for
from cujax.experiments.workers import once_each
from cujax.methods.base import Method, check_fits
from cujax.methods.retrain import Retrain
from cujax.model import Model, Variables
from cujax.progress import Progress, silent
from cujax.storage.preemption import Interruption
from cujax.storage.workdir import Notify


@dataclass(frozen=True)
class SeveralRuns(Setup, abc.ABC):
    """A setup for several runs in one folder."""

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The setup of an experiment, in its own folder next to the experiment's."""
        own = {"workdir": f"{experiment.workdir}-comparison"} | cls.asked(experiment.forget)
        return cls(**experiment.shared() | own)

    @classmethod
    @abc.abstractmethod
    def asked(cls, request: Request) -> dict[str, Any]:
        """The fields that a request sets."""


# What no training from scratch depends on: originals and retrained models are shared between sweeps that differ in it.
_OF_UNLEARNING = {name: getattr(Setup(), name) for name in ("retain_tolerance", "stop_rule", "stop_early")}


@dataclass
class Sweep:
    """The runs of a setup, each in its own folder, whose name identifies its settings."""

    setup: Setup
    progress: Progress = silent
    notify: Notify = lambda sentence: None
    interruption: Interruption = field(default_factory=Interruption)
    originals: dict[int, str] = field(default_factory=dict)
    given_source: Source | None = None
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.setup.multihost:
            raise ValueError("methods can be compared only on one host; leave out --multihost.")
        check_extras(self.setup)
        given = self.given_source
        self.source: Source = load_source(self.setup.data, self.progress) if given is None else given

    @cached_property
    def notify_once(self) -> Notify:
        """Shows a remark only once, even if many runs make it about the input that they share."""
        return once_each(self.notify)

    @property
    def workdir(self) -> epath.Path:
        """The folder of all runs."""
        return epath.Path(self.setup.workdir).expanduser()

    def original(self, seed: int) -> str:
        """The path of a seed's original, which is trained now if it does not exist; it does not depend on the request."""
        if self.setup.original is not None:
            return self.setup.original
        if seed not in self.originals:
            self.prepare(self._of_original(seed), "original").original()
            self.originals[seed] = self.original_path(seed)
        return self.originals[seed]

    def original_path(self, seed: int) -> str:
        """The path of a seed's original, which may not exist yet."""
        return self.setup.original or str(self.folder(self._of_original(seed), "original") / "checkpoints" / "original")

    def _of_original(self, seed: int) -> Experiment:
        # The original does not depend on the request, so any will do.
        return self._experiment(ForgetRandom(count=1), Retrain(), seed)

    def original_units(self, seed: int) -> tuple[Unit, ...]:
        """The original of a seed as a unit; none if the original is given."""
        if self.setup.original is not None:
            return ()
        folder = self.folder(self._of_original(seed), "original")
        path = epath.Path(self.original_path(seed))
        return (Unit(f"original, seed {seed}", folder, "original", path.exists, partial(self.original, seed)),)

    @cached_property
    def model(self) -> Model:
        """The network of all runs."""
        return build_model(network_for(self.setup.network, self.source), self.source.num_classes, self.setup.dtype)

    @cached_property
    def like(self) -> Variables:
        """Names, shapes and dtypes of its arrays."""
        return abstract_arrays(self.model, self.setup.network, self.source)

    def check_fits(self, method: Method, split: Split) -> None:
        """Raises ValueError if a method does not support a split or the network."""
        check_fits(method, split, self.model, self.like)

    @cached_property
    def previously_forgotten_ids(self) -> tuple[str, ...]:
        """The ids of earlier requests to the given original; none if no original is given."""
        given = load_given_original(self.setup, self.source, self.like)
        return () if given is None else given.metadata.forgotten_ids

    def split(self, request: Request) -> Split:
        """The split of the runs of a request.

        Raises:
            ValueError: if it names whole classes and samples of others, which are never judged as one.
        """
        split = make_split(self.source, request, self.previously_forgotten_ids, self.setup.validation_rows)
        check_one_task(request, split, self.source)
        return split

    def request(self, word: str) -> Request:
        """The request that a word describes, with classes given by number."""
        return with_numbers(parse_request(word), self.source)

    def experiment(self, request: Request, method: Method, seed: int) -> Experiment:
        """The experiment of a cell; it starts from the original of its seed, which is trained now if it does not exist."""
        self.original(seed)
        return self.cell(request, method, seed)

    def cell(self, request: Request, method: Method, seed: int) -> Experiment:
        """As `experiment`; nothing is trained."""
        original = self.original_path(seed)
        return self._experiment(request, method, seed, original=original, retrained=self.setup.retrained)

    def folder(self, experiment: Experiment, *names: str) -> epath.Path:
        """The folder of a run: its subject, its seed, and a digest of its settings."""
        given = {} if self.setup.original is None else {"original": self.setup.original}
        digest = digest_of(identity(experiment) | given)
        return self.workdir.joinpath(*names, f"seed_{experiment.seed}-{digest[:10]}")

    def prepare(self, experiment: Experiment, *names: str) -> Run:
        """A run in its folder, checked like any other."""
        experiment = replace(experiment, workdir=str(self.folder(experiment, *names)))
        return prepare(experiment, self.progress, self.notify_once, self.interruption, source=self.source, shared=True)

    def _experiment(self, request: Request, method: Method, seed: int, **changes: Any) -> Experiment:
        unused = _OF_UNLEARNING if isinstance(method, Retrain) else {}
        return Experiment(**self.setup.shared() | unused | {"seed": seed, "forget": request, "method": method} | changes)


@dataclass
class ReadySweep:
    """Cells that were checked and are ready to compute."""

    cells: Sweep

    @property
    def workdir(self) -> epath.Path:
        """The folder of everything."""
        return self.cells.workdir

    @property
    def source(self) -> Source:
        """The data."""
        return self.cells.source

    @property
    def model(self) -> Model:
        """The network of all runs."""
        return self.cells.model


def slug(word: str) -> str:
    """A word such as "class:5" or "ids:lists/mine.txt" as a name for a folder."""
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in word)
