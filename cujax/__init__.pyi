from .adapters import (
    from_function,
    from_linen,
    from_nnx,
)
from .batch import (
    Batch,
    Examples,
    IndexBatch,
    Rows,
)
from .data.batches import (
    gather,
    paired_batches,
)
from .data.images import (
    Data,
)
from .data.requests import (
    ForgetClass,
    ForgetClasses,
    ForgetIds,
    ForgetRandom,
    ForgetSubject,
    ForgetWhere,
    Split,
    make_split,
)
from .data.sources import (
    load_source,
)
from .losses import (
    contrastive_unlearning_loss,
)
from .methods.base import (
    Loop,
    Unlearned,
)
from .methods.contrastive import (
    ContrastiveUnlearning,
)
from .model import (
    Model,
    Outputs,
    Variables,
    abstract_variables,
    compute_embeddings,
)
from .one_call.calls import (
    AuditReport,
    UnlearnResult,
    audit_model,
    unlearn,
)
from .step import (
    UnlearnState,
    make_unlearn_step,
    pmap_unlearn_step,
    unlearn_loss,
    unlearn_step,
)
from .storage.checkpoints import (
    Checkpoint,
    CheckpointError,
    Metadata,
    load_checkpoint,
    save_checkpoint,
)
from .storage.exports import (
    export_weights,
)
from .storage.imports import (
    import_checkpoint,
    read_import,
)
from .storage.lineage import (
    describe_lineage,
)
from .training.supervised import (
    TrainingRecipe,
)

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
    "unlearn",
    "unlearn_loss",
    "unlearn_step",
]
