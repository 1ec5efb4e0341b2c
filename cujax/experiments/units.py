"""The models of one run, and those that audits share, as units that processes can divide."""

from collections.abc import Callable
from functools import partial

from cujax.experiments.audit import LEVELS, Audit
from cujax.experiments.jobs import Unit
from cujax.experiments.model_store import ModelStore
from cujax.experiments.run import Run
from cujax.methods.base import Method


def run_units(run: Run, *, unlearned: bool) -> list[Unit]:
    """The original (if it is not given), the retrained models, and the unlearned model."""
    store = run.store
    original = () if run.given_original is not None else (_unit(store, "original", run.original),)
    retrained = [_unit(store, f"retrained_{n}", partial(run.retrained_model, n)) for n in range(run.experiment.retrained)]
    return [*original, *retrained, *([_unit(store, "unlearned", run.unlearned, original)] if unlearned else [])]


def audit_units(audit: Audit | None, method: Method | None) -> list[Unit]:
    """The models that an audit trains in addition to those of the run; none if it uses the run's own."""
    if audit is None or audit.takes_own:
        return []
    references, level = audit.references, LEVELS[audit.level]
    units = [
        _unit(references.store, f"retrained_{n}", partial(references.retrained_model, n)) for n in range(level.retrained)
    ]
    for number in range(level.shadows):
        trained = partial(references.shadow, number, level.shadows)
        shadow = _unit(references.store, f"shadow_{number}", trained)
        units.append(shadow)
        if method is not None and references.members(level.shadows)[number].any():
            unlearn = partial(references.unlearned_shadow, method, number, level.shadows)
            units.append(_unit(references.unlearned_store(method), f"shadow_{number}", unlearn, (shadow,)))
    return units


def _unit(store: ModelStore, name: str, compute: Callable[[], object], needs: tuple[Unit, ...] = ()) -> Unit:
    return Unit(f"{store.directory.name}/{name}", store.directory, name, partial(store.has, name), compute, needs)
