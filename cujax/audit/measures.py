"""Every metric of an audit that is a figure of one model: what it asks, and how it is computed from what is known of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from cujax.audit.accuracy import mean_gap, tug_of_war
from cujax.audit.class_inference import class_inference
from cujax.audit.distance import activation_distance, agreement, jensen_shannon
from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import Estimate, NotAvailable, area, mean, share
from cujax.audit.membership import (
    Suspicion,
    attack_features,
    loss_attack_accuracy,
    loss_attack_auc,
    sample_losses,
    trained_attack,
)
from cujax.audit.representation import class_means, cosines_to_class_means, linear_cka
from cujax.audit.residual import residual_knowledge
from cujax.data.requests import Split
from cujax.inference import Predictions, accuracy, correct


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        key: Its name in reports.
        family: What kind it is of.
        heading: Its name for people.
        question: What it asks, in one sentence.
        compute: Its value for one model; raises `NotAvailable` with the reason where there is none.
    """

    key: str
    family: str
    heading: str
    question: str
    compute: Callable[["Case", Evidence], Estimate]


@dataclass(frozen=True, eq=False)
class Case:
    """What a model is held against.

    Attributes:
        split: What was forgotten.
        original: The model before.
        retrained: The oracles: models trained without the forget set. One that is itself measured is held against the
            others.
        clean_test_only: Whether training labels carry noise that test labels do not. Then the loss attack takes validation
            samples for held-out ones: test samples would be told apart by their clean labels alone.
        suspicions: What trained attacks said, by model and feature: two measures read each.
    """

    split: Split
    original: Evidence
    retrained: Sequence[Evidence]
    clean_test_only: bool = False
    suspicions: dict[tuple[Evidence, str], Suspicion] = field(default_factory=dict, init=False)

    @cached_property
    def former_means(self) -> dict[int, np.ndarray]:
        """Where the original had the classes of the forget set."""
        return class_means(self.original.answers.forget)

    def others(self, model: Evidence) -> list[Evidence]:
        """The oracles that are not this model."""
        others = [oracle for oracle in self.retrained if oracle is not model]
        if not others:
            raise NotAvailable(
                "there is only one retrained model" if self.retrained else "no retrained model: --retrained is 0"
            )
        return others

    def test_rows(self, answers: Answers, *, of_forgotten: bool) -> Predictions:
        """Test samples of the forgotten classes, or of those that stay."""
        classes = self.split.forgotten_classes if of_forgotten else self.split.absent_classes
        rows = answers.test.take(np.isin(answers.test.labels, classes) == of_forgotten)
        if not len(rows.labels):
            which = "the forgotten classes" if of_forgotten else "the classes that stay"
            raise NotAvailable(f"the test set has no sample of {which}")
        return rows

    def forget_test(self, answers: Answers) -> Predictions:
        """Test samples of the forgotten classes."""
        if not self.split.is_class_task:
            raise NotAvailable("samples were forgotten, not classes: there are no test samples of them")
        return self.test_rows(answers, of_forgotten=True)

    def accuracies(self, answers: Answers) -> list[float]:
        """Forget, retain and test accuracy; of a forgotten class, that on test samples."""
        forget = self.forget_test(answers) if self.split.is_class_task else answers.forget
        return [accuracy(rows) for rows in (forget, answers.retain, self.test_rows(answers, of_forgotten=False))]


def _share_correct(rows: Callable[[Case, Answers], Predictions]) -> Callable[[Case, Evidence], Estimate]:
    return lambda case, model: share(correct(rows(case, model.answers)))


def _against_oracles(
    combine: Callable[[list[float], list[list[float]]], float],
) -> Callable[[Case, Evidence], Estimate]:
    def compute(case: Case, model: Evidence) -> Estimate:
        others = case.others(model)
        return Estimate(combine(case.accuracies(model.answers), [case.accuracies(other.answers) for other in others]))

    return compute


def _unlearning_score(case: Case, model: Evidence) -> Estimate:
    if case.split.is_class_task:
        raise NotAvailable("a class was forgotten: its accuracy should not be that of the test set")
    test = accuracy(case.test_rows(model.answers, of_forgotten=False))
    return Estimate(abs(test - accuracy(model.answers.forget)))


