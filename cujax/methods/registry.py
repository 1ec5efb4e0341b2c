"""The methods by name: those of this package, and those that other packages register (entry points `cujax.methods`)."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from cujax.methods.bad_teacher import BadTeacher
from cujax.methods.base import Method
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
from cujax.methods.margin_matching import MarginMatching
from cujax.methods.mask_logit import MaskLogit
from cujax.methods.munba import Munba
from cujax.methods.neg_grad_plus import NegGradPlus
from cujax.methods.random_labels import RandomLabels
from cujax.methods.retrain import Retrain, RetrainShort
from cujax.methods.salun import SalUn
from cujax.methods.scrub import Scrub
from cujax.methods.selective_synaptic_dampening import SelectiveSynapticDampening
from cujax.methods.shrink_perturb import ShrinkPerturb
from cujax.methods.traits import is_reference
from cujax.methods.undo import Undo
from cujax.methods.unsir import Unsir
from cujax.registry import Registry

# The methods of this package, by their names on the command line.
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
    "margin_matching": MarginMatching,
    "mask_logit": MaskLogit,
    "munba": Munba,
    "neg_grad_plus": NegGradPlus,
    "random_labels": RandomLabels,
    "retrain": Retrain,
    "retrain_short": RetrainShort,
    "salun": SalUn,
    "scrub": Scrub,
    "selective_synaptic_dampening": SelectiveSynapticDampening,
    "shrink_perturb": ShrinkPerturb,
    "undo": Undo,
    "unsir": Unsir,
}


_REGISTRY: Registry[type[Method]] = Registry("method", "cujax.methods", METHODS)


def method_names() -> list[str]:
    """The names of all methods, of this package and of others that register some (entry points `cujax.methods`)."""
    return _REGISTRY.names()


def find_method(name: str) -> type[Method]:
    """Returns the method with this name. Other packages cannot use names of this package.

    Raises:
        ValueError: if there is none (the message lists the existing methods), or it cannot be loaded.
    """
    return _REGISTRY.find(name)


def chosen_methods(names: Sequence[str]) -> dict[str, type[Method]]:
    """Returns the methods with these names; by default all, except references, with which the others are compared.

    Raises:
        ValueError: if one does not exist.
    """
    found = {name: find_method(name) for name in names or method_names()}
    return {name: kind for name, kind in found.items() if not is_reference(kind)}


def make_method(kind: type[Method], name: str, settings: Mapping[str, Any]) -> Method:
    """Returns the method with the given settings.

    Raises:
        ValueError: if it has no such setting, or a value is invalid.
    """
    known = {item.name for item in fields(cast(Any, kind))}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(f"method {name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"method {name} cannot be created with the settings {dict(settings)}: {error}") from error
