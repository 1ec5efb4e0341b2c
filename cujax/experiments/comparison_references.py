"""The models with which a comparison compares methods: the original and the retrained models of a request and a seed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.metric import MetricContext
from cujax.audit.rows import audit_row
from cujax.audit.verdict import FEWEST_FOR_FAULTS, Verdict
from cujax.experiments.change import is_unchanged
from cujax.experiments.judging import Comparison, compare_evidence, target_of, verdict_on_answers
from cujax.experiments.look import Look, kept_in
from cujax.experiments.run import Run, candidate_of
from cujax.storage.checkpoints import Checkpoint

# Answers alone, or features and relearning as well.
VerdictReads = Literal["answers", "standard"]


@dataclass
class References:
    """The original and the retrained models of a request and a seed; each is inspected only once.

    Attributes:
        run: The run that has them, ready to compute.
        reads: What a verdict reads.
    """

    run: Run
    reads: VerdictReads

    def __post_init__(self) -> None:
        self._known: dict[str, Evidence] = {}

    @cached_property
    def answers(self) -> tuple[Answers, list[Answers]]:
        """Of the original and of each retrained model."""
        run = self.run
        original, retrained = run.original(), run.retrained()
        if self.reads == "standard":
            return self._evidence(original).answers, [self._evidence(model).answers for model in retrained]
        return run.answers(original), [run.answers(model) for model in retrained]

    def row(self, answers: Answers) -> dict[str, Any]:
        """The metrics of one model's answers."""
        original, retrained = self.answers
        noisy = bool(self.run.source.redrawn_ids)
        return audit_row(self.run.split, answers, original=original, retrained=retrained, clean_test_only=noisy)

    def judged(self, unlearned: Checkpoint) -> tuple[dict[str, Any], Verdict]:
        """The metrics of one model, with those of features and relearning if they are examined, and the verdict on it."""
        run = self.run
        if self.reads == "standard":
            found = self._compared(unlearned)
            return self.row(found.models["unlearned"][0].answers) | _figures(found, "unlearned")[0], found.verdict
        original, retrained = self.answers
        context = MetricContext(
            run.split, Evidence(original), [Evidence(model) for model in retrained], bool(run.source.redrawn_ids)
        )
        answers = run.answers(unlearned)
        unchanged = is_unchanged(run.original().variables, unlearned.variables)
        return self.row(answers), verdict_on_answers(context, Evidence(answers), unchanged=unchanged)

    def audit(self) -> dict[str, Any]:
        """The rows of the original and of each retrained model, these against the others, and their costs."""
        original, retrained = self.answers
        run = self.run
        rows = {"original": [self.row(original)], "retrained": [self.row(model) for model in retrained]}
        if self.reads == "standard":
            found = self._compared(run.original())
            for name, entries in rows.items():
                for row, figures in zip(entries, _figures(found, name), strict=True):
                    row.update(figures)
        return {
            "original": rows["original"][0],
            "original_cost": run.original().metadata.record.get("cost"),
            "retrained": rows["retrained"],
            "retrained_costs": [model.metadata.record["cost"] for model in run.retrained()],
        }

    @cached_property
    def _look(self) -> Look:
        run = self.run
        return Look(run.case, target_of(run.case, candidate_of(run.original())), None, kept_in(run.workdir))

    @cached_property
    def _untrained(self) -> dict[str, list[float]]:
        return self._look.untrained_probes() if len(self.run.retrained()) < FEWEST_FOR_FAULTS else {}

    def _evidence(self, reference: Checkpoint) -> Evidence:
        """Of the original or a retrained model, which every method is compared with."""
        if reference.digest not in self._known:
            self._known[reference.digest] = self._looked_into(reference)
        return self._known[reference.digest]

    def _looked_into(self, model: Checkpoint) -> Evidence:
        with self.run.case.progress("looking into a model", 1) as advance:
            found = self._look.into(candidate_of(model))
            advance()
        return found

    def _compared(self, unlearned: Checkpoint) -> Comparison:
        run = self.run
        original = run.original()
        own = self._known.get(unlearned.digest) or self._looked_into(unlearned)
        models = {
            "original": [self._evidence(original)],
            "unlearned": [own],
            "retrained": [self._evidence(model) for model in run.retrained()],
        }
        unchanged = is_unchanged(original.variables, unlearned.variables)
        return compare_evidence(run.case, models, self._untrained, unchanged=unchanged, judged_only=True)


def _figures(found: Comparison, name: str) -> list[dict[str, float]]:
    """Of some models, what their features and relearning show; a figure that one of them lacks is left out."""
    rows: list[dict[str, float]] = [{} for _ in found.models[name]]
    for metric in found.metrics:
        key = metric.key
        if key.startswith("probe_") and key != "probe_z":
            key = "probe_below_z"
        values = metric.retrained if name == "retrained" else [metric.values[name]]
        if key in ("probe_z", "probe_below_z", "nearest_class_mean", "relearning_steps"):
            for row, value in zip(rows, values, strict=False):
                if not isinstance(value, str):
                    row[key] = value.value
    return rows
