"""Accuracy, and metrics computed from accuracies. All values are fractions."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import Estimate, NotAvailable, share
from cujax.audit.metric import Metric, MetricContext
from cujax.training.predict import Predictions, accuracy, correct


def mean_gap(accuracies: Sequence[float], reference_accuracies: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference of accuracies (forget, retain, test) to their means over the retrained models.

    Args:
        accuracies: Accuracies of the model in question.
        reference_accuracies: The same accuracies of each retrained model.

    >>> round(mean_gap([0.9, 1.0, 0.8], [[0.8, 1.0, 0.8], [0.9, 1.0, 0.9]]), 4)
    0.0333
    """
    return float(np.mean(_differences(accuracies, reference_accuracies)))


def tug_of_war(accuracies: Sequence[float], reference_accuracies: Sequence[Sequence[float]]) -> float:
    """The product of one minus each absolute difference of accuracies to their means over retrained models; 1 is ideal.

    Unlike a mean, it cannot be high if one part fails (Zhao et al., arXiv:2406.01257).

    Args:
        accuracies: Forget, retain and test accuracy of the model in question.
        reference_accuracies: The same accuracies of each retrained model.

    >>> tug_of_war([0.5, 1.0, 1.0], [[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    0.25
    """
    return float(np.prod(1 - _differences(accuracies, reference_accuracies)))


def _differences(accuracies: Sequence[float], reference_accuracies: Sequence[Sequence[float]]) -> np.ndarray:
    return np.abs(np.asarray(accuracies) - np.mean(reference_accuracies, axis=0))


def _share_correct(rows: Callable[[MetricContext, Answers], Predictions]) -> Callable[[MetricContext, Evidence], Estimate]:
    return lambda context, model: share(correct(rows(context, model.answers)))


def _against_references(
    combine: Callable[[list[float], list[list[float]]], float],
) -> Callable[[MetricContext, Evidence], Estimate]:
    def compute(context: MetricContext, model: Evidence) -> Estimate:
        others = context.others(model)
        return Estimate(combine(context.accuracies(model.answers), [context.accuracies(other.answers) for other in others]))

    return compute


def _unlearning_score(context: MetricContext, model: Evidence) -> Estimate:
    if context.split.is_class_task:
        raise NotAvailable("a class was forgotten: its accuracy should not be that of the test set")
    test = accuracy(context.test_rows(model.answers, of_forgotten=False))
    return Estimate(abs(test - accuracy(model.answers.forget)))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    family = partial(Metric, family="accuracy")
    return [
        family(
            key="forget_train_accuracy",
            heading="forget (train)",
            question="How often are forget samples still classified as labelled?",
            compute=_share_correct(lambda context, answers: answers.forget),
            of_answers=True,
            asked_again=True,
        ),
        family(
            key="forget_test_accuracy",
            heading="forget (test)",
            question="How often are test samples of the forgotten class recognised?",
            compute=_share_correct(MetricContext.forget_test),
            of_answers=True,
        ),
        family(
            key="retain_train_accuracy",
            heading="retain (train)",
            question="How often are retained training samples classified correctly?",
            compute=_share_correct(lambda context, answers: answers.retain),
            of_answers=True,
        ),
        family(
            key="retain_test_accuracy",
            heading="retain (test)",
            question="How often are test samples of the retained classes classified correctly?",
            compute=_share_correct(partial(MetricContext.test_rows, of_forgotten=False)),
            of_answers=True,
        ),
        family(
            key="test_accuracy",
            heading="test (all)",
            question="Accuracy on the whole test set, including the forgotten class.",
            compute=_share_correct(lambda context, answers: answers.test),
            of_answers=True,
        ),
        family(
            key="mean_gap",
            heading="mean gap",
            question="Mean absolute difference between forget, retain and test accuracy and those of retrained models.",
            compute=_against_references(mean_gap),
            of_answers=True,
        ),
        family(
            key="tug_of_war",
            heading="tug of war",
            question=(
                "Product, over forget, retain and test accuracy, of one minus the difference to retrained models. 1: no "
                "difference."
            ),
            compute=_against_references(tug_of_war),
        ),
        family(
            key="unlearning_score",
            heading="unlearning score",
            question="How far apart are test accuracy and accuracy on the forget set?",
            compute=_unlearning_score,
        ),
    ]
