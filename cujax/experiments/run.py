"""A run of an experiment, from data to report, as the scripts run it. Everything is checked before anything is computed.

A run keeps everything in one folder. Each model is saved as soon as it is complete, and its progress until then, so the
same command resumes where a killed one stopped, and a finished one only shows its report.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from etils import epath
from filelock import FileLock

from cujax.audit.evidence import Answers
from cujax.data.batches import ImageSet, to_device
from cujax.data.class_labels import with_names
from cujax.data.id_lists import hashed_id, is_among
from cujax.data.images import Source
from cujax.data.requests import (
    Part,
    Split,
    check_held_out,
    ids_digest,
    make_split,
    with_numbers,
)
from cujax.data.sources import load_source
from cujax.experiments.case import Candidate, Case
from cujax.experiments.checks import (
    check_batch_sizes,
    check_extras,
    check_models_at_once,
    check_num_classes,
    check_trained_on,
    remarks,
)
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.from_scratch import FromScratch
from cujax.experiments.identity import describe, digest_of, identity, normalised
from cujax.experiments.model_store import ModelStore
from cujax.experiments.request_words import describe_request
from cujax.experiments.user_files import abstract_arrays, build_model, network_for
from cujax.methods.base import Loop, Method, Unlearned, check_fits
from cujax.methods.mask_logit import MaskedModel
from cujax.methods.stop_rules import STOP_RULES
from cujax.methods.traits import method_name, with_recipe
from cujax.model import Model, Variables, abstract_variables
from cujax.progress import Progress, silent
from cujax.sharding import check_same_on_all_hosts, data_mesh, is_first_host
from cujax.storage.checkpoints import (
    Ancestor,
    Checkpoint,
    Kind,
    Metadata,
    check_is_original,
    installed_versions,
    load_checkpoint,
)
from cujax.storage.lineage import Deletion, deletions
from cujax.storage.metrics_writer import MetricsWriter
from cujax.storage.preemption import Interruption
from cujax.storage.workdir import Notify, claim
from cujax.training.predict import Predictions
from cujax.training.resume import ResumePoint


@dataclass
class Run:
    """An experiment that was checked and is ready to compute. Created by `prepare`.

    `part` says in words which part of the request is judged, if it names whole classes and samples of other classes.
    """

    experiment: Experiment
    source: Source
    split: Split
    model: Model
    given_original: Checkpoint | None
    progress: Progress = silent
    notify: Notify = lambda sentence: None
    interruption: Interruption = field(default_factory=Interruption)
    lock: FileLock | None = None
    identity: str = ""
    part: str = ""

    def parts(self) -> "list[Run]":
        """This run for each judgement: one for whole classes and one for samples if the request names both."""
        splits = self.split.divided(self.source.train.labels)
        if len(splits) == 1:
            return [self]
        parts = []
        for split in splits:
            names = with_names(split.forgotten_classes, self.source.class_names)
            what = f"whole classes: {names}" if names else "samples of retained classes"
            parts.append(replace(self, split=split, part=f"{what}, {len(split.forget)} images"))
            # The models and the images are the same; they are not loaded twice.
            parts[-1].__dict__.update(store=self.store, train_images=self.train_images, test_images=self.test_images)
        return parts

    @property
    def workdir(self) -> epath.Path:
        """The run's folder."""
        return epath.Path(self.experiment.workdir).expanduser()

    @property
    def original_path(self) -> epath.Path:
        """The path of the original: as given, or in the run's folder."""
        given = self.experiment.original
        return self.workdir / "checkpoints" / "original" if given is None else epath.Path(given).expanduser()

    @property
    def unlearned_path(self) -> epath.Path:
        """The path of the unlearned model, which may not exist yet."""
        return self.workdir / "checkpoints" / "unlearned"

    @property
    def like(self) -> Variables:
        """Names, shapes and dtypes of the model's arrays."""
        return abstract_variables(self.model, self.source.input_shapes)

    @cached_property
    def store(self) -> ModelStore:
        """The models of the run's folder."""
        return ModelStore(self.workdir, self.identity, lambda: self.like, self.experiment, self.interruption, self.notify)

    @cached_property
    def train_images(self) -> ImageSet:
        """The training images, on the device if they fit."""
        return to_device(self.source, self.source.train, data_mesh())

    @cached_property
    def test_images(self) -> ImageSet:
        """The test images, likewise."""
        return to_device(self.source, self.source.test, data_mesh())

    def original(self) -> Checkpoint:
        """The original model: given, made earlier, or trained now on the forget and retain sets."""
        if self.given_original is not None:
            return self.given_original
        indices = np.sort(np.concatenate([self.split.forget.indices, self.split.retain.indices]))
        return self._trained("original", "original", indices, fold=0)

    def retrained(self) -> list[Checkpoint]:
        """Models trained without the forget set, each with its own initialisation and order."""
        self.retrain_together()
        return [self.retrained_model(number) for number in range(self.experiment.retrained)]

    def retrain_together(self) -> None:
        """Trains those of the retrained models that can take each step together (`Setup.models_at_once`)."""
        keys = {f"retrained_{number}": self._key(2 + number) for number in range(self.experiment.retrained)}
        self.from_scratch.train_together(self.store, keys, self.split.retain.indices, partial(self._metadata, "retrained"))

    def retrained_model(self, number: int) -> Checkpoint:
        """One of them."""
        return self._trained("retrained", f"retrained_{number}", self.split.retain.indices, fold=2 + number)

    def unlearned(self) -> Checkpoint:
        """The model after unlearning."""

        def make(log: MetricsWriter, resume_point: ResumePoint) -> tuple[Variables, Metadata]:
            original = self.original()
            result = self.unlearn(self.experiment.method, original, replace(self.loop, log=log, resume_point=resume_point))
            return result.variables, self._metadata("unlearned", self.record_of(result))

        return self.store.once("unlearned", make)

    @property
    def loop(self) -> Loop:
        """The loop in which methods run; it stores neither metrics nor progress."""
        return Loop(
            self.train_images,
            self.experiment.retain_tolerance,
            self.progress,
            steps_per_call=self.experiment.steps_per_call,
            stop_rule=STOP_RULES.find(self.experiment.stop_rule)(),
            stop_early=self.experiment.stop_early,
        )

    def unlearn(self, method: Method, original: Checkpoint, loop: Loop) -> Unlearned:
        """The result of a method on the original."""
        return method(self.model, original.variables, self.split, key=self._key(1), loop=loop)

    def record_of(self, unlearned: Unlearned) -> dict[str, Any]:
        """What the checkpoint of an unlearned model records about how it was made."""
        return asdict(unlearned.history) | self._masked(unlearned.model)

    def missing(self, *, unlearned: bool = True) -> list[str]:
        """Names of the checkpoints of this run that are not on disk yet."""
        names = ["original"] if self.given_original is None else []
        names += [f"retrained_{number}" for number in range(self.experiment.retrained)]
        names += ["unlearned"] if unlearned else []
        return [name for name in names if not self.store.has(name)]

    def _masked(self, model: Model) -> dict[str, Any]:
        """What a checkpoint must record of the model that a method returned, in addition to its arrays."""
        if model == self.model:
            return {}
        if isinstance(model, MaskedModel) and model.model == self.model:
            return {"masked_classes": model.masked_classes}
        raise ValueError(
            f"{method_name(self.experiment.method)} returned another model than it was given, which cannot be saved; call "
            "the method from Python and keep its result."
        )

    def answers(self, checkpoint: Checkpoint) -> Answers:
        """A model's answers on each part of the split."""
        return self.case.answers(candidate_of(checkpoint))

    def predictions(self, checkpoint: Checkpoint, part: Part) -> Predictions:
        """A model's answers on some training images."""
        return self.case.predictions(candidate_of(checkpoint), part)

    @property
    def case(self) -> Case:
        """The case on which its models are judged."""
        return Case(
            self.model,
            self.split,
            self.train_images,
            self.test_images,
            self.experiment.training,
            bool(self.source.redrawn_ids),
            {"network": self.experiment.network, "run": self.identity},
            self.progress,
        )

    def earlier_requests(self) -> list[tuple[Deletion, Part]]:
        """The earlier requests to the given original, one by one."""
        if self.given_original is None:
            return []
        part = self.split.previously_forgotten
        chosen = [(request, is_among(part.ids, request.ids)) for request in deletions(self.given_original)]
        return [(request, Part(part.indices[rows], part.ids[rows])) for request, rows in chosen]

    @property
    def split_identity(self) -> dict[str, Any]:
        """Identifies this split among those of other data and requests."""
        tenth = self.experiment.validation_rows == "tenth"
        validation = {} if tenth else {"validation_digest": ids_digest(self.split.validation.ids.tolist())}
        return validation | {
            "source_version": self.source.version,
            "forget_digest": self.split.digest,
            "previously_forgotten_digest": ids_digest(self.split.previously_forgotten.ids.tolist()),
        }

    def claim_workdir(self, *, shared: bool) -> None:
        """Claims the workdir for this run, if it belongs to no other; other processes may share the work in it.

        Raises:
            FileExistsError: if it contains another experiment, or something else.
            BlockingIOError: if another process uses it.
            OSError: if it cannot be written.
        """
        original = {"original_digest": self.given_original.digest if self.given_original else None}
        described = normalised(identity(self.experiment) | self.split_identity | original)
        described = json.loads(json.dumps(described))
        self.identity = digest_of(described)
        if is_first_host():
            lists = {"redrawn_ids.txt": self.source.redrawn_ids, "skipped_images.txt": self.source.skipped}
            files = {name: "\n".join(lines) + "\n" for name, lines in lists.items() if lines}
            self.lock = claim(self.workdir, described, files, normalised, shared=shared)

    def _key(self, fold: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.experiment.seed), fold)

    def _trained(self, kind: Kind, name: str, indices: np.ndarray, fold: int) -> Checkpoint:
        def make(log: MetricsWriter, resume_point: ResumePoint) -> tuple[Variables, Metadata]:
            trained = self.from_scratch.train(name, indices, self._key(fold), log, resume_point)
            return trained.variables, self._metadata(kind, {"cost": asdict(trained.cost)})

        return self.store.once(name, make)

    @cached_property
    def from_scratch(self) -> FromScratch:
        """Trains networks with the experiment's recipe."""
        frozen = self.given_original.variables if self.given_original else None
        return FromScratch(self.experiment, self.model, lambda: self.train_images, frozen, self.progress)

    def _metadata(self, kind: Kind, record: dict[str, Any]) -> Metadata:
        ids = list(self.given_original.metadata.forgotten_ids) if self.given_original else []
        lineage: tuple[Ancestor, ...] = ()
        if kind == "unlearned":
            parent = self.original()
            lineage = (*parent.metadata.lineage, parent.as_ancestor())
        if kind != "original":
            forgotten = self.split.forget.ids.tolist()
            ids += map(hashed_id, forgotten) if self.experiment.hashed_ids else forgotten
        return Metadata(
            kind,
            self.source.name,
            self.source.version,
            describe(self.experiment),
            request="" if kind == "original" else describe_request(self.experiment.forget),
            method=method_name(self.experiment.method) if kind == "unlearned" else "",
            forgotten_ids=tuple(ids),
            lineage=lineage,
            record=record,
        )


