"""Likelihood-ratio attacks: how reliably many models of one recipe show whether a sample was unlearned or never seen."""

from typing import NamedTuple

import lazy_loader
import numpy as np
import scipy
from scipy.special import logsumexp

from cujax.training.predict import Predictions

# Loaded when first used: importing it takes as long as JAX.
sklearn = lazy_loader.load("sklearn")

_LOW_FPR = 0.01
_FEWEST_A_SIDE = 2


def log_odds(predictions: Predictions) -> np.ndarray:
    """The logit-scaled confidence `log p_y - log Σ_{k≠y} p_k`, `[n]` float64; -inf if the true class is masked.

    Unlike a confidence, it is nearly normally distributed over models (Carlini et al., arXiv:2112.03570).
    """
    logits = predictions.logits.astype(np.float64)
    own = logits[np.arange(len(logits)), predictions.labels]
    others = logits.copy()
    others[np.arange(len(logits)), predictions.labels] = -np.inf
    return own - logsumexp(others, axis=1)


def shadow_members(n_samples: int, n_models: int, seed: int = 0) -> np.ndarray:
    """Which of the samples each shadow model is trained on, `[n_models, n_samples]` bool.

    Models come in pairs, 2k and 2k+1, that split the samples, so each sample is in half of the models.

    Raises:
        ValueError: if the number of models is odd.
    """
    if n_models % 2:
        raise ValueError(f"shadow models come in pairs, so there must be an even number of them, but there are {n_models}.")
    pairs = []
    for pair in range(n_models // 2):
        first = np.zeros(n_samples, bool)
        first[np.random.default_rng((seed, pair)).permutation(n_samples)[: (n_samples + pair % 2) // 2]] = True
        pairs += [first, ~first]
    return np.array(pairs).reshape(n_models, n_samples)


class LikelihoodAttack(NamedTuple):
    """The result of U-LiRA, where each target model is attacked with the others.

    Attributes:
        scores: `[N, n]` log likelihood ratios; above 0 for samples that look like members.
        is_member: `[N, n]` bool, the true membership.
    """

    scores: np.ndarray
    is_member: np.ndarray

    @property
    def is_one_sided(self) -> bool:
        """Whether a target has samples of only one side, so that there is no curve to draw."""
        return bool((self.is_member.all(axis=1) | ~self.is_member.any(axis=1)).any())

    def areas(self) -> np.ndarray:
        """Area under the ROC curve over the samples of each target model, `[N]`.

        Raises:
            ValueError: if a target has samples of only one side.
        """
        if self.is_one_sided:
            raise ValueError(
                f"with {self.is_member.shape[1]} samples, a model has seen all of them or none, so there is no ROC curve"
            )
        return np.array([sklearn.metrics.roc_auc_score(*pair) for pair in zip(self.is_member, self.scores, strict=True)])

    def accuracies(self) -> np.ndarray:
        """Share of samples of each target model whose side the sign of the score gives correctly, `[N]`."""
        return np.mean((self.scores > 0) == self.is_member, axis=1)

    def curve(self, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates over the samples of all targets together, or of some."""
        rows = slice(None) if targets is None else targets
        false_positives, true_positives, _ = sklearn.metrics.roc_curve(
            self.is_member[rows].ravel(), self.scores[rows].ravel(), drop_intermediate=False
        )
        return false_positives, true_positives

    def true_positives_at_low_false_positives(self, targets: np.ndarray | None = None) -> float:
        """The largest true positive rate at a false positive rate of at most 1 %."""
        false_positives, true_positives = self.curve(targets)
        return float(true_positives[false_positives <= _LOW_FPR].max())


def likelihood_attack(phi: np.ndarray, is_member: np.ndarray) -> LikelihoodAttack:
    """U-LiRA: is each sample's confidence that of models that unlearned it, or of models that never saw it?

    For each sample, a Gaussian is fitted to each side, with its own mean and a variance shared by all samples of a side (as
    in LiRA with few models). A target is attacked with the models outside its pair, so that both sides always have the same
    number of models; leaving out only the target would give a score that reveals its side (Hayes et al.,
    arXiv:2403.01218; Kurmanji et al., arXiv:2302.09880).

    Args:
        phi: `[N, n]` `log_odds` of each sample under each model.
        is_member: `[N, n]` bool, as returned by `shadow_members`: True if the model unlearned the sample, False if it never
            saw it.

    Raises:
        ValueError: if there are fewer than 6 models, pairs do not split the samples, or a value is not finite.
    """
    n_models = len(phi)
    if n_models < 2 * (_FEWEST_A_SIDE + 1):
        raise ValueError(f"there are {n_models} shadow models, but the likelihood-ratio attack needs 6 or more")
    if n_models % 2:
        raise ValueError(f"shadow models come in pairs, but there are {n_models}")
    if (is_member[::2] == is_member[1::2]).any():
        raise ValueError("the two models of a pair must divide the samples between them")
    if not np.isfinite(phi).all():
        raise ValueError("log-odds are not all finite (the true class is masked), so no Gaussian fits them")
    scores = np.empty_like(phi, dtype=np.float64)
    for target in range(n_models):
        others = np.arange(n_models) // 2 != target // 2
        ratio = np.zeros(phi.shape[1])
        for side, sign in ((True, 1), (False, -1)):
            on_side = is_member[others] == side
            count = on_side.sum(axis=0)
            means = np.where(on_side, phi[others], 0.0).sum(axis=0) / count
            residuals = np.where(on_side, phi[others] - means, 0.0)
            deviation = np.sqrt(np.sum(residuals**2) / np.sum(count - 1))
            ratio += sign * scipy.stats.norm.logpdf(phi[target], means, max(deviation, 1e-6))
        scores[target] = ratio
    return LikelihoodAttack(scores, is_member)