def _loss_sides(case: Case, model: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the forget set, and of held-out samples of the same classes."""
    answers = model.answers
    unseen = answers.validation if case.clean_test_only else answers.test
    return sample_losses(answers.forget), sample_losses(unseen.take(np.isin(unseen.labels, answers.forget.labels)))


def _mia_loss_auc(case: Case, model: Evidence) -> Estimate:
    forget, held_out = _loss_sides(case, model)
    try:
        loss_attack_auc(forget, held_out)
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason
    return area(-forget, -held_out)


def _mia_loss_accuracy(case: Case, model: Evidence) -> Estimate:
    try:
        return Estimate(loss_attack_accuracy(*_loss_sides(case, model)))
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason


def _suspicions(case: Case, model: Evidence, feature: str) -> Suspicion:
    answers = model.answers
    if (model, feature) in case.suspicions:
        return case.suspicions[model, feature]
    if np.isneginf(answers.forget.logits).any():
        raise NotAvailable("the true class is masked: its confidence shows the mask, not what was learned")
    test = case.test_rows(answers, of_forgotten=False)
    retain, unseen, forget = (attack_features(rows)[feature] for rows in (answers.retain, test, answers.forget))
    case.suspicions[model, feature] = found = trained_attack(retain, unseen, forget)
    return found


def _taken_for_unseen(feature: str) -> Callable[[Case, Evidence], Estimate]:
    return lambda case, model: share(~_suspicions(case, model, feature).is_member)


def _told_from_test(feature: str) -> Callable[[Case, Evidence], Estimate]:
    def compute(case: Case, model: Evidence) -> Estimate:
        found = _suspicions(case, model, feature)
        return area(found.scores, found.other_scores)

    return compute


def _class_inference(case: Case, model: Evidence) -> Estimate:
    if not case.split.is_class_task:
        raise NotAvailable("samples were forgotten, not classes")
    case.others(model)
    first, second = list(case.retrained[::2]), list(case.retrained[1::2])
    known, held = (second, first) if any(model is oracle for oracle in first) else (first, second)
    try:
        scores, oracle_scores = class_inference(
            model.answers.forget.logits,
            [oracle.answers.forget.logits for oracle in held if oracle is not model],
            original_logits=case.original.answers.forget.logits,
            known_oracle_logits=[oracle.answers.forget.logits for oracle in known],
            forgotten_classes=case.split.forgotten_classes,
        )
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason
    return area(scores, oracle_scores)


def _mean_to_oracles(
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Case, Evidence], Estimate]:
    """The mean over samples and oracles; the interval is over samples."""

    def compute(case: Case, model: Evidence) -> Estimate:
        logits = model.answers.forget.logits
        return mean(np.mean([distance(logits, other.answers.forget.logits) for other in case.others(model)], axis=0))

    return compute


def _not_looked_at() -> NotAvailable:
    return NotAvailable("the model was not looked into: scripts/audit.py does")


def _probe(depth: str) -> Callable[[Case, Evidence], Estimate]:
    def compute(_: Case, model: Evidence) -> Estimate:
        if depth not in model.probes:
            raise _not_looked_at()
        return share(model.probes[depth])

    return compute


def _nearest_mean(_: Case, model: Evidence) -> Estimate:
    if model.nearest_mean is None:
        raise _not_looked_at()
    return share(model.nearest_mean)


def _cka_to_oracles(depth: str) -> Callable[[Case, Evidence], Estimate]:
    def compute(case: Case, model: Evidence) -> Estimate:
        found = [linear_cka(_features(model, depth), _features(other, depth)) for other in case.others(model)]
        return Estimate(float(np.mean(found)))

    return compute


def _cka_to_original(depth: str) -> Callable[[Case, Evidence], Estimate]:
    return lambda case, model: Estimate(linear_cka(_features(model, depth), _features(case.original, depth)))


def _features(model: Evidence, depth: str) -> np.ndarray:
    if depth not in model.features:
        raise _not_looked_at()
    return model.features[depth]


def _cosine(case: Case, model: Evidence) -> Estimate:
    if any(model is oracle for oracle in case.retrained):
        raise NotAvailable("a retrained model has an embedding space of its own")
    return mean(cosines_to_class_means(model.answers.forget, case.former_means))


def _relearning(case: Case, model: Evidence) -> Estimate:
    if model.relearning is None:
        raise _not_looked_at()
    if model.relearning.diverged:
        raise NotAvailable(f"fine-tuning diverged after {model.relearning.steps[-1]} steps")
    courses = [other.relearning for other in case.others(model) if other.relearning is not None]
    steps = [course.steps_to_regain for course in courses if not course.diverged]
    if not any(steps):
        raise NotAvailable("retrained models have nothing to learn again: they answer as the original did")
    return Estimate(model.relearning.steps_to_regain / float(np.mean(steps)))


def _residual(case: Case, model: Evidence) -> Estimate:
    if model.shares_under_noise is None:
        raise _not_looked_at()
    others = [other.shares_under_noise for other in case.others(model) if other.shares_under_noise is not None]
    return mean(np.mean([residual_knowledge(model.shares_under_noise, other) for other in others], axis=0))


ANSWER_MEASURES = (
    Measure(
        "forget_train_accuracy",
        "accuracy",
        "forget (train)",
        "How often are the samples to forget still classified as labelled?",
        _share_correct(lambda case, answers: answers.forget),
    ),
    Measure(
        "forget_test_accuracy",
        "accuracy",
        "forget (test)",
        "How often are test samples of the forgotten class recognised?",
        _share_correct(Case.forget_test),
    ),
    Measure(
        "retain_train_accuracy",
        "accuracy",
        "retain (train)",
        "Is what should stay still known?",
        _share_correct(lambda case, answers: answers.retain),
    ),
    Measure(
        "retain_test_accuracy",
        "accuracy",
        "retain (test)",
        "Does what should stay still generalise?",
        _share_correct(partial(Case.test_rows, of_forgotten=False)),
    ),
    Measure(
        "test_accuracy",
        "accuracy",
        "test (all)",
        "Accuracy on the whole test set, the forgotten class included.",
        _share_correct(lambda case, answers: answers.test),
    ),
    Measure(
        "mia_loss_auc",
        "membership",
        "MIA loss AUC",
        "Does a low loss give the forget samples away? 0.5: no better than chance.",
        _mia_loss_auc,
    ),
    Measure(
        "mia_loss_accuracy",
        "membership",
        "MIA loss accuracy",
        "How often does a classifier of the loss tell forget samples from held-out ones? 0.5: chance.",
        _mia_loss_accuracy,
    ),
    Measure(
        "mia_confidence",
        "membership",
        "MIA confidence",
        "What share of the forget set does a trained attack take for samples never seen?",
        _taken_for_unseen("confidence"),
    ),
    Measure(
        "js_to_retrained",
        "distance",
        "JS to retrained",
        "How far are its answers on the forget set from retrained models'? In nats.",
        _mean_to_oracles(jensen_shannon),
    ),
    Measure(
        "mean_gap",
        "accuracy",
        "mean gap",
        "Mean absolute difference of forget, retain and test accuracy to retrained models'.",
        _against_oracles(mean_gap),
    ),
    Measure(
        "cosine_to_former_class_mean",
        "representation",
        "cosine to former class",
        "How near do the embeddings of the forget samples lie to the former mean of their class?",
        _cosine,
    ),
)


def all_measures(depths: Sequence[str]) -> list[Measure]:
    """Every measure of a network with features at these depths, a family after another."""
    more = [
        Measure(
            "tug_of_war",
            "accuracy",
            "tug of war",
            "Product of one minus each difference of accuracy to retrained models'; 1: none differs.",
            _against_oracles(tug_of_war),
        ),
        Measure(
            "unlearning_score",
            "accuracy",
            "unlearning score",
            "How far apart are test accuracy and accuracy on the forget set?",
            _unlearning_score,
        ),
        *(
            Measure(
                f"mia_{feature}",
                "membership",
                f"MIA {words}",
                f"What share of the forget set does an attack trained on {words} take for samples never seen?",
                _taken_for_unseen(feature),
            )
            for feature, words in _FEATURES.items()
            if feature != "confidence"
        ),
        *(
            Measure(
                f"mia_{feature}_auc",
                "membership",
                f"MIA {words}, AUC",
                f"Does an attack trained on {words} rank forget samples above test samples, as members?",
                _told_from_test(feature),
            )
            for feature, words in _FEATURES.items()
        ),
        Measure(
            "class_inference_auc",
            "class inference",
            "class inference AUC",
            "Do its answers on the forgotten class, that class left out, look as if it once knew it? 0.5: no.",
            _class_inference,
        ),
        Measure(
            "activation_distance",
            "distance",
            "activation distance",
            "How far are its probabilities on the forget set from retrained models'? Euclidean, 0 to 1.41.",
            _mean_to_oracles(activation_distance),
        ),
        Measure(
            "agreement",
            "distance",
            "agreement",
            "How often does it answer on the forget set as a retrained model does?",
            _mean_to_oracles(agreement),
        ),
        *(
            Measure(
                f"probe_{depth}",
                "representation",
                f"probe at {depth}",
                f"How well can what was forgotten be read from the features at {depth} by a linear classifier?",
                _probe(depth),
            )
            for depth in depths
        ),
        Measure(
            "nearest_class_mean",
            "representation",
            "nearest class mean",
            "How often is the nearest mean of embeddings the forgotten samples' own class?",
            _nearest_mean,
        ),
        *(
            Measure(
                f"cka_{depth}",
                "representation",
                f"CKA at {depth}, to retrained",
                f"How alike are its features at {depth} and retrained models'? 1: alike but for rotation and scale.",
                _cka_to_oracles(depth),
            )
            for depth in depths
        ),
        *(
            Measure(
                f"cka_{depth}_to_original",
                "representation",
                f"CKA at {depth}, to original",
                f"How alike are its features at {depth} and the original's? A retrained model's tell how alike they may be.",
                _cka_to_original(depth),
            )
            for depth in depths
        ),
        Measure(
            "relearning_ratio",
            "relearning",
            "relearning",
            "Steps until the forget set is learned again, over retrained models' steps; below 1: it comes back sooner.",
            _relearning,
        ),
        Measure(
            "residual_knowledge",
            "residual knowledge",
            "residual knowledge",
            "For what share of forget samples are noisy copies recognised more often than by a retrained model?",
            _residual,
        ),
    ]
    families = list(dict.fromkeys(measure.family for measure in (*ANSWER_MEASURES, *more)))
    return sorted((*ANSWER_MEASURES, *more), key=lambda measure: families.index(measure.family))


_FEATURES = {
    "confidence": "confidence",
    "correctness": "correctness",
    "entropy": "entropy",
    "modified_entropy": "modified entropy",
}
