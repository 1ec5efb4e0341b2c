"""Models that an audit uses for comparison: retrained without the forget set, or on random halves of it.

They are stored in one folder per recipe and split, so that all audits of the split share them, whatever the method.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from etils import epath

from cujax.audit.likelihood import log_odds, shadow_members
from cujax.data.id_lists import hashed_id
from cujax.data.requests import Part, Split
from cujax.experiments.identity import describe, described_setup, digest_of, normalised
from cujax.experiments.model_store import ModelStore
from cujax.experiments.request_words import describe_request
from cujax.experiments.run import Run
from cujax.methods.base import Method
from cujax.methods.traits import method_name
from cujax.model import Variables
from cujax.sharding import is_first_host
from cujax.storage.checkpoints import Ancestor, Checkpoint, Kind, Metadata
from cujax.storage.metrics_writer import MetricsWriter
from cujax.storage.workdir import claim
from cujax.training.resume import ResumePoint

_SHADOWS, _UNLEARNING = 1_000_000, 2_000_000


@dataclass
class ReferenceModels:
    """The shared models of a run's split; each is trained when first requested, and stored.

    Attributes:
        run: The run with the split, network and recipe.
        root: The folder with the folders of all splits.
    """

    run: Run
    root: epath.Path

    def __post_init__(self) -> None:
        if is_first_host():
            claim(self.directory, self.identity, {}, normalised, shared=True)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Identifies these models among those of other splits and recipes, regardless of seeds and methods."""
        described = described_setup(self.run.experiment) | self.run.split_identity
        shared = ("data", "network", "network_sha256", "dtype", "training", "deterministic", *self.run.split_identity)
        return json.loads(json.dumps(normalised({name: described[name] for name in shared if name in described})))

    @cached_property
    def directory(self) -> epath.Path:
        """Their folder."""
        split = self.run.split
        classes = "-".join(map(str, split.forgotten_classes))
        what = f"class-{classes}" if split.is_class_task else f"{len(split.forget)}-images"
        return self.root / f"{self.run.source.name}-{what}-{digest_of(self.identity)[:10]}"

    @cached_property
    def store(self) -> ModelStore:
        """The models of their folder."""
        return self._store_at(self.directory, self.identity)

    def _store_at(self, directory: epath.Path, identity: dict[str, Any]) -> ModelStore:
        run = self.run
        return ModelStore(directory, digest_of(identity), lambda: run.like, run.experiment, run.interruption, run.notify)

    def missing(self, *, retrained: int, shadows: int) -> int:
        """How many of the given number of models would have to be trained."""
        names = [f"retrained_{number}" for number in range(retrained)] + [f"shadow_{number}" for number in range(shadows)]
        return sum(not self.store.has(name) for name in names)

    def retrained(self, count: int) -> list[Checkpoint]:
        """Models trained without the forget set, each with its own initialisation and order."""
        unseen = self.run.split.forget.ids.tolist()
        keys = {f"retrained_{number}": _key(number) for number in range(count)}
        metadata_of = partial(self._metadata, "retrained", unseen)
        self.run.from_scratch.train_together(self.store, keys, self.run.split.retain.indices, metadata_of)
        return [self.retrained_model(number) for number in range(count)]

    def retrained_model(self, number: int) -> Checkpoint:
        """One of them."""
        split = self.run.split
        return self._trained(f"retrained_{number}", split.retain.indices, split.forget.ids.tolist(), number)

    def shadows(self, count: int) -> list[Checkpoint]:
        """Models trained on the retain set and half of the forget set, as divided by `members`."""
        return [self.shadow(number, count) for number in range(count)]

    def shadow(self, number: int, count: int) -> Checkpoint:
        """One of the given number of models."""
        split, seen = self.run.split, self.members(count)[number]
        indices = np.sort(np.concatenate([split.retain.indices, split.forget.indices[seen]]))
        return self._trained(f"shadow_{number}", indices, split.forget.ids[~seen].tolist(), _SHADOWS + number)

    def members(self, count: int) -> np.ndarray:
        """Which forget samples each shadow model is trained on, `[count, n]` bool."""
        return shadow_members(len(self.run.split.forget), count)

    def unlearned_shadows(self, method: Method, count: int) -> list[Checkpoint]:
        """Each shadow model after the method unlearned the half on which it was trained."""
        return [self.unlearned_shadow(method, number, count) for number in range(count)]

    def unlearned_store(self, method: Method) -> ModelStore:
        """The shadow models after a method."""
        setup = self.run.experiment
        identity = self.identity | {
            "method": describe(method),
            "retain_tolerance": setup.retain_tolerance,
            "stop_early": setup.stop_early,
            **({} if setup.stop_rule == "accuracy" else {"stop_rule": setup.stop_rule}),
        }
        name = f"{method_name(method)}-{digest_of(identity)[:10]}"
        return self._store_at(self.directory / "unlearned" / name, identity)

    def unlearned_shadow(self, method: Method, number: int, count: int) -> Checkpoint:
        """One of the given number of shadow models after the method."""
        run, split = self.run, self.run.split
        shadow, seen = self.shadow(number, count), self.members(count)[number]

        def make(log: MetricsWriter, resume_point: ResumePoint) -> tuple[Variables, Metadata]:
            own: Split = replace(split, forget=Part(split.forget.indices[seen], split.forget.ids[seen]))
            key = jax.random.fold_in(jax.random.key(0), _UNLEARNING + number)
            loop = replace(run.loop, log=log, resume_point=resume_point)
            unlearned = method(run.model, shadow.variables, own, key=key, loop=loop)
            ancestry = (shadow.as_ancestor(),)
            return unlearned.variables, self._metadata(
                "unlearned", split.forget.ids.tolist(), run.record_of(unlearned), ancestry, method_name(method)
            )

        if not seen.any():
            return shadow
        return self.unlearned_store(method).once(f"shadow_{number}", make)

    def forget_log_odds(self, checkpoints: Sequence[Checkpoint]) -> np.ndarray:
        """`[N, n]` log-odds of the forget samples under some models."""
        run = self.run
        return np.array([log_odds(run.predictions(checkpoint, run.split.forget)) for checkpoint in checkpoints])

    def _trained(self, name: str, indices: np.ndarray, unseen_ids: list[str], fold: int) -> Checkpoint:
        def make(log: MetricsWriter, resume_point: ResumePoint) -> tuple[Variables, Metadata]:
            trained = self.run.from_scratch.train(name, indices, _key(fold), log, resume_point)
            return trained.variables, self._metadata("retrained", unseen_ids, {"cost": asdict(trained.cost)})

        return self.store.once(name, make)

    def _metadata(
        self,
        kind: Kind,
        unseen_ids: list[str],
        record: dict[str, Any],
        lineage: tuple[Ancestor, ...] = (),
        method: str = "",
    ) -> Metadata:
        run = self.run
        ids = (*run.split.previously_forgotten.ids.tolist(), *unseen_ids)
        return Metadata(
            kind,
            run.source.name,
            run.source.version,
            self.identity,
            request=describe_request(run.experiment.forget),
            method=method,
            forgotten_ids=tuple(map(hashed_id, ids)) if run.experiment.hashed_ids else ids,
            lineage=lineage,
            record=record,
        )


def _key(fold: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), 2 + fold)
