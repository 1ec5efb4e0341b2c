"""The settings of an experiment as plain data, including the networks and files that they name."""

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

# Settings for which process computes: they are not recorded in models, tables or reports.
_NOT_DESCRIBED = {"described": False}


@dataclass(frozen=True)
class Setup:
    """The settings of an experiment, except for the request and the unlearning method.

    Attributes:
        data: Which images to train on.
        network: The network: "small_cnn" (replaced by "mlp" if the inputs are not images, such as tables and
            series), "cnn", "resnet18" or another network in cujax.networks (an unknown name lists them all); or your own
            network as PATH.py:FUNCTION, where FUNCTION(num_classes) returns a cujax Model.
        dtype: The dtype in which the networks of cujax compute. Parameters, batch statistics and losses stay float32.
            With "bfloat16", GPUs and TPUs are faster, but CPUs are slower.
        training: How the original and the retrained models are trained.
        retrained: How many models to retrain from scratch for comparison. With 0, the request is carried out without a
            comparison.
        retain_tolerance: The largest acceptable fall in validation accuracy on retained data, as a fraction; unlearning ends
            if it is exceeded.
        stop_rule: When unlearning may end before its last pass. With "accuracy", when accuracy on the forget set is as low
            as on held-out samples or, for a class, as low as for a class that was never learned. With "loss" (only for
            samples), when the loss of the forget set is no lower than that of held-out samples. With "none", never. A rule
            that another package registered can be given by name. A rule that is met before the first step carries no
            information: samples then continue under "loss", and classes until the features find at most half of the class's
            validation samples; if that is also met from the start, all passes are run.
        stop_early: Whether unlearning ends as soon as the stop rule is met. If not, it runs all passes of the method.
        validation: Whether to hold out a tenth of each class, to decide when to stop. Turn this off for an imported original
            that was trained on all images. Every image that it has seen can then be forgotten, but a stop rule that needs
            held-out samples is never met.
        validation_ids: A file with the ids of the images to hold out instead, such as images that an imported original has
            not seen. It has one id per line, or is a .csv file with a column named id.
        seed: Seed of the initialisation, the order of the samples, and everything else that is random.
        workdir: Folder for checkpoints, metrics and the report; gs://BUCKET/FOLDER also works.
        original: Checkpoint to start from: an original, or a model that was unlearned earlier. If not given, an original is
            trained.
        tensorboard: Also write metrics as TensorBoard events (needs the extra [tensorboard]).
        steps_per_call: The maximum number of steps in one compiled call; by default 1 on a CPU and 128 on an accelerator.
        models_at_once: How many retrained models are trained together, in one compiled call. By default, one on a CPU, where
            several together are slower; on a single GPU or TPU, as many as fit in its memory (docs/scaling.md).
        profile: Write a profile of the computation to this folder; view it in TensorBoard or at ui.perfetto.dev.
        multihost: Compute together with other hosts that run the same command (docs/tpu.md).
        save_seconds: Save the progress of an unfinished model each time this many seconds have passed, in the background;
            None turns this off.
        save_steps: Save the progress each time this many steps have been made; None turns this off.
        deterministic: On a GPU, use only deterministic operations: the results are equal bit for bit each time, but computed
            more slowly. On other devices, all operations are deterministic.
        hashed_ids: In checkpoints, store the SHA-256 of each forgotten id instead of the id itself.
        jobs: How many processes on this machine divide the models and the cores between them. By default, long work on a CPU
            is divided between its cores, and one process computes anything else (docs/scaling.md).
        worker: Only compute models that no other process is computing, on this machine or on others that share the folder,
            and end without tables and reports. The same command without --worker writes them.
        cluster: Compute the models on a Dask cluster, given by the address of its scheduler, tcp://HOST:PORT (needs the
            extra [cluster]).
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
    models_at_once: Count | None = field(default=None, metadata=_NOT_DESCRIBED)
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
        """Raises ValueError if several processes are requested where only one can compute."""
        several = [name for name in ("worker", "cluster") if getattr(self, name)] + ["jobs"] * ((self.jobs or 1) > 1)
        if "cluster" in several and len(several) > 1:
            raise ValueError(f"cluster is {self.cluster}, so its workers compute everything; leave out --worker and --jobs.")
        if several and (self.models_at_once or 1) > 1:
            raise ValueError(
                f"models_at_once is {self.models_at_once}, but with --{several[0]} each process trains one model at a time; "
                "leave one of them out."
            )
        for name in ("multihost", "profile"):
            if several and getattr(self, name):
                raise ValueError(f"{name} is possible only if this process computes alone; leave out --{several[0]}.")

    @property
    def validation_rows(self) -> Validation:
        """Which training images are held out, in the form that `make_split` takes."""
        return self.validation_ids or ("tenth" if self.validation else "none")

    def shared(self) -> dict[str, Any]:
        """The settings that every kind of setup has, by name."""
        return {item.name: getattr(self, item.name) for item in fields(Setup)}


@dataclass(frozen=True)
class Experiment(Setup):
    """Train a classifier, unlearn, and compare the result with models retrained from scratch.

    Attributes:
        forget: What to forget.
        audit: How thoroughly the unlearned model is examined before the verdict. The levels "quick" and "standard" use
            feature probes, relearning, attacks and distances, and compare the model with the retrained models of the
            run (--retrained: 5 are needed to name a fault, 8 for "no trace found"). The level "full" compares it with 16
            retrained models, and attacks the method over 16 shadow models. With "none", there is no verdict.
        require: Exit with status 3 if the verdict is worse than this. By default, this happens if the verdict is "not
            forgotten" or "damaged", or if the parameters are unchanged.
        requested_by: Who requested the deletion; shown in the report.
        ticket: The ticket number of the request; shown in the report.
        method: The unlearning method. On the command line, method:NAME replaces the method of the configuration.
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
