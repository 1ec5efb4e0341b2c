"""The run of a method: passes over the forget set, the stop rule on validation data, and the guard."""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.accuracy import accuracy
from cujax.bookmark import NO_BOOKMARK, Bookmark, Position
from cujax.data.batches import ImageSet
from cujax.data.requests import Split
from cujax.inference import predict
from cujax.model import Model, PyTree, Variables
from cujax.progress import Progress, silent
from cujax.step import UnlearnState
from cujax.stepping import NOTHING_YET, Cost, Log, NotFiniteError, Phase, Stepper

StopRule = Literal["forgotten", "max_passes", "retain_tolerance", "not_finite"]


@dataclass(frozen=True)
class Check:
    """What the stop rule saw after a pass; all accuracies are fractions.

    Attributes:
        step: Optimiser steps so far.
        forget_accuracy: Class task: on validation samples of the forgotten classes or on the forget set, whichever is
            higher (a small class has too few validation samples to decide alone). Sample task: on the forget set.
        target: The run ends when `forget_accuracy` is at most this. Sample task: the accuracy on validation samples of
            the same classes, now or before the first step, whichever is higher: a run that harms the model must not
            lower its own bar.
        retain_accuracy: On validation samples of the classes that stay.
    """

    step: int
    forget_accuracy: float
    target: float
    retain_accuracy: float


@dataclass(frozen=True)
class History:
    """How a run went.

    Attributes:
        checks: Before the first pass, and after each.
        stop_rule: Why it ended: "forgotten", "max_passes", "retain_tolerance" or "not_finite".
        stop_reason: The same in a sentence with its figures.
        step: The optimiser step whose parameters were returned.
        cost: What the whole run took, checks after the first included.
    """

    checks: tuple[Check, ...]
    stop_rule: StopRule
    stop_reason: str
    step: int
    cost: Cost


@dataclass(frozen=True)
class Unlearned:
    """What a method returns: the model to use from now on (usually the given one), its arrays, and how it went."""

    model: Model
    params: PyTree
    model_state: PyTree
    history: History

    @property
    def variables(self) -> Variables:
        """The arrays together."""
        return Variables(self.params, self.model_state)


