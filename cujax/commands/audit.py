"""Examines how well a model has forgotten, compared with models retrained from scratch, and ends with a verdict.

Pass the same --config and flags as for cujax unlearn. Additional flags:

    --level quick       compares it with the run's own retrained models; trains nothing (the default)
    --level standard    compares it with 8 retrained models, the number needed for "no trace found"
    --level full        compares it with 16, and attacks the method with likelihood ratios over 16 shadow models

    --unlearned DIR     audits another unlearned checkpoint of the same split
    --oracles DIR       the folder where all audits of a split store retrained and shadow models (default: runs/oracles)

The report is written to WORKDIR/audit-LEVEL. The estimated time is shown before models are trained. Completed work is kept:
run the same command again to resume an interrupted audit. Exit status 3 if the verdict is not good enough (see --require).
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from etils import epath

from cujax import cli
from cujax.cli import CONFIGS, BadInputError, notify, take_option
from cujax.data.id_lists import is_among
from cujax.experiments.audit import LEVELS, Audit, method_of
from cujax.experiments.jobs import Unit
from cujax.experiments.run import Run
from cujax.experiments.units import audit_units
from cujax.reports.verdict import exit_status
from cujax.storage.checkpoints import Checkpoint, load_checkpoint


def audit(run: Run, level: str, oracles: str, unlearned: str | None) -> int:
    """Examines the models, compares them with retrained models, writes the report, and returns the exit status."""
    from cujax.reports.parts import report_on_parts  # after the flags: pictures are slow to import

    try:
        work = Audit(run, level, epath.Path(oracles).expanduser())
    except ValueError as error:
        raise BadInputError(str(error)) from error
    missing = _missing(run, level, unlearned)
    if missing:
        raise BadInputError(
            f"{run.workdir} has no complete {', '.join(missing)}; create it with cujax unlearn and the same flags."
        )
    directory = run.workdir / f"audit-{level}"
    if unlearned is None:
        audited = run.unlearned()
    else:
        audited = _checked(run, unlearned)
        directory = run.workdir / f"audit-{level}-{audited.digest[:12]}"
    path = run.unlearned_path if unlearned is None else epath.Path(unlearned).expanduser()
    report = report_on_parts(
        run,
        run.original(),
        audited,
        directory,
        audit=lambda part: replace(work, run=part),
        method=method_of(audited),
        unlearned_path=path,
    )
    return exit_status(report["verdict"], run.experiment.require)


def _missing(run: Run, level: str, unlearned: str | None) -> list[str]:
    """The models of the run that the audit needs and that do not exist."""
    return [name for name in run.missing(unlearned=unlearned is None) if level == "quick" or "retrained" not in name]


def units(run: Run, level: str, oracles: str, unlearned: str | None) -> list[Unit]:
    """The models that the audit trains; none if something is wrong, which `audit` then reports."""
    if level not in LEVELS or _missing(run, level, unlearned):
        return []
    method = method_of(run.unlearned() if unlearned is None else _checked(run, unlearned))
    folder = epath.Path(oracles).expanduser()
    return list(itertools.chain(*(audit_units(Audit(part, level, folder), method) for part in run.parts())))


def _checked(run: Run, path: str) -> Checkpoint:
    unlearned = load_checkpoint(path, like=run.like)
    metadata = unlearned.metadata
    if not is_among(run.split.forget.ids, metadata.forgotten_ids).all():
        raise BadInputError(
            f"{path} has forgotten other samples (digest {metadata.forgotten_digest[:12]}) than this configuration names "
            f"({run.split.digest[:12]}); give the configuration that it was made with."
        )
    return unlearned


def main(arguments: Sequence[str]) -> int:
    """Reads its own options, passes the rest of the command line to `cujax.cli.main`, and returns the exit status."""
    try:
        unlearned, rest = take_option(arguments, "--unlearned")
        level, rest = take_option(rest, "--level")
        folder, rest = take_option(rest, "--oracles")
    except ValueError as error:
        notify(f"error: {error}")
        return 2
    folder = folder or "runs/oracles"
    level = level or "quick"
    return cli.main(
        partial(audit, level=level, oracles=folder, unlearned=unlearned),
        configs=CONFIGS,
        description=__doc__,
        arguments=rest,
        also_kept_in=[folder],
        command=["audit", f"--level={level}", f"--oracles={folder}", *([f"--unlearned={unlearned}"] if unlearned else [])],
        units=partial(units, level=level, oracles=folder, unlearned=unlearned),
    )
