"""Handwritten digits (8x8, scikit-learn's own), class 5: settings to reproduce each method, on three seeds.

    uv run scripts/reproduce.py --config digits_class

Each method runs all its passes, as in its authors' code; no stop rule ends it. Settings were tried by hand, on
validation data of seed 0. For the results, see docs/results/reproductions.md. The forget set has 131 samples, so
batches are small and there are many passes.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.experiments.reproductions import Reproduction
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    forget=ForgetClass(5),
    stop_early=False,
    workdir="runs/reproductions/digits_class",
)

REPRODUCTIONS: dict[str, Reproduction] = {
    "l1_sparse": Reproduction(),
    "fine_tune": Reproduction(),
    "catastrophic_forget_last_k": Reproduction(),
    "co_un": Reproduction(),
    "gradient_ascent": Reproduction(
        settings={"optimizer": "adamw", "learning_rate": 3e-4, "batch_size": 64, "max_passes": 8},
        tried="SGD at .01: beyond the guard after 3 passes.",
    ),
    "influence_unlearning": Reproduction(settings={"alpha": 20.0}, tried="One setting was tried."),
    "fisher_forgetting": Reproduction(settings={"alpha": 1e-6}, tried="One setting was tried."),
    "boundary_expand": Reproduction(
        settings={"optimizer": "adamw", "learning_rate": 1e-3, "max_passes": 3},
        tried="10 passes: a fifth of the class still in the answers, on data of the search, and more harm.",
    ),
    "exact_unlearn_last_k": Reproduction(settings={"learning_rate": 0.1, "last_layers": 1, "max_passes": 8}),
    "neg_grad_plus": Reproduction(settings={"learning_rate": 0.02, "batch_size": 64, "max_passes": 6}),
    "random_labels": Reproduction(settings={"batch_size": 64, "max_passes": 8}),
    "salun": Reproduction(settings={"batch_size": 64, "max_passes": 8}),
    "deep_contrastive": Reproduction(settings={}, tried="One setting was tried."),
    "contrastive": Reproduction(
        settings={"optimizer_name": "adamw", "learning_rate": 2e-3, "unlearn_weight": 1.0, "max_passes": 5}
    ),
    "scrub": Reproduction(
        settings={
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "gamma": 1.0,
            "alpha": 0.1,
            "max_steps": 5,
            "max_passes": 8,
            "batch_size": 64,
            "forget_batch_size": 32,
        }
    ),
    "bad_teacher": Reproduction(
        settings={"learning_rate": 2e-3, "retain_share": 1.0, "batch_size": 64, "max_passes": 8},
        tried="One setting was tried.",
    ),
    "delete": Reproduction(
        settings={"learning_rate": 0.03, "batch_size": 64, "max_passes": 12}, tried="One setting was tried."
    ),
    "unsir": Reproduction(settings={"batch_size": 64}, tried="One setting was tried."),
    "selective_synaptic_dampening": Reproduction(settings={"dampening": 0.1, "batch_size": 16}),
    "boundary_shrink": Reproduction(settings={"learning_rate": 0.003, "max_passes": 20}, tried="One setting was tried."),
    "layer_negation": Reproduction(settings={"learning_rate": 0.2, "max_passes": 15}, tried="One setting was tried."),
    "l_codec": Reproduction(settings={"perturbations": 300}),
}