@dataclass(frozen=True)
class Loop:
    """What every run of a method shares: the images, when to stop, and where progress and metrics go.

    Attributes:
        images: The training images.
        retain_tolerance: The run ends when validation accuracy on the classes that stay has fallen by more than this.
        progress: Shows progress.
        log: Takes a record (a dict) of each step and check.
        steps_per_call: As in `cujax.stepping.Stepper`.
        bookmark: Keeps where the run stands; with one that kept something, the run goes on from there.
    """

    images: ImageSet
    retain_tolerance: float = 0.05
    progress: Progress = silent
    log: Log = field(default=lambda record: None)
    steps_per_call: int | None = None
    bookmark: Bookmark = NO_BOOKMARK

    def run(
        self,
        model: Model,
        state: UnlearnState,
        phases: Callable[[int], Iterable[Phase]],
        split: Split,
        *,
        max_passes: int,
        forgotten_accuracy: float | None,
    ) -> Unlearned:
        """Runs passes until the stop rule holds, which is looked at after each, on validation data.

        The state returned is the first that satisfies the rule; if none does, the last one within the retain
        tolerance.

        Args:
            model: The network.
            state: Before the first step; it is used up.
            phases: What pass 0, 1, ... consists of.
            split: What is forgotten and what is retained.
            max_passes: When to end at the latest.
            forgotten_accuracy: Class task: accuracy at which the class counts as forgotten; None for 1 / classes.
        """
        kept = self.bookmark.resume({"state": state, "good": Variables(state.params, state.model_state)})
        if kept is None:
            checks = [self._check(model, state, split, 0, forgotten_accuracy, lowest_target=0.0)]
            good, position, cost, checking = _Snapshot.of(state), Position(), NOTHING_YET, 0.0
        else:
            tree, record = kept
            state, good = tree["state"], _Snapshot(record["good_step"], tree["good"])
            checks = [Check(**check) for check in record["checks"]]
            position, cost, checking = Position(**record["position"]), Cost(**record["cost"]), record["checking"]
        first, started_at = checks[0], checks[0].retain_accuracy
        stepper = Stepper(self.images, self.log, self.steps_per_call, cost, self.bookmark.due)

        def keep(here: Position, state: UnlearnState, batches: int) -> None:
            record = {
                "position": asdict(replace(here, batches=batches)),
                "cost": asdict(stepper.cost),
                "checks": [asdict(check) for check in checks],
                "checking": checking,
                "good_step": good.step,
            }
            self.bookmark.keep({"state": state, "good": good.variables}, record)

        rule: StopRule = "max_passes"
        reason = f"{max_passes} passes were made without forgetting; raise max_passes or unlearn_weight"
        with self.progress("unlearning", max_passes) as advance:
            if position.passes:
                advance(position.passes)
            for forget_pass in range(position.passes, max_passes):
                try:
                    for number, phase in enumerate(phases(forget_pass)):
                        here = Position(forget_pass, number)
                        if here < replace(position, batches=0):
                            continue
                        skip = position.batches if here == replace(position, batches=0) else 0
                        state = stepper.run(state, phase, skip=skip, keep=functools.partial(keep, here))
                except NotFiniteError as error:
                    rule = "not_finite"
                    reason = f"{error} The parameters of step {good.step} are kept; lower the learning rate"
                    break
                started = time.perf_counter()
                check = self._check(model, state, split, stepper.steps, forgotten_accuracy, first.target)
                checking += time.perf_counter() - started
                checks.append(check)
                advance(
                    1,
                    f"forget {check.forget_accuracy:.2f} (to {check.target:.2f}), retain {check.retain_accuracy:.2f}",
                )
                if check.retain_accuracy < started_at - self.retain_tolerance:
                    rule = "retain_tolerance"
                    reason = (
                        f"validation accuracy on what stays fell from {started_at:.3f} to {check.retain_accuracy:.3f}, "
                        f"more than {self.retain_tolerance}; the parameters of step {good.step} are kept; lower the "
                        "learning rate or unlearn_weight"
                    )
                    break
                good = _Snapshot.of(state)
                if check.forget_accuracy <= check.target:
                    rule = "forgotten"
                    reason = f"accuracy {check.forget_accuracy:.3f} on what to forget is at most {check.target:.3f}"
                    break
        cost = replace(stepper.cost, seconds=stepper.cost.seconds + checking)
        history = History(tuple(checks), rule, reason, good.step, cost)
        return Unlearned(model, good.variables.params, good.variables.model_state, history)

    def _check(
        self,
        model: Model,
        state: UnlearnState,
        split: Split,
        step: int,
        forgotten_accuracy: float | None,
        lowest_target: float,
    ) -> Check:
        variables = Variables(state.params, state.model_state)
        validation = predict(model, variables, self.images, split.validation.indices)
        stays = ~np.isin(validation.labels, split.absent_classes)
        forget = predict(model, variables, self.images, split.forget.indices)
        same_classes = validation.take(np.isin(validation.labels, forget.labels))
        forget_accuracy, retain_accuracy = accuracy(forget), accuracy(validation.take(stays))
        held_out_accuracy = accuracy(same_classes) if len(same_classes.labels) else None
        if split.is_class_task:
            forget_accuracy = max(forget_accuracy, held_out_accuracy or 0.0)
            target = 1 / model.num_classes if forgotten_accuracy is None else forgotten_accuracy
        else:
            target = max(retain_accuracy if held_out_accuracy is None else held_out_accuracy, lowest_target)
        check = Check(step, forget_accuracy, target, retain_accuracy)
        figures = asdict(check)
        self.log({"check": figures.pop("step"), **figures})
        return check


@dataclass(frozen=True)
class _Snapshot:
    """A copy of the parameters, which the next donated step cannot delete."""

    step: int
    variables: Variables

    @classmethod
    def of(cls, state: UnlearnState) -> "_Snapshot":
        copies = jax.tree.map(jnp.copy, Variables(state.params, state.model_state))
        return cls(int(state.step), copies)
