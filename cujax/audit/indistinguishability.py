"""Whether models that unlearned a sample can be distinguished from models that never saw it, over many models."""

import itertools

import numpy as np
import scipy

_BINS = 20
_CLIP = 100.0
_EMPTY = 1e-5


def forgetting_epsilons(unlearned: np.ndarray, references: np.ndarray, delta: float = 1e-5) -> np.ndarray:
    """The ε of each sample that the best attack on its log-odds shows, `[n]`; 0: no attack distinguishes the two sides.

    Attacks are thresholds and pairs of thresholds: "unlearned" if the value is inside (or outside) an interval. Each has
    a false positive and a false negative rate over the models, and shows
    `max(log((1 - δ - FPR) / FNR), log((1 - δ - FNR) / FPR))`; an attack without errors shows infinity, and one with errors
    on only one side is ignored, as in the NeurIPS 2023 challenge (Triantafillou et al., arXiv:2406.09073). With N models
    per side, no finite ε exceeds log(N - 1).

    Args:
        unlearned: `[N, n]` log-odds under models that unlearned the sample.
        references: `[M, n]` under models that never saw it.
        delta: The δ of the definition.
    """
    _check_numbers(unlearned, references)
    from_unlearned = np.repeat([1.0, 0.0], [len(unlearned), len(references)])
    best = np.zeros(unlearned.shape[1])
    for sample, values in enumerate(np.concatenate([unlearned, references]).T):
        order = np.argsort(values, kind="stable")
        hits = np.concatenate([[0.0], np.cumsum(from_unlearned[order])]) / len(unlearned)
        false = np.concatenate([[0.0], np.cumsum(1 - from_unlearned[order])]) / len(references)
        # A threshold cannot fall between equal values.
        sorted_values = values[order]
        cuts = np.concatenate([[0], np.flatnonzero(sorted_values[1:] > sorted_values[:-1]) + 1, [len(order)]])
        low, high = np.array(list(itertools.combinations(cuts, 2))).T
        inside, alarms = hits[high] - hits[low], false[high] - false[low]
        best[sample] = max(_epsilon(alarms, 1 - inside, delta), _epsilon(1 - alarms, inside, delta))
    return best


def _epsilon(false_positives: np.ndarray, false_negatives: np.ndarray, delta: float) -> float:
    """The largest ε of attacks with these rates."""
    fpr, fnr = np.round(false_positives, 12), np.round(false_negatives, 12)
    if ((fpr == 0) & (fnr == 0)).any():
        return float("inf")
    counts = (fpr > 0) & (fnr > 0)
    fpr, fnr = fpr[counts], fnr[counts]
    ratios = np.concatenate([(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr, [1.0]])
    return float(np.log(np.maximum(ratios, 1.0)).max())


def forgetting_quality(epsilons: np.ndarray) -> np.ndarray:
    """The challenge's score of each sample, `2^-⌊ε / 0.5⌋`, `[n]`; 1 is best, 0 for an infinite ε."""
    return np.exp2(-np.floor(epsilons / 0.5))


def klom(unlearned: np.ndarray, references: np.ndarray) -> np.ndarray:
    """KL divergence of the log-odds over unlearned models from those over retrained models, `[n]` in nats.

    Computed from histograms of 20 bins with common edges, the last including its right edge; values are clipped to ±100,
    and empty bins count as 1e-5 (KLoM: Georgiev et al., arXiv:2410.23232).

    Args:
        unlearned: `[N, n]` log-odds under models that unlearned the sample; may contain infinities.
        references: `[M, n]` under models that never saw it.
    """
    _check_numbers(unlearned, references)
    sides = [np.clip(values, -_CLIP, _CLIP) for values in (unlearned, references)]
    divergences = np.empty(unlearned.shape[1])
    for sample in range(len(divergences)):
        u, o = (values[:, sample] for values in sides)
        both = np.concatenate([u, o])
        if np.ptp(both) <= 1e-9 * max(1.0, np.abs(both).max()):
            divergences[sample] = 0.0
            continue
        edges = np.histogram_bin_edges(both, _BINS)
        p, q = (np.histogram(values, edges)[0] / len(values) for values in (u, o))
        divergences[sample] = scipy.stats.entropy(np.where(p > 0, p, _EMPTY), np.where(q > 0, q, _EMPTY))
    return divergences


def _check_numbers(*sides: np.ndarray) -> None:
    if any(np.isnan(side).any() for side in sides):
        raise ValueError("log-odds must be numbers, but some are NaN")
