"""Contrastive machine unlearning in JAX: make a trained classifier forget, and measure how well it did.

What is public, by name. Importing this starts no device and loads no data, checkpoint or plotting library.
"""

from cujax.adapters import from_function, from_linen, from_nnx
from cujax.batch import Batch, Examples, IndexBatch, Rows
from cujax.data.batches import gather, paired_batches
from cujax.data.images import Data
from cujax.data.requests import (
    ForgetClass,
    ForgetClasses,
    ForgetIds,
    ForgetRandom,
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
    load_checkpoint,
    save_checkpoint,
)
from cujax.storage.exports import export_weights
from cujax.storage.imports import import_checkpoint, read_import
from cujax.storage.lineage import describe_lineage

__all__ = [
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
    "ForgetWhere",
    "IndexBatch",
    "Loop",
    "Metadata",
    "Model",
    "Outputs",
    "Rows",
    "Split",
    "UnlearnState",
    "Unlearned",
    "Variables",
    "abstract_variables",
    "compute_embeddings",
    "contrastive_unlearning_loss",
    "describe_lineage",
    "export_weights",
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
    "read_import",
    "save_checkpoint",
    "unlearn_step",
]
