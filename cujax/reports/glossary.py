"""One sentence per term, for the pages: table headings link to them."""

from collections.abc import Iterable

# Key of a column or model: term, sentence.
TERMS = {
    "original": ("original", "The model before unlearning, trained on all training samples."),
    "unlearned": ("unlearned", "The original after the unlearning method was applied to it."),
    "retrained": (
        "retrained",
        "Models trained from scratch without the forget set; unlearning aims to match their behaviour.",
    ),
    "masked": (
        "masked",
        "A control without training: the original, with the forgotten classes masked out of its predictions.",
    ),
    "range": (
        "from retrained",
        "Distance of the unlearned model from the mean of the retrained models, in prediction standard deviations (sd). "
        "For key metrics, also whether the difference is significant at 5 %, by Holm's method over all key metrics.",
    ),
    "damaged": ("damaged", "Accuracy on retained data is more than 1 point below that of retrained models."),
    "not_forgotten": ("not forgotten", "The answers, or an attack on them, still show the forget set."),
    "hidden": (
        "hidden",
        "The model answers like one that never saw the forget set, but its features still show the forget set, or it "
        "relearns the forget set faster.",
    ),
    "over_forgotten": (
        "over-forgotten",
        "A metric differs from the retrained models in the direction away from the original.",
    ),
    "distinguishable": (
        "distinguishable",
        "The model differs from retrained models only in how similar its answers are to theirs.",
    ),
    "no_trace": (
        "no trace found",
        "No key metric distinguishes the model from retrained models, although some would have shown a trace. This is not "
        "proof that nothing is left.",
    ),
    "not_judged": (
        "cannot be judged",
        "No fault was found, but the comparison was too limited to say that there is no trace.",
    ),
    "forget_set": ("forget set", "The training samples that the request asks the model to forget."),
    "retain_set": ("retain set", "All other training samples; the model should still classify them as before."),
    "forget_train_accuracy": ("forget (train)", "Accuracy on the forget set."),
    "forget_test_accuracy": ("forget (test)", "Accuracy on test samples of the forgotten classes."),
    "retain_train_accuracy": ("retain (train)", "Accuracy on the retain set."),
    "retain_test_accuracy": ("retain (test)", "Accuracy on test samples of the retained classes."),
    "mia_loss_auc": (
        "MIA loss AUC",
        "How well the loss separates forget samples from samples that the model was never trained on (membership "
        "inference): 0.5 is chance, 1 is perfect.",
    ),
    "js_to_retrained": (
        "JS to retrained",
        "Jensen-Shannon divergence between the answers of the model and those of retrained models on the forget set; 0 "
        "if they are equal.",
    ),
    "agreement": (
        "agreement",
        "Share of the forget set on which the model and a retrained model predict the same class, mean over retrained "
        "models.",
    ),
    "log_odds_to_retrained": (
        "log odds to retrained",
        "Mean absolute difference, sample by sample, between the log odds of the true class and their mean over retrained "
        "models, on the forget set; 0 if they are equal.",
    ),
    "mean_gap": (
        "mean gap",
        "Mean absolute difference of forget, retain and test accuracy from the mean of the retrained models.",
    ),
    "probe_z": (
        "probe (embedding)",
        "Accuracy on forgotten samples of a linear classifier that is trained on the embeddings of other samples.",
    ),
    "probe_below_z": (
        "probe (below it)",
        "Accuracy on forgotten samples of a linear classifier that is trained on the features of other samples, one "
        "layer below the embedding.",
    ),
    "nearest_class_mean": (
        "nearest mean",
        "Accuracy on forgotten samples of a classifier that picks the nearest class mean of embeddings.",
    ),
    "relearning_steps": (
        "steps to relearn",
        "Training steps on the forget set until the model regains 95 % of the original's accuracy on it; at most 300.",
    ),
    "parameter_change": (
        "parameters moved",
        "Norm of the change of all parameters, relative to their norm before unlearning.",
    ),
    "steps": ("steps", "Optimiser steps."),
    "samples": ("samples", "Training samples processed, counting repetitions."),
    "seconds": ("seconds", "Time that training or unlearning took, without compilation."),
    "gflops": ("GFLOP", "Floating-point operations, in billions."),
    "speed_up": ("speed-up (time)", "How many times faster than retraining."),
    "flops_ratio": ("speed-up (FLOP)", "How many times fewer operations than retraining."),
    "trials": ("trials", "Number of settings that were tried when the method was tuned."),
    "verdict": (
        "verdict",
        "What the answers on the forget set show, including attacks on them and distances to retrained models. With "
        "--audit standard, also what features and relearning show.",
    ),
}


def glossary(keys: Iterable[str], sentences: Iterable[tuple[str, str, str]] = ()) -> dict[str, tuple[str, str]]:
    """Returns terms and sentences by key, for the given keys; `sentences` (key, term, sentence) take precedence."""
    known = TERMS | {key: (term, sentence) for key, term, sentence in sentences}
    return {key: known[key] for key in dict.fromkeys(keys) if key in known}
