"""Class inference: can an attacker tell from a model's answers on a forgotten class that it once knew the class?"""

from collections.abc import Sequence

import lazy_loader
import numpy as np
from scipy.special import softmax

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, area, mean_over_models
from cujax.audit.metric import Metric, MetricContext

# Loaded when first used: importing it takes as long as JAX.
sklearn = lazy_loader.load("sklearn")

_FEWEST = 10


def class_inference(
    logits: np.ndarray,
    reference_logits: Sequence[np.ndarray],
    *,
    original_logits: np.ndarray,
    known_reference_logits: Sequence[np.ndarray],
    forgotten_classes: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the answers of a model and of retrained models, higher if they look like a model that knew the class.

    The attacker is trained on the original, which knew the class, and on retrained models, which never did. It reads the
    renormalised softmax without the forgotten class, whose low probability shows nothing. It then judges models and images
    that it was not trained on. An attack that is trained on the very model it judges would find the model's fingerprint
    instead: it distinguishes even two retrained models.

    Args:
        logits: `[n, C]`, of the model in question on samples of the forgotten classes.
        reference_logits: The same for the retrained models that it is compared with.
        original_logits: The same for the original.
        known_reference_logits: The same for other retrained models.
        forgotten_classes: The classes that are left out.

    Returns:
        `[n / 2]` scores of the model, and `[R, n / 2]` scores of the R retrained models that it is compared with.

    Raises:
        ValueError: if there are fewer than 10 samples, or no retrained model on one of the two sides.
    """
    n = len(logits)
    if n < _FEWEST:
        raise ValueError(f"there are {n} samples, but class inference needs {_FEWEST}")
    if not reference_logits or not known_reference_logits:
        raise ValueError(
            "class inference needs three retrained models, some to train the attacker and others to compare with"
        )
    order = np.random.default_rng(0).permutation(n)
    learned, judged = order[: n // 2], order[n // 2 :]

    def read(answers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return softmax(np.delete(answers[rows].astype(np.float64), list(forgotten_classes), axis=1), axis=1)

    known = np.concatenate([read(answers, learned) for answers in (original_logits, *known_reference_logits)])
    knew = np.repeat([1, 0], [len(learned), len(learned) * len(known_reference_logits)])
    regression = sklearn.linear_model.LogisticRegression(class_weight="balanced", max_iter=1000)
    attack = sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), regression).fit(known, knew)
    references = [attack.decision_function(read(answers, judged)) for answers in reference_logits]
    return attack.decision_function(read(logits, judged)), np.stack(references)


def _class_inference(context: MetricContext, model: Evidence) -> Estimate:
    if not context.split.is_class_task:
        raise NotAvailable("the request is for samples, not classes")
    context.others(model)
    first, second = list(context.retrained[::2]), list(context.retrained[1::2])
    known, held = (second, first) if any(model is reference for reference in first) else (first, second)
    try:
        scores, reference_scores = class_inference(
            model.answers.forget.logits,
            [reference.answers.forget.logits for reference in held if reference is not model],
            original_logits=context.original.answers.forget.logits,
            known_reference_logits=[reference.answers.forget.logits for reference in known],
            forgotten_classes=context.split.forgotten_classes,
        )
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason
    # The mean over models is the area over all rows together; its interval is over models, which rows are not.
    return mean_over_models(np.array([area(scores, own).value for own in reference_scores]), len(scores), within=(0, 1))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metric of this family."""
    del depths
    return [
        Metric(
            "class_inference_auc",
            "class inference",
            "class inference AUC",
            (
                "Do the answers on samples of the forgotten class, apart from that class, look like those of a model that "
                "once knew it? 0.5: no."
            ),
            _class_inference,
        )
    ]
