"""Distances between the answers of two models on the same samples."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.special import rel_entr, softmax

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, mean
from cujax.audit.likelihood import log_odds
from cujax.audit.metric import Metric, MetricContext


def jensen_shannon(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two models' softmaxes, `[n]` in nats (0 to log 2).

    Args:
        logits: `[n, C]`; may contain -inf.
        other_logits: `[n, C]`, of the other model.
    """
    p, q = _softmaxes(logits, other_logits)
    middle = (p + q) / 2
    divergences = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2
    return np.maximum(divergences, 0.0)  # rounding puts equal answers just below 0


def activation_distance(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Euclidean distance of two models' softmaxes, `[n]` (0 to √2); arguments as in `jensen_shannon`."""
    p, q = _softmaxes(logits, other_logits)
    return np.linalg.norm(p - q, axis=1)


def agreement(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Whether two models predict the same class, `[n]` bool; arguments as in `jensen_shannon`."""
    return logits.argmax(axis=1) == other_logits.argmax(axis=1)


def _softmaxes(logits: np.ndarray, other_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return softmax(logits.astype(np.float64), axis=1), softmax(other_logits.astype(np.float64), axis=1)


def _mean_to_references(
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[MetricContext, Evidence], Estimate]:
    """The mean over samples and retrained models; the interval is over samples."""

    def compute(context: MetricContext, model: Evidence) -> Estimate:
        logits = model.answers.forget.logits
        return mean(np.mean([distance(logits, other.answers.forget.logits) for other in context.others(model)], axis=0))

    return compute


def _log_odds_distance(context: MetricContext, model: Evidence) -> Estimate:
    """The mean over samples of |φ - mean φ of the retrained models|; the interval is over samples."""
    own, *others = (log_odds(one.answers.forget) for one in (model, *context.others(model)))
    if not np.isfinite([own, *others]).all():
        raise NotAvailable("a logit is masked, so the log odds are infinite")
    return mean(np.abs(own - np.mean(others, axis=0)))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    family = partial(Metric, family="distance", asked_again=True)
    return [
        family(
            key="js_to_retrained",
            heading="JS to retrained",
            question="How far are the answers on the forget set from those of retrained models? In nats.",
            compute=_mean_to_references(jensen_shannon),
            of_answers=True,
        ),
        family(
            key="activation_distance",
            heading="activation distance",
            question=(
                "How far are the probabilities on the forget set from those of retrained models? Euclidean distance, from "
                "0 to 1.41."
            ),
            compute=_mean_to_references(activation_distance),
        ),
        family(
            key="agreement",
            heading="agreement",
            question="How often does the model predict the same class on the forget set as a retrained model?",
            compute=_mean_to_references(agreement),
            of_answers=True,
        ),
        family(
            key="log_odds_to_retrained",
            heading="log odds to retrained",
            question="How far are the log odds of the true class on the forget set from their mean over retrained models?",
            compute=_log_odds_distance,
            of_answers=True,
        ),
    ]
