"""What a comparison compares methods with: the original and the retrained models of a request and a seed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.metric import MetricContext
from cujax.audit.rows import audit_row
from cujax.audit.verdict import Verdict
from cujax.experiments.change import is_unchanged
from cujax.experiments.judging import Comparison, compare_models, verdict_on_answers
from cujax.experiments.look import kept_in
from cujax.experiments.run import Run, candidate_of
from cujax.storage.checkpoints import Checkpoint

# Answers alone, or features and relearning as well.
VerdictReads = Literal["answers", "standard"]


@dataclass
class References:
    """The original and the retrained models of a request and a seed; looked at once.

    Attributes:
        run: The run that has them, ready to compute.
        reads: What a verdict reads.
    """

    run: Run
    reads: VerdictReads

    @cached_property
    def answers(self) -> tuple[Answers, list[Answers]]:
        """Of the original and of each retrained model."""
        run = self.run
        return run.answers(run.original()), [run.answers(model) for model in run.retrained()]

    def row(self, answers: Answers) -> dict[str, Any]:
        """The metrics of one model's answers."""
        original, retrained = self.answers
        noisy = bool(self.run.source.redrawn_ids)
        return audit_row(self.run.split, answers, original=original, retrained=retrained, clean_test_only=noisy)

    def judged(self, unlearned: Checkpoint, answers: Answers) -> tuple[dict[str, float], Verdict]:
        """Figures of features and relearning, if they are looked at, and the verdict on one model."""
        if self.reads == "standard":
            found = self._looked_into(unlearned)
            return _figures(found, "unlearned")[0], found.verdict
        run = self.run
        original, retrained = self.answers
        context = MetricContext(
            run.split, Evidence(original), [Evidence(model) for model in retrained], bool(run.source.redrawn_ids)
        )
        unchanged = is_unchanged(run.original().variables, unlearned.variables)
        return {}, verdict_on_answers(context, Evidence(answers), unchanged=unchanged)

    def audit(self) -> dict[str, Any]:
        """The rows of the original and of each retrained model, these against the others, and their costs."""
        original, retrained = self.answers
        run = self.run
        rows = {"original": [self.row(original)], "retrained": [self.row(model) for model in retrained]}
        if self.reads == "standard":
            found = self._looked_into(run.original())
            for name, entries in rows.items():
                for row, figures in zip(entries, _figures(found, name), strict=True):
                    row.update(figures)
        return {
            "original": rows["original"][0],
            "original_cost": run.original().metadata.record.get("cost"),
            "retrained": rows["retrained"],
            "retrained_costs": [model.metadata.record["cost"] for model in run.retrained()],
        }

    def _looked_into(self, unlearned: Checkpoint) -> Comparison:
        run = self.run
        return compare_models(
            run.case,
            candidate_of(run.original()),
            candidate_of(unlearned),
            list(map(candidate_of, run.retrained())),
            closely=False,
            judged_only=True,
            keep=kept_in(run.workdir),
        )


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
