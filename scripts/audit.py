"""Audits a run that scripts/unlearn.py made, without training anything again: accuracies, membership inference, distances.

Give the run's own --config and flags. With --unlearned DIR another unlearned checkpoint of the same split is audited
instead, and its report goes to WORKDIR/audit-DIGEST.
"""

import sys
from functools import partial
from pathlib import Path

from cujax.checkpoints import load_checkpoint
from cujax.cli import BadInputError, main, take_option
from cujax.model import abstract_variables
from cujax.report import report_on
from cujax.run import Run


def audit(run: Run, checkpoint: str | None) -> None:
    """Loads the models and writes the report anew; `checkpoint` takes the place of the run's own unlearned model."""
    missing = run.missing(unlearned=checkpoint is None)
    if missing:
        raise BadInputError(
            f"{run.workdir} has no complete {', '.join(missing)}; make it with scripts/unlearn.py and the same flags."
        )
    if checkpoint is None:
        report_on(run, run.original(), run.retrained(), run.unlearned(), run.workdir)
        return
    like = abstract_variables(run.model, run.source.train.images.shape[1:])
    unlearned = load_checkpoint(checkpoint, like=like)
    metadata = unlearned.metadata
    if not set(run.split.forget.ids.tolist()) <= set(metadata.forgotten_ids):
        raise BadInputError(
            f"{checkpoint} forgot other samples (digest {metadata.forgotten_digest[:12]}) than this configuration names "
            f"({run.split.digest[:12]}); give the configuration it was made with."
        )
    report_on(run, run.original(), run.retrained(), unlearned, run.workdir / f"audit-{unlearned.digest[:12]}")


if __name__ == "__main__":
    chosen, others = take_option(sys.argv[1:], "--unlearned")
    configs = Path(__file__).parents[1] / "configs"
    sys.exit(main(partial(audit, checkpoint=chosen), configs=configs, description=__doc__, arguments=others))
