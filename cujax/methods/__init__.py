"""One file a method: a frozen dataclass of its hyper-parameters, called on a model to make it forget."""

import importlib.metadata

from cujax.methods.bad_teacher import BadTeacher
from cujax.methods.boundary import BoundaryExpand, BoundaryShrink
from cujax.methods.co_un import CoUn
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.deep_contrastive import DeepContrastiveUnlearning
from cujax.methods.delete import Delete
from cujax.methods.fine_tune import FineTune
from cujax.methods.fisher import FisherForgetting
from cujax.methods.gradient_ascent import GradientAscent
from cujax.methods.influence import InfluenceUnlearning
from cujax.methods.l1_sparse import L1Sparse
from cujax.methods.l_codec import LCodec
from cujax.methods.last_layers import CatastrophicForgetLastK, ExactUnlearnLastK
from cujax.methods.layer_negation import LayerNegation
from cujax.methods.mask_logit import MaskLogit
from cujax.methods.neg_grad_plus import NegGradPlus
from cujax.methods.random_labels import RandomLabels
from cujax.methods.retrain import Retrain
from cujax.methods.salun import SalUn
from cujax.methods.scrub import Scrub
from cujax.methods.selective_synaptic_dampening import SelectiveSynapticDampening
from cujax.methods.unsir import Unsir
from cujax.unlearning import Method

# The methods of this package, by the name that the command line gives them.
METHODS: dict[str, type[Method]] = {
    "bad_teacher": BadTeacher,
    "boundary_expand": BoundaryExpand,
    "boundary_shrink": BoundaryShrink,
    "catastrophic_forget_last_k": CatastrophicForgetLastK,
    "co_un": CoUn,
    "contrastive": ContrastiveUnlearning,
    "deep_contrastive": DeepContrastiveUnlearning,
    "delete": Delete,
    "exact_unlearn_last_k": ExactUnlearnLastK,
    "fine_tune": FineTune,
    "fisher_forgetting": FisherForgetting,
    "gradient_ascent": GradientAscent,
    "influence_unlearning": InfluenceUnlearning,
    "l1_sparse": L1Sparse,
    "l_codec": LCodec,
    "layer_negation": LayerNegation,
    "mask_logit": MaskLogit,
    "neg_grad_plus": NegGradPlus,
    "random_labels": RandomLabels,
    "retrain": Retrain,
    "salun": SalUn,
    "scrub": Scrub,
    "selective_synaptic_dampening": SelectiveSynapticDampening,
    "unsir": Unsir,
}

ENTRY_POINTS = "cujax.methods"


def method_names() -> list[str]:
    """The names of all methods: of this package, and of others that registered some (entry points `cujax.methods`)."""
    others = importlib.metadata.entry_points(group=ENTRY_POINTS).names
    return sorted(METHODS.keys() | others)


def find_method(name: str) -> type[Method]:
    """The method of this name. A name of this package cannot be taken by another.

    Raises:
        ValueError: if there is none (the message lists those that there are), or it cannot be loaded.
    """
    if name in METHODS:
        return METHODS[name]
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        try:
            return entry_point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"method {name!r} is registered as {entry_point.value}, which cannot be loaded: {error}"
            ) from error
    raise ValueError(f"method {name!r} does not exist; choose one of {', '.join(method_names())}.")


__all__ = [
    "METHODS",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "CatastrophicForgetLastK",
    "CoUn",
    "ContrastiveUnlearning",
    "DeepContrastiveUnlearning",
    "Delete",
    "ExactUnlearnLastK",
    "FineTune",
    "FisherForgetting",
    "GradientAscent",
    "InfluenceUnlearning",
    "L1Sparse",
    "LCodec",
    "LayerNegation",
    "MaskLogit",
    "NegGradPlus",
    "RandomLabels",
    "Retrain",
    "SalUn",
    "Scrub",
    "SelectiveSynapticDampening",
    "Unsir",
    "find_method",
    "method_names",
]
