"""The run of a method: passes over the forget set, the stop rule on validation data, and the guard."""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import jax
import numpy as np

from cujax._ranges import Count, Finite, check_fields
from cujax.data.batches import ImageSet
from cujax.data.requests import Split
from cujax.methods.snapshot import Snapshot
from cujax.methods.stop_rules import (
    AccuracyRule,
    Check,
    LossRule,
    NoRule,
    Observation,
    ProbeRule,
    StopRule,
    rule_that_can_tell,
)
from cujax.model import Model, PyTree, Variables
from cujax.progress import Progress, silent
from cujax.step import UnlearnState
from cujax.training.loop import NOTHING_YET, Cost, Log, NotFiniteError, Phase, Stepper
from cujax.training.predict import accuracy, predict
from cujax.training.resume import NO_RESUME_POINT, Position, ResumePoint

# How many samples of the retain set are used to check accuracy if none are held out.
_RETAINED_SAMPLES = 2000
_NONE_HELD_OUT = "no sample is held out for the stop rule to compare the forget set with"

# How to evaluate a network before a pass, and the shapes of the result.
BeforePass = tuple[Callable[[Variables], tuple[PyTree, Cost]], PyTree]
EndedBy = Literal["stop_rule", "max_passes", "retain_tolerance", "not_finite"]


@dataclass(frozen=True)
class History:
    """The history of a run.

    Attributes:
        checks: The checks before the first pass and after each pass.
        stop_rule: Why the run ended: "stop_rule", "max_passes", "retain_tolerance" or "not_finite".
        stop_reason: The same as a sentence with figures.
        step: The optimiser step whose parameters were returned.
        cost: The cost of the whole run, including checks after the first.
    """

    checks: tuple[Check, ...]
    stop_rule: EndedBy
    stop_reason: str
    step: int
    cost: Cost


@dataclass(frozen=True)
class Unlearned:
    """The result of a method: the model to use from now on (usually the given one), its arrays, and the run's history."""

    model: Model
    params: PyTree
    model_state: PyTree
    history: History

    @property
    def variables(self) -> Variables:
        """Parameters and model state together."""
        return Variables(self.params, self.model_state)


