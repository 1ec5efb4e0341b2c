"""Inspects one model: what its features, its relearning and its answers to noisy copies show. Results are stored on disk."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cujax.audit.evidence import Evidence, Line, Relearning, RetainCourse
from cujax.audit.few_shot import SHOTS, few_shot_probe
from cujax.audit.from_retain import look_from_retain, straight_line
from cujax.audit.recalibration import recalibrate
from cujax.audit.relearning import relearn
from cujax.audit.representation import divide_for_probes, linear_probe
from cujax.audit.residual import share_correct_under_noise
from cujax.data.requests import ids_digest
from cujax.experiments.case import Candidate, Case, Keep, keep_nothing
from cujax.experiments.identity import describe, digest_of
from cujax.model import Variables
from cujax.storage.records import Kind, kept_record
from cujax.training.predict import Predictions, correct, nearest_class_mean, predict
from cujax.training.supervised import fresh_variables

_PROBE_SAMPLES, _REFERENCE_SAMPLES, _HELD_OUT_SAMPLES, _NOISY_SAMPLES = 4000, 1000, 1000, 200
_NOISE, _DRAWS = 0.3, 20
_UNTRAINED = 4
# Raise the last number when the same model would give other values.
EVIDENCE = Kind("evidence", schema=2, computed_by=2)
_LINE_SAMPLES = 1000
CLOSER = Kind("closer evidence", schema=1, computed_by=1)


def kept_in(home: epath.Path) -> Keep:
    """Stores results as files in a folder."""

    def keep(kind: Kind, asked: dict[str, Any], compute: Callable[[], Any]) -> Any:
        return kept_record(home / "evidence" / f"{digest_of(asked)[:20]}.json", kind, compute)

    return keep


class Rows(NamedTuple):
    """The images with which a model is inspected; the same for every model of a split.

    Attributes:
        probe: Training images of the probes: from the retain set, and in a class task half of the forget set.
        forgotten: Images on which probes are evaluated: in a class task the other half of the forget set, in a sample task
            all of it.
        held_out: Additional evaluation images: in a class task, test images of the forgotten classes.
        reference: Test images on which features are compared.
        noisy: Forget images to which noise is added.
    """

    probe: np.ndarray
    forgotten: np.ndarray
    held_out: np.ndarray
    reference: np.ndarray
    noisy: np.ndarray

    @classmethod
    def of(cls, case: Case) -> "Rows":
        """The rows of a split."""
        split = case.split
        rng = np.random.default_rng(0)

        def some(rows: np.ndarray, count: int) -> np.ndarray:
            return np.sort(rng.choice(rows, size=min(count, len(rows)), replace=False))

        known, forgotten = divide_for_probes(split, rng)
        test = split.test.indices
        return cls(
            some(known, _PROBE_SAMPLES),
            some(forgotten, _HELD_OUT_SAMPLES),
            some(test[np.isin(case.labels(train=False)[test], split.forgotten_classes)], _HELD_OUT_SAMPLES),
            some(split.test.indices, _REFERENCE_SAMPLES),
            some(split.forget.indices, _NOISY_SAMPLES),
        )

    def described(self) -> dict[str, Any]:
        """As plain data."""
        return {name: rows.tolist() for name, rows in self._asdict().items()}


@dataclass
class Look:
    """Inspects models of a split.

    Attributes:
        case: The split, the network and the samples.
        target: The forget accuracy at which a model counts as having relearned the forget set.
        original: The original, if models are to be inspected more closely: with batch statistics of retained data, after
            fine-tuning on the retain set, on the line to the original, and with few labelled samples. None: they are not.
        keep: Returns stored results.
    """

    case: Case
    target: float
    original: Candidate | None = None
    keep: Keep = keep_nothing

    @cached_property
    def rows(self) -> Rows:
        """The images that are used."""
        return Rows.of(self.case)

    def into(self, model: Candidate) -> Evidence:
        """What is known about one model."""
        kept = self._kept(
            {"model": model.digest, "target": self.target, "noise": [_NOISE, _DRAWS]},
            lambda: self._everything(model.variables),
        )
        shares = None
        if kept["shares_under_noise"] is not None:
            shares = np.array(kept["shares_under_noise"])
            shares[np.isin(self.case.labels(train=True)[self.rows.noisy], model.masked_classes)] = 0.0
        return Evidence(
            self.case.answers(model),
            features=self._predict(model.variables, self.rows.reference, train=False).features,
            probes={depth: np.array(right, bool) for depth, right in kept["probes"].items()},
            nearest_mean=np.array(kept["nearest_mean"], bool),
            relearning=Relearning(**kept["relearning"]),
            shares_under_noise=shares,
            **self._closely(model),
        )

    def at_answers_and_probes(self, model: Candidate) -> Evidence:
        """What is known about one model that is judged without retrained models."""
        probes = {depth: np.array(right, bool) for depth, right in self._probes(model.variables)["probes"].items()}
        return Evidence(self.case.answers(model), probes=probes)

    def _closely(self, candidate: Candidate) -> dict[str, Any]:
        """The fields of evidence that only a closer inspection provides; none if the level omits it."""
        original, case, recipe = self.original, self.case, self.case.recipe
        if original is None or recipe is None:
            return {}
        split, variables, images = case.split, candidate.variables, case.train_images
        rng = np.random.default_rng(0)
        forget, retain = (
            np.sort(rng.choice(part.indices, min(_LINE_SAMPLES, len(part)), replace=False))
            for part in (split.forget, split.retain)
        )

        def look() -> dict[str, Any]:
            renewed = recalibrate(case.model, variables, images, split.retain.indices)
            right = [] if renewed is None else correct(predict(case.model, renewed, images, forget)).tolist()
            course = look_from_retain(case.model, variables, images, forget, split.retain.indices, recipe)
            return {"recalibrated": right, "from_retain": asdict(course), "few_shot": self._few_shot(variables)}

        model = {"model": candidate.digest}
        trained = {"training": describe(recipe), "retain": ids_digest(split.retain.ids.tolist())}
        found = self._kept(model | trained, look, CLOSER)
        line = self._kept(
            model | {"line_to": original.digest},
            lambda: asdict(straight_line(case.model, variables, original.variables, images, forget, retain)),
            CLOSER,
        )
        right = found["from_retain"]
        return {
            "recalibrated": np.array(found["recalibrated"], bool),
            "from_retain": RetainCourse(tuple(right["right"]), right["diverged"]),
            "few_shot": {int(shots): np.array(shares) for shots, shares in found["few_shot"].items()},
            "line": Line(line["distance"], *(tuple(line[name]) for name in ("points", "forget", "retain"))),
        }

    def _learned_and_asked(self, variables: Variables) -> tuple[Predictions, list[Predictions]]:
        """A model's outputs on the samples on which probes are trained and on those on which they are evaluated."""
        asked = [self._predict(variables, self.rows.forgotten, train=True)]
        if len(self.rows.held_out):
            asked.append(self._predict(variables, self.rows.held_out, train=False))
        return self._predict(variables, self.rows.probe, train=True), asked

    def _few_shot(self, variables: Variables) -> dict[str, list[float]]:
        """By number of labelled samples, how often a new classifier of embeddings is right on each held-out one."""
        classes = self.case.split.forgotten_classes
        if not classes:
            return {}
        learned, asked = self._learned_and_asked(variables)
        features, labels = (np.concatenate([getattr(part, name) for part in asked]) for name in ("embeddings", "labels"))
        fewest = min(int(np.sum(learned.labels == label)) for label in classes)
        return {
            str(shots): few_shot_probe(
                learned.embeddings, learned.labels, features, labels, classes=classes, shots=shots
            ).tolist()
            for shots in SHOTS
            if shots <= fewest
        }

    def untrained_probes(self) -> dict[str, list[float]]:
        """By depth, how often probes of networks with random weights are right, which shows what the images alone reveal.

        Empty if the model cannot be initialised again.
        """
        case = self.case
        if not case.model.has_initialiser:
            return {}

        def probe() -> dict[str, list[float]]:
            keys = jax.random.split(jax.random.key(0), _UNTRAINED)
            found = [self._probes(fresh_variables(case.model, case.train_images, key))["probes"] for key in keys]
            return {depth: [float(np.mean(one[depth])) for one in found] for depth in found[0]}

        return self._kept({"untrained": _UNTRAINED} | case.described, probe)

    def _everything(self, variables: Variables) -> dict[str, Any]:
        """Probes, relearning and noise, as plain data."""
        case, rows = self.case, self.rows
        shares = share_correct_under_noise(
            case.model, variables, case.train_images, rows.noisy, norm=_NOISE, draws=_DRAWS, key=jax.random.key(0)
        )
        course = relearn(case.model, variables, case.train_images, case.split.forget.indices, self.target)
        noisy = None if shares is None else shares.tolist()
        return self._probes(variables) | {"relearning": asdict(course), "shares_under_noise": noisy}

    def _probes(self, variables: Variables) -> dict[str, Any]:
        """Whether probes, and nearest class means of embeddings, are right on held-out forgotten samples."""
        learned, held_out = self._learned_and_asked(variables)
        labels = np.concatenate([part.labels for part in held_out])
        known, asked = learned.features, [part.features for part in held_out]

        def readable(read: Callable[..., np.ndarray], depth: str) -> list[bool]:
            return read(known[depth], learned.labels, np.concatenate([part[depth] for part in asked]), labels).tolist()

        return {
            "probes": {depth: readable(linear_probe, depth) for depth in known},
            "nearest_mean": readable(nearest_class_mean, "z"),
        }

    def _kept(self, asked: dict[str, Any], compute: Callable[[], Any], kind: Kind = EVIDENCE) -> Any:
        return self.keep(kind, asked | {"rows": self.rows.described()}, compute)

    def _predict(self, variables: Variables, rows: np.ndarray, *, train: bool) -> Predictions:
        images = self.case.train_images if train else self.case.test_images
        return predict(self.case.model, variables, images, rows, taps=True)