def candidate_of(checkpoint: Checkpoint) -> Candidate:
    """The model of a checkpoint, to be inspected."""
    masked = tuple(checkpoint.metadata.record.get("masked_classes") or ())
    return Candidate(checkpoint.variables, masked, checkpoint.digest)


def prepare(
    experiment: Experiment,
    progress: Progress = silent,
    notify: Notify = lambda sentence: None,
    interruption: Interruption | None = None,
    *,
    source: Source | None = None,
    shared: bool = False,
) -> Run:
    """Reads the data, resolves the request and checks everything that can be checked before computing.

    Args:
        experiment: What to run.
        progress: Shows progress.
        notify: Receives messages for the user, such as that a run resumes from saved progress.
        interruption: Says when the process was asked to end; progress is then saved first.
        source: The data, if it was read before.
        shared: Whether other processes may compute models in the same workdir at the same time.

    Raises:
        ValueError: if the data, the request, the network, a batch size or the given original are not compatible.
        FileNotFoundError: if data, a file of ids or a checkpoint does not exist.
        FileExistsError: if the workdir contains another experiment, or something else.
        BlockingIOError: if another process uses the workdir, and it is not to be shared.
        OSError: if the workdir cannot be written.
    """
    settings = describe(experiment)
    settings["data"].pop("data_dir")
    check_same_on_all_hosts("configuration", json.dumps([settings, installed_versions()]))
    try:
        run = _prepare(experiment, progress, notify, interruption or Interruption(), source, shared or experiment.worker)
    except (ValueError, OSError) as error:
        with contextlib.suppress(ValueError):
            check_same_on_all_hosts("split", None)
        raise error
    check_same_on_all_hosts("split", run.split.digest)
    return run


