"""Metrics of a method over many models: likelihood ratios, ε and KLOM. Retrained models are the baseline."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cujax.audit.indistinguishability import forgetting_epsilons, forgetting_quality, klom
from cujax.audit.intervals import Estimate, NotAvailable, mean, mean_over_models
from cujax.audit.likelihood import LikelihoodAttack, likelihood_attack, shadow_members
from cujax.failures import Failure, attempt

_DIVISIONS = 5


class Topic(NamedTuple):
    """A metric in words; fields as in `cujax.audit.metric.Metric`."""

    key: str
    family: str
    heading: str
    question: str


TOPICS = (
    Topic(
        "ulira_auc",
        "likelihood ratio",
        "U-LiRA AUC",
        "How well do likelihood ratios over shadow models distinguish unlearned samples from samples never seen?",
    ),
    Topic(
        "ulira_accuracy",
        "likelihood ratio",
        "U-LiRA accuracy",
        "For what share of samples are the likelihood ratios right? 0.5: chance.",
    ),
    Topic(
        "ulira_tpr",
        "likelihood ratio",
        "U-LiRA TPR at 1 % FPR",
        "What share of unlearned samples do likelihood ratios detect at a false positive rate of 1 %?",
    ),
    Topic(
        "klom",
        "indistinguishability",
        "KLOM",
        "How far do the log-odds of a sample over unlearned models diverge from those over retrained ones? In nats.",
    ),
    Topic(
        "forgetting_quality",
        "indistinguishability",
        "forgetting quality",
        (
            "How private is a sample under the best threshold attack on models (2^-⌊ε/0.5⌋, mean over samples)? 1: fully "
            "private."
        ),
    ),
    Topic(
        "challenge_score",
        "indistinguishability",
        "challenge score",
        "Forgetting quality, times retain and test accuracy relative to those of retrained models.",
    ),
)

_OF_ATTACK: dict[str, Callable[[LikelihoodAttack], Estimate]] = {
    "ulira_auc": lambda attack: _over_pairs(attack.areas()),
    "ulira_accuracy": lambda attack: _over_pairs(attack.accuracies()),
    "ulira_tpr": lambda attack: Estimate(attack.true_positives_at_low_false_positives()),
}


def _over_pairs(by_model: np.ndarray) -> Estimate:
    """The mean with an interval over pairs of models: the two of a pair split the samples, so they are dependent."""
    return mean_over_models(by_model.reshape(-1, 2).mean(axis=1), within=(0, 1))


class OverModels(NamedTuple):
    """The measurements.

    Attributes:
        values: By metric and by name of the models ("original", "unlearned"), the estimate, or the reason why there is none.
        floors: By metric, the same for retrained models, divided at random in several ways.
        attacks: The likelihood-ratio attacks, also on "retrained" models.
    """

    values: dict[str, dict[str, Estimate | str]]
    floors: dict[str, list[Estimate]]
    attacks: dict[str, LikelihoodAttack]


def measure_over_models(
    log_odds: Mapping[str, np.ndarray], references: np.ndarray, members: np.ndarray, utility: Mapping[str, float]
) -> OverModels:
    """Measures shadow models, before and after unlearning, against retrained models.

    Args:
        log_odds: By name, `[N, n]` of the forget samples under the shadow models.
        references: `[M, n]`, under the retrained models.
        members: `[N, n]` bool, which samples each shadow model was trained on.
        utility: By name, accuracy on retained data relative to retrained models'.
    """
    attacks = {name: _attack(values, members) for name, values in log_odds.items()}
    even = references[: len(references) // 2 * 2]
    divided = [_attack(even, shadow_members(even.shape[1], len(even), seed=division + 1)) for division in range(_DIVISIONS)]
    values: dict[str, dict[str, Estimate | str]] = {
        key: {name: _estimate(metric, attack) for name, attack in attacks.items()} for key, metric in _OF_ATTACK.items()
    }
    floors = {key: _known(_estimate(metric, attack) for attack in divided) for key, metric in _OF_ATTACK.items()}
    count = len(members) // 2
    halves = [_halves(references, count, division) for division in range(_DIVISIONS)]
    sides = {name: _of_members(values, members) for name, values in log_odds.items()}
    for key, metric in (("klom", klom), ("forgetting_quality", _quality)):
        found = {name: np.mean([metric(own, some) for some, _ in halves], axis=0) for name, own in sides.items()}
        values[key] = {name: _estimate(mean, by_sample) for name, by_sample in found.items()}
        floors[key] = _known(_estimate(mean, metric(some, others)) for some, others in halves)
    values["challenge_score"] = {name: _estimate(mean, utility[name] * by_sample) for name, by_sample in found.items()}
    floors["challenge_score"] = floors["forgetting_quality"]
    all_attacks = attacks | {"retrained": divided[0]}
    return OverModels(values, floors, {name: one for name, one in all_attacks.items() if not isinstance(one, str)})


def _estimate(measure: Callable[[Any], Estimate], of: Any) -> Estimate | str:
    """The measurement of an attack or of values by sample, or the reason why there is none."""
    if isinstance(of, str):
        return of
    found = attempt(lambda: measure(of), expected=(NotAvailable, ValueError))
    return found.reason if isinstance(found, Failure) else found


def _known(estimates: Iterable[Estimate | str]) -> list[Estimate]:
    return [estimate for estimate in estimates if isinstance(estimate, Estimate)]


def _quality(unlearned: np.ndarray, references: np.ndarray) -> np.ndarray:
    return forgetting_quality(forgetting_epsilons(unlearned, references))


def _attack(log_odds: np.ndarray, members: np.ndarray) -> LikelihoodAttack | str:
    try:
        return likelihood_attack(log_odds, members)
    except ValueError as reason:
        return str(reason)


def _of_members(log_odds: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The log-odds of each sample under the models that were trained on it: `[N / 2, n]`."""
    order = np.argsort(~members, axis=0, kind="stable")[: len(log_odds) // 2]
    return np.take_along_axis(log_odds, order, axis=0)


def _halves(log_odds: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """This many of the models, at most half, drawn at random, and the same number of others."""
    order = np.random.default_rng(seed).permutation(len(log_odds))
    count = min(count, len(log_odds) // 2)
    return log_odds[order[:count]], log_odds[order[count : 2 * count]]
