"""A folder of models, each made once: models on disk are loaded, and unfinished ones resume from their progress."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from etils import epath

from cujax.experiments.config import Setup
from cujax.model import Variables
from cujax.sharding import is_first_host
from cujax.storage.checkpoints import Checkpoint, Metadata, load_checkpoint, save_checkpoint
from cujax.storage.locks import alone
from cujax.storage.metrics_writer import MetricsWriter
from cujax.storage.orbax import remove_leftovers
from cujax.storage.preemption import Interruption
from cujax.storage.progress_checkpoints import ProgressCheckpointer, remove_progress
from cujax.storage.records import json_digest
from cujax.storage.workdir import Notify, check_there, is_claimed
from cujax.training.resume import ResumePoint

# Makes a model: its arrays, and the record for its checkpoint.
Make = Callable[[MetricsWriter, ResumePoint], tuple[Variables, Metadata]]
# Makes the models with these names.
MakeTogether = Callable[[Sequence[str], MetricsWriter, ResumePoint], Sequence[tuple[Variables, Metadata]]]


@dataclass
class ModelStore:
    """The checkpoints of a folder, with the metrics and the progress of each.

    Attributes:
        directory: The folder.
        identity: Digest of what is computed there; progress of anything else is not used.
        like: Returns a tree with the names, shapes and dtypes of every model there.
        setup: Says how often progress is saved, and whether metrics are also written as TensorBoard events.
        interruption: Says when the process was asked to end.
        notify: Receives messages for the user.
    """

    directory: epath.Path
    identity: str
    like: Callable[[], Variables]
    setup: Setup
    interruption: Interruption
    notify: Notify
    _in_memory: dict[str, Checkpoint] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._claimed = is_claimed(self.directory)

    def check_there(self) -> None:
        """Raises OSError if the folder was deleted or moved meanwhile."""
        if self._claimed:
            check_there(self.directory)

    def has(self, name: str) -> bool:
        """Whether a model is complete on disk."""
        return (self.directory / "checkpoints" / name).exists()

    def once(self, name: str, make: Make) -> Checkpoint:
        """The model with this name: from memory, from disk, or made and saved now; waits if another process makes it."""
        if name not in self._in_memory:
            self.check_there()
            with alone(self.directory, name):
                self._in_memory[name] = self._loaded(name) if self.has(name) else self._made(name, make)
        return self._in_memory[name]

    def _loaded(self, name: str) -> Checkpoint:
        found = load_checkpoint(self.directory / "checkpoints" / name, like=self.like())
        remove_progress(self.directory / "progress" / name)
        return found

    def _made(self, name: str, make: Make) -> Checkpoint:
        with self._resumable(name, self.identity) as (log, resume_point):
            saved = self._save(name, *make(log, resume_point))
            resume_point.remove()
        return saved

    def not_begun(self, names: Iterable[str]) -> list[str]:
        """Those of some models that are not on disk, whole or in part."""
        return [name for name in names if not (self.has(name) or (self.directory / "progress" / name).exists())]

    def together(self, group: Sequence[str], make: MakeTogether) -> None:
        """Makes several models in one go; each is then stored as `once` stores it.

        If one of them diverges, none is stored, and `once` makes them one by one.
        """
        self.check_there()
        with contextlib.ExitStack() as locks:
            for name in group:
                locks.enter_context(alone(self.directory, name))
            if any(self.has(name) for name in group):  # another process was faster
                return
            identity = json_digest({"identity": self.identity, "models": list(group)})
            with self._resumable(f"{group[0]}_to_{group[-1]}", identity) as (log, resume_point):
                try:
                    made = make(group, log, resume_point)
                except FloatingPointError as error:
                    self.notify(f"{error} The models are trained one by one.")
                else:
                    for name, (variables, metadata) in zip(group, made, strict=True):
                        self._in_memory[name] = self._save(name, variables, metadata)
                resume_point.remove()

    @contextlib.contextmanager
    def _resumable(self, name: str, identity: str) -> Iterator[tuple[MetricsWriter, ProgressCheckpointer]]:
        """The metrics and the progress of what is made under a name; interruptions wait until its end."""
        progress, metrics = self.directory / "progress" / name, self.directory / "metrics" / f"{name}.jsonl"
        if is_first_host():
            remove_leftovers(progress)
        kept = ProgressCheckpointer(
            progress,
            metrics,
            identity,
            steps=self.setup.save_steps,
            seconds=self.setup.save_seconds,
            interruption=self.interruption,
            notify=self.notify,
        )
        with (
            self.interruption.postponed(),
            kept as resume_point,
            MetricsWriter(metrics, self.setup.tensorboard, resume_point.metrics_bytes) as log,
        ):
            yield log, resume_point

    def _save(self, name: str, variables: Variables, metadata: Metadata) -> Checkpoint:
        self.check_there()
        path = self.directory / "checkpoints" / name
        if is_first_host():
            remove_leftovers(path.parent, name)
        return save_checkpoint(path, variables, metadata)