@runtime_checkable
class Method(Protocol):
    """An unlearning method: a frozen dataclass of hyper-parameters that is called on a model, or a plain function.

    Optional attributes, which `cujax.methods.traits` reads:
        check: `check(split)` raises ValueError if the method does not support the request; called before anything is
            computed.
        search_space: The ranges that tuning searches (class attribute); without it there is nothing to tune.
        official: `official(task)`, a class method, returns the published settings for a "class" or for "samples" if they
            differ from the defaults.
        reproduction: Settings, by task, with which the method does here what its paper says (class attribute): those of
            configs/reproductions, which tuning tries after the published ones.
        training: A field whose None stands for the recipe of the original.
        is_reference: True if other methods are compared with this one (class attribute).
    """

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: "Loop") -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Args:
            model: The network.
            original: Its arrays; never changed.
            split: The forget set and the retain set.
            key: The source of all randomness.
            loop: The images and the run: a method passes its passes to `loop.run`, or its single result to `loop.once`.
        """
        ...


def check_fits(method: Method, split: Split, model: Model, like: Variables) -> None:
    """Raises ValueError if the method does not support the request (`check`) or the network (`check_network`).

    Args:
        method: May have `check(split)` and `check_network(model, params, split)`.
        split: The split that the request makes.
        model: The network.
        like: Its arrays, or their shapes and dtypes.
    """
    if (check := getattr(method, "check", None)) is not None:
        check(split)
    if (check_network := getattr(method, "check_network", None)) is not None:
        check_network(model, like.params, split)


@dataclass(frozen=True)
class Loop:
    """What all runs of methods share: the images, when to stop, and where progress and metrics go.

    Parameters and statistics that the model freezes are returned unchanged, whatever a method does to them.

    Two comparisons are fair: all methods end by the same rule, as soon as it is met; or each runs a number of passes that
    was chosen for it beforehand, which does not cut short a method that does harm first and repairs it later. `stop_early`
    chooses between the two, for all methods.

    Attributes:
        images: The training images.
        retain_tolerance: Validation accuracy on the retained classes must not have fallen by more than this.
        progress: Shows progress.
        log: Receives a record (a dict) of each step and check.
        steps_per_call: As in `cujax.training.loop.Stepper`.
        stop_rule: When a run may end before its last pass.
        stop_early: Whether a run ends as soon as the stop rule is met or the tolerance is exceeded. If not, it runs all its
            passes and returns the last state within the tolerance.
        resume_point: Saves the progress of the run; if it has saved progress, the run resumes from there.
    """

    images: ImageSet
    retain_tolerance: Finite = 0.05
    progress: Progress = silent
    log: Log = field(default=lambda record: None)
    steps_per_call: Count | None = None
    stop_rule: StopRule = AccuracyRule()  # noqa: RUF009 - frozen
    stop_early: bool = True
    resume_point: ResumePoint = NO_RESUME_POINT

    def __post_init__(self) -> None:
        check_fields(self)

    def run(
        self,
        model: Model,
        state: UnlearnState,
        phases: Callable[..., Iterable[Phase]],
        split: Split,
        *,
        max_passes: int,
        forgotten_accuracy: float | None,
        rewind: bool = False,
        all_passes: bool = False,
        repairs: bool = False,
        spent: Cost = NOTHING_YET,
        original: Variables | None = None,
        before_pass: BeforePass | None = None,
    ) -> Unlearned:
        """Runs passes until the stop rule is met. The rule is checked after each pass, on validation data.

        Returns the first state that satisfies the rule or, if there is none, the last one within the retain tolerance.

        Args:
            model: The network.
            state: The state before the first step; it is donated.
            phases: The phases of pass 0, 1, ...: `phases(number)`, or with `before_pass`, `phases(number, known)`.
            split: The forget set and the retain set.
            max_passes: The maximum number of passes.
            forgotten_accuracy: Class task: accuracy at which the class counts as forgotten; None for 1 / classes.
            rewind: Run all passes, and return the state within the retain tolerance whose forget accuracy is nearest to
                its target.
            all_passes: Run all passes, whatever `stop_early` says.
            repairs: A pass outside the retain tolerance does not end the run: later passes repair the harm of the first.
            spent: The cost of what was computed before the first step; added to the run's cost.
            original: The arrays that the run is compared with and falls back to, if `state` no longer has them.
            before_pass: Computes what a pass needs to know about the network before it: a function from the arrays to that
                and its cost, and a tree of the same shapes. The result is saved with the progress.
        """
        before = Variables(state.params, state.model_state) if original is None else original
        state = state.with_frozen_of(before, model)
        look, known = before_pass or (None, ())
        kept = self.resume_point.resume({"state": state, "good": Variables(state.params, state.model_state), "known": known})
        if kept is None:
            observed = self._observe(model, before, split, 0, forgotten_accuracy, lowest_target=0.0)
            checks = [_checked(observed, self.stop_rule)]
            stop_rule = rule_that_can_tell(self.stop_rule, observed, class_task=split.is_class_task)
            good, position, cost, checking = Snapshot.of(before, 0), Position(), NOTHING_YET, 0.0
        else:
            tree, record = kept
            state, known, good = tree["state"], tree["known"], Snapshot(record["good_step"], tree["good"])
            checks = [Check(**check) for check in record["checks"]]
            position, cost, checking = Position(**record["position"]), Cost(**record["cost"]), record["checking"]
            named = {"own": self.stop_rule, "loss": LossRule(), "probe": ProbeRule(), "none": NoRule()}
            stop_rule = named[record.get("stop_rule", "own")]
        first, ends_early = checks[0], self.stop_early and not rewind and not all_passes
        stepper = Stepper(self.images, self.log, self.steps_per_call, cost, self.resume_point.due)

        def keep(here: Position, state: UnlearnState, batches: int) -> None:
            record = {
                "position": asdict(replace(here, batches=batches)),
                "cost": asdict(stepper.cost),
                "checks": [asdict(check) for check in checks],
                "checking": checking,
                "good_step": good.step,
                "stop_rule": {LossRule(): "loss", ProbeRule(): "probe", NoRule(): "none"}.get(stop_rule, "own"),
            }
            self.resume_point.keep({"state": state, "good": good.variables, "known": known}, record)

        rule: EndedBy = "max_passes"
        reason = (
            f"all {max_passes} passes were made and the stop rule was not met; raise max_passes, or the learning rate or "
            "weight with which the method forgets"
        )
        if first.target is None:
            reason = f"all {max_passes} passes were made: {_NONE_HELD_OUT}"
        if first.holds:
            reason = (
                f"all {max_passes} passes were made: the stop rule was met before the first step, where it carries no "
                "information"
            )
        with self.progress("unlearning", max_passes) as advance:
            if position.passes:
                advance(position.passes)
            for forget_pass in range(position.passes, max_passes):
                if look is not None and position <= Position(forget_pass):
                    known, looking = look(Variables(state.params, state.model_state))
                    stepper.cost += looking
                try:
                    for number, phase in enumerate(phases(forget_pass, *([known] if look else []))):
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
                observed = self._observe(model, state, split, stepper.steps, forgotten_accuracy, first.target)
                check = _checked(observed, stop_rule)
                checking += time.perf_counter() - started
                checks.append(check)
                advance(
                    1,
                    check.in_words,
                )
                tolerable = self._tolerable(first, check)
                if tolerable and (not rewind or good.step == 0 or check.distance <= good.check(checks).distance):
                    good = Snapshot.of(Variables(state.params, state.model_state), int(state.step))
                if ends_early and ((check.holds and tolerable) or not (tolerable or repairs)):
                    break
        if rule != "not_finite":
            if good.step and good.check(checks).holds:
                rule, reason = "stop_rule", good.check(checks).reason
                if first.holds:
                    reason += f" (already before the first step, {first.reason}, which carries no information)"
            elif not self._tolerable(first, checks[-1]):
                rule, reason = "retain_tolerance", self._not_tolerable(first, checks[-1], good.step)
        cost = spent + stepper.cost + replace(NOTHING_YET, seconds=checking)
        history = History(tuple(checks), rule, reason, good.step, cost)
        return Unlearned(model, good.variables.params, good.variables.model_state, history)

    def once(
        self,
        model: Model,
        original: Variables,
        make: Callable[[], tuple[Variables, Cost]],
        split: Split,
        *,
        forgotten_accuracy: float | None,
        made_model: Model | None = None,
        by_construction: bool = False,
    ) -> Unlearned:
        """Runs a method without passes, with checks before and after as in `run`.

        If the result is outside the retain tolerance or not finite, the original is returned instead.

        Args:
            model: The network.
            original: Its arrays.
            make: Computes the new arrays and their cost.
            split: The forget set and the retain set.
            forgotten_accuracy: As in `run`.
            made_model: The network of the new arrays; by default the same.
            by_construction: Whether the new arrays have never seen the forget set, whatever the checks say.
        """
        made_model = model if made_model is None else made_model
        first = _checked(self._observe(model, original, split, 0, forgotten_accuracy, lowest_target=0.0), self.stop_rule)
        with self.progress("unlearning", 1) as advance:
            try:
                made, cost = make()
                made = made_model.keep_frozen_variables(made, original)
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made.params)):
                    raise NotFiniteError("the new parameters are not finite.", cost)
            except NotFiniteError as error:
                reason = f"{error} The original parameters are kept"
                return Unlearned(model, *original, History((first,), "not_finite", reason, 0, error.cost))
            started = time.perf_counter()
            observed = self._observe(made_model, made, split, cost.steps, forgotten_accuracy, first.target)
            last = _checked(observed, self.stop_rule)
            cost += replace(NOTHING_YET, seconds=time.perf_counter() - started)
            advance(1, last.in_words)
        rule: EndedBy = "max_passes"
        reason = f"the only pass was made: {_NONE_HELD_OUT}"
        if last.target is not None:
            reason = f"accuracy {last.forget_accuracy:.3f} on the forget set is above {last.target:.3f} after the only pass"
        if by_construction:
            rule, reason = "stop_rule", "a new model was trained, without the forget set"
        elif not self._tolerable(first, last):
            reason = self._not_tolerable(first, last, 0)
            return Unlearned(model, *original, History((first, last), "retain_tolerance", reason, 0, cost))
        elif last.holds:
            rule, reason = "stop_rule", last.reason
        return Unlearned(made_model, *made, History((first, last), rule, reason, cost.steps, cost))

    def _tolerable(self, first: Check, check: Check) -> bool:
        return check.retain_accuracy >= first.retain_accuracy - self.retain_tolerance

    def _not_tolerable(self, first: Check, check: Check, kept: int) -> str:
        return (
            f"validation accuracy on retained classes fell from {first.retain_accuracy:.3f} to {check.retain_accuracy:.3f}, "
            f"more than {self.retain_tolerance}; the parameters of step {kept} are kept; lower the learning rate or weight "
            "with which the method forgets (of shortened retraining, raise the share of the epochs)"
        )

    def _observe(
        self,
        model: Model,
        state: UnlearnState | Variables,
        split: Split,
        step: int,
        forgotten_accuracy: float | None,
        lowest_target: float | None,
    ) -> Observation:
        variables = Variables(state.params, state.model_state)
        forget = predict(model, variables, self.images, split.forget.indices)
        validation = predict(model, variables, self.images, split.validation.indices)
        kept = validation.take(~np.isin(validation.labels, split.absent_classes))
        if not len(kept.labels):
            every = -(-len(split.retain) // _RETAINED_SAMPLES)
            kept = predict(model, variables, self.images, split.retain.indices[::every])
        held_out = validation.take(np.isin(validation.labels, forget.labels))
        forget_accuracy, retain_accuracy = accuracy(forget), accuracy(kept)
        held_out_accuracy = accuracy(held_out) if len(held_out.labels) else None
        target: float | None = None
        if split.is_class_task:
            forget_accuracy = max(forget_accuracy, held_out_accuracy or 0.0)
            target = 1 / model.num_classes if forgotten_accuracy is None else forgotten_accuracy
        elif len(validation.labels):
            target = max(retain_accuracy if held_out_accuracy is None else held_out_accuracy, lowest_target or 0.0)
        check = Check(step, forget_accuracy, target, retain_accuracy)
        self.log(check.as_record())
        return Observation(check, forget, held_out, kept)


def _checked(observation: Observation, rule: StopRule) -> Check:
    return replace(observation.check, reason=rule.holds(observation) or "")
