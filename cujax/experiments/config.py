"""The settings of an experiment as plain data, and the networks and files that they name."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro

from cujax._ranges import Count, CountOrZero, NotNegative, ProportionAboveZero, Seed, check_fields
from cujax.audit.verdict import Word
from cujax.data.held_out import Validation
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, ForgetSubject, ForgetWhere
from cujax.methods.base import Method
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.stop_rules import STOP_RULES
from cujax.training.supervised import Training

AuditLevel = Literal["none", "quick", "standard", "full"]

# The requests as the command line names them: forget:class --forget.label 3.
_Request = (
    Annotated[ForgetClass, tyro.conf.subcommand("class")]
    | Annotated[ForgetClasses, tyro.conf.subcommand("classes")]
    | Annotated[ForgetRandom, tyro.conf.subcommand("random")]
    | Annotated[ForgetIds, tyro.conf.subcommand("ids")]
    | Annotated[ForgetSubject, tyro.conf.subcommand("subject")]
    | Annotated[ForgetWhere, tyro.conf.Suppress]
)

# Who computes: no model, table or report says so.
_NOT_DESCRIBED = {"described": False}


@dataclass(frozen=True)
class Setup:
    """What is computed on, with what, and how: all of an experiment but what to forget and with which method.

    Attributes:
        data: Which images to learn from.
        network: "small_cnn" (for tables, series and other inputs that are no images "mlp" takes its place), "cnn",
            "resnet18" or another of cujax.networks (a wrong name lists them), or your own as PATH.py:FUNCTION, where
            FUNCTION(num_classes) makes a cujax Model.
        dtype: What the networks of cujax compute in; parameters, statistics and losses stay float32. "bfloat16" is
            faster on GPU and TPU, and slower on CPU.
        training: How the original and the retrained models are trained.
        retrained: How many models to retrain from scratch for comparison; 0 for a plain deletion request.
        retain_tolerance: Unlearning ends if validation accuracy on retained data falls by more than this.
        stop_rule: When unlearning may end before its last pass: "accuracy" (on the forget set it is that of held-out
            samples, or of a class never learned), "loss" (samples: it is no lower than that of held-out samples), "none",
            or one that another package registered. One that holds before the first step can tell nothing: then samples go
            on under "loss", and classes take all passes.
        stop_early: Whether unlearning ends as soon as the stop rule holds, or makes all the passes of the method.
        validation: Whether a tenth of each class is held out, which decides when to stop. Leave it out for an original from
            elsewhere that was trained on all images: then whatever it has seen can be forgotten, and a stop rule that needs
            held-out samples cannot hold.
        validation_ids: A file of the ids of the images to hold out instead, such as those that the original from elsewhere
            has not seen: one a line, or a .csv with a column id.
        seed: Of initialisation, order and everything else random.
        workdir: Folder for checkpoints, metrics and the report; gs://BUCKET/FOLDER, too.
        original: Checkpoint to start from, original or unlearned earlier; trained here where not given.
        tensorboard: Also write metrics as TensorBoard events (extra [tensorboard]).
        steps_per_call: At most so many steps in one compiled call; by default 1 on a CPU and 128 on an accelerator.
        profile: Folder for a profile of what is computed, to look at with TensorBoard or at ui.perfetto.dev.
        multihost: Compute together with the other hosts that were given this same command (docs/tpu.md).
        save_seconds: Where an unfinished model stands is saved after so many seconds, beside the computation; None: time
            does not count.
        save_steps: Likewise after so many steps.
        deterministic: On a GPU, use only operations that give the same bits each time; they are slower. On other devices all
            operations do.
        hashed_ids: Keep the SHA-256 of each forgotten id in checkpoints, in place of the id.
        jobs: How many processes of this machine divide the models among them, each with its share of the cores; one where
            not given. Each reads the data, needs memory of its own, and takes some seconds to start (docs/scaling.md).
        worker: Only make models that no other process makes, on this or other machines that share the folder, and end
            without tables and reports: the same command without --worker writes them.
        cluster: Give the models to a Dask cluster, tcp://HOST:PORT of its scheduler (extra [cluster]).
    """

    data: Data = Data()  # noqa: RUF009 - frozen
    network: str = "small_cnn"
    dtype: Literal["float32", "bfloat16"] = "float32"
    training: Training = Training()  # noqa: RUF009 - frozen
    retrained: CountOrZero = 1
    retain_tolerance: ProportionAboveZero = 0.05
    stop_rule: str = field(default="accuracy", metadata={"since": "0.2"})
    stop_early: bool = True
    validation: bool = field(default=True, metadata={"since": "0.2"})
    validation_ids: str | None = field(default=None, metadata={"since": "0.2"})
    seed: Seed = 0
    workdir: str = "runs/experiment"
    original: str | None = None
    tensorboard: bool = False
    steps_per_call: Count | None = None
    profile: str | None = None
    multihost: bool = False
    save_seconds: NotNegative | None = 15.0
    save_steps: Count | None = None
    deterministic: bool = False
    hashed_ids: bool = field(default=False, metadata={"since": "0.2"})
    jobs: Count | None = field(default=None, metadata=_NOT_DESCRIBED)
    worker: bool = field(default=False, metadata=_NOT_DESCRIBED)
    cluster: str | None = field(default=None, metadata=_NOT_DESCRIBED)

    def __post_init__(self) -> None:
        STOP_RULES.find(self.stop_rule)
        check_fields(self)
        if self.validation_ids is not None and not self.validation:
            raise ValueError(f"validation_ids is {self.validation_ids}, but validation is off; give one of the two.")
        for name in ("workdir", "network", "original", "validation_ids", "profile", "cluster"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"{name} is empty; give a value, or leave it out.")
        self._check_who_computes()

    def _check_who_computes(self) -> None:
        """Raises ValueError if several processes are asked for where only one can compute."""
        several = [name for name in ("worker", "cluster") if getattr(self, name)] + ["jobs"] * ((self.jobs or 1) > 1)
        if "cluster" in several and len(several) > 1:
            raise ValueError(f"cluster is {self.cluster}, whose workers compute; leave out --worker and --jobs.")
        for name in ("multihost", "profile"):
            if several and getattr(self, name):
                raise ValueError(f"{name} is of one command that computes alone; leave out --{several[0]}.")

    @property
    def validation_rows(self) -> Validation:
        """Which training images are held out, as `make_split` takes it."""
        return self.validation_ids or ("tenth" if self.validation else "none")

    def shared(self) -> dict[str, Any]:
        """By name, the settings that every kind of setup has."""
        return {item.name: getattr(self, item.name) for item in fields(Setup)}


@dataclass(frozen=True)
class Experiment(Setup):
    """Train a classifier, make it forget, and compare it with models retrained from scratch.

    Attributes:
        forget: What to forget.
        audit: How hard the unlearned model is looked at before the verdict. "quick" and "standard": probes of its features,
            relearning, attacks and distances, compared with the retrained models of the run (--retrained: 8 for "no trace
            found", 5 to name a fault). "full": with 16, and attacks over 16 shadow models. "none": no verdict.
        require: Exit with status 3 if the verdict is worse than this; without it, if the model is not forgotten, damaged or
            unchanged.
        requested_by: Who asked for it; printed on the page.
        ticket: Under which number; likewise.
        method: How to forget it; on the command line method:NAME chooses another than the configuration's.
    """

    audit: AuditLevel = field(default="standard", metadata={"since": "0.2"})
    require: Word | None = field(default=None, metadata={"since": "0.2"})
    requested_by: str = field(default="", metadata={"since": "0.2"})
    ticket: str = field(default="", metadata={"since": "0.2"})
    forget: _Request = ForgetClass()  # noqa: RUF009 - frozen
    method: Method = ContrastiveUnlearning()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.require is not None and self.audit == "none":
            raise ValueError(f"require is {self.require}, but audit is none, which gives no verdict; choose another audit.")
