"""Contrastive machine unlearning in JAX: make a trained classifier forget, and measure how well it did.

What is public, by name. Importing this starts no device and loads no data, checkpoint or plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cujax.adapters import from_function, from_linen, from_nnx
from cujax.batch import Batch, Examples, IndexBatch, Rows
from cujax.data.batches import gather, paired_batches
from cujax.data.images import Data
from cujax.data.requests import (
    ForgetClass,
    ForgetClasses,
    ForgetIds,
    ForgetRandom,
    ForgetSubject,
    ForgetWhere,
    Split,
    make_split,
)
from cujax.data.sources import load_source
from cujax.losses import contrastive_unlearning_loss
from cujax.methods.base import Loop, Unlearned
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.model import Model, Outputs, Variables, abstract_variables, compute_embeddings
from cujax.step import UnlearnState, make_unlearn_step, pmap_unlearn_step, unlearn_step
from cujax.storage.checkpoints import (
    Checkpoint,
    CheckpointError,
    Metadata,
    import_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from cujax.storage.lineage import describe_lineage
from cujax.training.supervised import Training as TrainingRecipe

if TYPE_CHECKING:
    from cujax.one_call.calls import AuditReport, UnlearnResult, audit_model, unlearn

# These load what importing the package does not.
_LATER = dict.fromkeys(("AuditReport", "UnlearnResult", "audit_model", "unlearn"), "cujax.one_call.calls")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AuditReport",
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "ContrastiveUnlearning",
    "Data",
    "Examples",
    "ForgetClass",
    "ForgetClasses",
    "ForgetIds",
    "ForgetRandom",
    "ForgetSubject",
    "ForgetWhere",
    "IndexBatch",
    "Loop",
    "Metadata",
    "Model",
    "Outputs",
    "Rows",
    "Split",
    "TrainingRecipe",
    "UnlearnResult",
    "UnlearnState",
    "Unlearned",
    "Variables",
    "abstract_variables",
    "audit_model",
    "compute_embeddings",
    "contrastive_unlearning_loss",
    "describe_lineage",
    "from_function",
    "from_linen",
    "from_nnx",
    "gather",
    "import_checkpoint",
    "load_checkpoint",
    "load_source",
    "make_split",
    "make_unlearn_step",
    "paired_batches",
    "pmap_unlearn_step",
    "save_checkpoint",
    "unlearn",
    "unlearn_step",
]