def _prepare(
    experiment: Experiment,
    progress: Progress,
    notify: Notify,
    interruption: Interruption,
    source: Source | None,
    shared: bool,
) -> Run:
    check_extras(experiment)
    source = load_source(experiment.data, progress) if source is None else source
    if not source.are_images and experiment.training.augmentation != "none":
        notify(f"{source.name} contains no images, so nothing is augmented (training.augmentation none).")
        experiment = replace(experiment, training=replace(experiment.training, augmentation="none"))
    experiment = replace(experiment, method=with_recipe(experiment.method, experiment.training))
    experiment = replace(experiment, network=network_for(experiment.network, source))
    model = build_model(experiment.network, source.num_classes, experiment.dtype)
    like = abstract_arrays(model, experiment.network, source)
    check_num_classes(model, like, source)
    given = load_given_original(experiment, source, like)
    experiment = replace(experiment, forget=with_numbers(experiment.forget, source))
    forgotten = given.metadata.forgotten_ids if given else ()
    split = make_split(source, experiment.forget, forgotten, experiment.validation_rows)
    check_held_out(source, split, needs_validation=experiment.validation_rows == "tenth")
    check_fits(experiment.method, split, model, like)
    check_batch_sizes(experiment, split, trains_original=given is None)
    check_models_at_once(experiment, source)
    run = Run(experiment, source, split, model, given, progress, notify, interruption)
    run.claim_workdir(shared=shared)
    for remark in remarks(experiment, source, split, given):
        notify(remark)
    return run


def load_given_original(setup: Setup, source: Source, like: Variables) -> Checkpoint | None:
    """The original that a setup names, verified; None if it names none.

    Raises:
        CheckpointError: if it is damaged, of another network, or cannot be unlearned.
        ValueError: if it was trained on other data.
        FileNotFoundError: if it does not exist.
    """
    if setup.original is None:
        return None
    path = epath.Path(setup.original).expanduser()
    given = load_checkpoint(path, like=like)
    check_is_original(given, str(path))
    check_trained_on(given, str(path), source, setup.data)
    return given
