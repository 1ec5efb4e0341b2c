"""Audits a run that scripts/unlearn.py made, without training anything again: accuracies, membership inference, distances.

Give the run's own --config and flags. With --unlearned DIR another unlearned checkpoint of the same split is audited
instead, and its report goes to WORKDIR/audit-DIGEST.
"""

import sys
from functools import partial
from pathlib import Path

from cujax.checkpoints import load_checkpoint
from cujax.cli import main, take_option
from cujax.data.requests import ids_digest
from cujax.experiment import Run
from cujax.model import abstract_variables
from cujax.report import report_on


def audit(run: Run, checkpoint: str | None) -> None:
    """Loads the models and writes the report anew; `checkpoint` takes the place of the run's own unlearned model."""
    missing = run.missing(unlearned=checkpoint is None)
    if missing:
        raise FileNotFoundError(
            f"{run.workdir} has no complete {', '.join(missing)}; make it with scripts/unlearn.py and the same flags."
        )
    if checkpoint is None:
        report_on(run, run.original(), run.retrained(), run.unlearned(), run.workdir)
        return
    like = abstract_variables(run.model, run.source.train.images.shape[1:])
    unlearned = load_checkpoint(checkpoint, like=like)
    forgotten = set(unlearned.metadata.forgotten_ids)
    if not set(run.split.forget.ids.tolist()) <= forgotten:
        raise ValueError(
            f"{checkpoint} forgot other samples (digest {ids_digest(forgotten)[:12]}) than this configuration names "
            f"({run.split.digest[:12]}); give the configuration it was made with."
        )
    report_on(run, run.original(), run.retrained(), unlearned, run.workdir / f"audit-{unlearned.digest[:12]}")


if __name__ == "__main__":
    chosen, others = take_option(sys.argv[1:], "--unlearned")
    configs = Path(__file__).parents[1] / "configs"
    sys.exit(main(partial(audit, checkpoint=chosen), configs=configs, description=__doc__, arguments=others))
