"""The definition of a metric, and what it is computed from besides the model itself."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.key_metrics import Task
from cujax.data.requests import Split
from cujax.training.predict import Predictions, accuracy


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: Its name in reports.
        family: Its family.
        heading: Its display name.
        question: The question that it answers, in one sentence.
        compute: Computes its value for one model; raises `NotAvailable` with the reason if there is none.
        of_answers: Whether it reads only answers, so that every run reports it.
        asked_again: Whether an audit also computes it for the samples of earlier requests.
    """

    key: str
    family: str
    heading: str
    question: str
    compute: Callable[["MetricContext", Evidence], Estimate]
    of_answers: bool = False
    asked_again: bool = False


# The metrics of one family, for a network with features at some depths.
MetricFamily = Callable[[Sequence[str]], list[Metric]]


@dataclass(frozen=True, eq=False)
class MetricContext:
    """What a model is compared with.

    Attributes:
        split: The split of the request.
        original: The model before unlearning.
        retrained: Models trained without the forget set. One that is itself measured is compared with the others.
        clean_test_only: Whether training labels carry noise that test labels do not. Then the loss attack uses validation
            samples as held-out samples: test samples would stand out by their clean labels alone.
        computed: Values that several metrics share, by key; filled by `once`.
    """

    split: Split
    original: Evidence
    retrained: Sequence[Evidence]
    clean_test_only: bool = False
    computed: dict[Hashable, Any] = field(default_factory=dict, init=False)

    @property
    def task(self) -> Task:
        """The task: "class" or "samples"."""
        return self.split.task

    def once[Value](self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The result of `compute`, which is called only the first time that this key is requested."""
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

    def others(self, model: Evidence) -> list[Evidence]:
        """The retrained models other than this model."""
        others = [reference for reference in self.retrained if reference is not model]
        if not others:
            raise NotAvailable(
                "there is only one retrained model" if self.retrained else "no retrained model: --retrained is 0"
            )
        return others

    def test_rows(self, answers: Answers, *, of_forgotten: bool) -> Predictions:
        """Test samples of the forgotten or the retained classes."""
        classes = self.split.forgotten_classes if of_forgotten else self.split.absent_classes
        rows = answers.test.take(np.isin(answers.test.labels, classes) == of_forgotten)
        if not len(rows.labels):
            which = "the forgotten classes" if of_forgotten else "the retained classes"
            raise NotAvailable(f"the test set has no sample of {which}")
        return rows

    def forget_test(self, answers: Answers) -> Predictions:
        """Test samples of the forgotten classes."""
        if not self.split.is_class_task:
            raise NotAvailable("the request is for samples, not classes: there are no test samples of them")
        return self.test_rows(answers, of_forgotten=True)

    def accuracies(self, answers: Answers) -> list[float]:
        """Forget, retain and test accuracy; for a forgotten class, on test samples."""
        forget = self.forget_test(answers) if self.split.is_class_task else answers.forget
        return [accuracy(rows) for rows in (forget, answers.retain, self.test_rows(answers, of_forgotten=False))]


def not_looked_at(reason: str = "the model was not inspected; use cujax audit") -> NotAvailable:
    """The reason why there is no value for a model if only its answers are known."""
    return NotAvailable(reason)


def not_looked_at_closely() -> NotAvailable:
    """The reason why there is no value if the level of an audit omits a measurement."""
    return NotAvailable("level quick does not measure this; use cujax audit --level standard")
