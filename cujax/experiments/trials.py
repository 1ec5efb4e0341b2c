"""The trials of one method: which settings are tried, for how long and on which originals, and which are the best.

Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): all settings run for a third of their passes, the best third
of them for all passes, and the best three of those also for all passes from the originals of other seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import scipy

from cujax.methods.base import Method
from cujax.methods.search_space import SearchSpace, places_of, settings_at
from cujax.methods.traits import published_settings, reproduction_settings

ObjectiveName = Literal["accuracy", "features"]
_KEPT = 3  # one setting in so many is tried in full, with as many times the passes
_FINALISTS = 3


class Objective(NamedTuple):
    """Defines which setting is best.

    Attributes:
        tolerance: By how much validation accuracy on retained data may fall.
        rule: What should be small among settings within the tolerance, in words.
    """

    tolerance: float
    rule: str

    @property
    def in_words(self) -> str:
        """The whole rule."""
        return (
            f"Admissible: validation accuracy on retained data within {self.tolerance} of the original's. Among those, "
            f"{self.rule}; then the smallest fall on retained data, then the fewest steps."
        )


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "accuracy": Objective(
        0.02,
        "for classes the lowest validation accuracy on them, for samples the smallest difference between the accuracy on "
        "them and on validation samples",
    ),
    "features": Objective(
        0.01,
        "the smallest sum of three: the accuracy that is to be small; how far the area under the ROC curve of the loss, "
        "forget samples against validation samples of their classes, lies from 0.5; and what probes find, mean over depths "
        "(classes: how much more often than from untrained networks they recognise it; samples: the difference between "
        "their accuracy on them and on validation samples)",
    ),
}


@dataclass(frozen=True)
class Trial:
    """The result of some settings on validation data.

    Attributes:
        settings: The settings that were tried.
        forget_accuracy: Accuracy on the forget set.
        validation_forget_accuracy: Accuracy on validation samples of the forget set's classes.
        retain_drop: By how much validation accuracy on retained data fell.
        unforgotten: The value to minimise: for classes, `validation_forget_accuracy`; for samples, its distance from
            `forget_accuracy`, on either side; plus the sum of `traces`.
        steps: Optimiser steps.
        seconds: The time it took.
        stop_rule: Why it ended.
        tolerance: By how much the objective lets accuracy on retained data fall.
        traces: The result of `cujax.audit.traces.Traces`; empty if only accuracy counts.
        failed: Why the trial failed; "" if it did not fail.
        seed: Seed of the original and of the method.
        share: Share of the passes in the settings.
        flops: Floating-point operations as counted by the compiler; None if it does not count them.
    """

    settings: dict[str, Any]
    forget_accuracy: float
    validation_forget_accuracy: float
    retain_drop: float
    unforgotten: float
    steps: int
    seconds: float
    stop_rule: str
    tolerance: float = OBJECTIVES["accuracy"].tolerance
    traces: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""
    seed: int = 0
    share: float = 1.0
    flops: float | None = None

    @classmethod
    def failure(cls, settings: dict[str, Any], reason: str, **where: Any) -> Self:
        """A trial that failed: the worst in everything."""
        return cls(settings, 1.0, 1.0, 1.0, 1.0, 0, 0.0, "failed", failed=reason, **where)

    @property
    def is_admissible(self) -> bool:
        """Whether retained data was kept."""
        return not self.failed and self.retain_drop <= self.tolerance + 1e-9

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """The rank of the trial; smaller is better.

        Small validation sets tie often: without the third value, the most brittle setting would win.
        """
        shortfall = 0.0 if self.is_admissible else self.retain_drop
        return shortfall, self.unforgotten, max(self.retain_drop, 0.0), self.steps


def tried_first(kind: type[Method], task: Literal["class", "samples"]) -> list[dict[str, Any]]:
    """The settings of the first trials: the published ones, then those of the method's reproduction, if it has any."""
    published, reproduction = published_settings(kind, task), reproduction_settings(kind, task)
    return [published] if reproduction in (None, published) else [published, dict(reproduction)]


def draw(space: SearchSpace, earlier: Sequence[Trial], *, sampler: str, seed: int, number: int) -> dict[str, Any]:
    """The settings of trial `number`, given earlier trials: the same whether or not tuning was interrupted.

    Args:
        space: The ranges.
        earlier: The earlier trials that drew from them.
        sampler: "halton" or "tpe".
        seed: Seed of the draw.
        number: Number of the trial, from 0.
    """
    if sampler == "halton":
        points = scipy.stats.qmc.Halton(len(space), rng=np.random.default_rng(seed)).random(number + 1)
        return settings_at(space, dict(zip(space, map(float, points[-1]), strict=True)))
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna sees where in its range a value lies, and one figure to minimise.
    places: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in space
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=4))
    for trial in earlier:
        shortfall, unforgotten, drop, steps = trial.rank
        params = places_of(space, trial.settings)
        value = 10 * shortfall + unforgotten + 1e-2 * drop + 1e-7 * steps
        study.add_trial(optuna.trial.create_trial(params=params, distributions=places, value=value))
    params = study.ask(places).params
    return settings_at(space, {name: min(place, math.nextafter(1, 0)) for name, place in params.items()})


def shortened(method: Method, share: float) -> Method:
    """The method with a share of its passes, rounded up; unchanged if it has only one pass, or none."""
    passes = {name: getattr(method, name) for name in ("max_passes", "max_steps") if hasattr(method, name)}
    fewer = {name: math.ceil(share * number) for name, number in passes.items()}
    return method if fewer == passes else cast(Method, replace(cast(Any, method), **fewer))


def rank_over_seeds(trials: Sequence[Trial]) -> tuple[float, float, float, float]:
    """The rank over seeds; smaller is better. The worst seed decides, so that brittle settings lose."""
    shortfall, unforgotten, drop, steps = zip(*(trial.rank for trial in trials), strict=True)
    return max(shortfall), max(unforgotten), float(np.mean(drop)), float(np.mean(steps))


class Chosen(NamedTuple):
    """The outcome of the trials of one method.

    Attributes:
        settings: The best settings.
        trials: All trials, in the order of the plan.
        over_seeds: The full trials of the best settings, one per seed.
    """

    settings: dict[str, Any]
    trials: list[Trial]
    over_seeds: list[Trial]

    @property
    def is_admissible(self) -> bool:
        """Whether retained data was kept with every seed."""
        return all(trial.is_admissible for trial in self.over_seeds)


def halve(
    settings: Callable[[Sequence[Trial], int], dict[str, Any]],
    attempt: Callable[[dict[str, Any], float, int], Trial],
    *,
    number: int,
    always: int,
    seeds: Sequence[int],
) -> Chosen:
    """Tries settings by successive halving.

    Args:
        settings: `settings(earlier, k)` returns the settings of trial k, given the short trials before it.
        attempt: `attempt(settings, share, seed)` runs a trial, or returns one that was run earlier.
        number: The number of settings.
        always: The number of settings, from the first, that are tried in full, whatever their short trials gave.
        seeds: Seeds; the first is used for all trials, all of them for the finalists.
    """
    short: list[Trial] = []
    for k in range(number):
        short.append(attempt(settings(short, k), 1 / _KEPT, seeds[0]))
    by_rank = sorted(range(number), key=lambda k: short[k].rank)
    promoted = sorted({*range(min(always, number)), *by_rank[: math.ceil(number / _KEPT)]})
    full = [attempt(short[k].settings, 1.0, seeds[0]) for k in promoted]
    finalists = sorted(full, key=lambda trial: trial.rank)[:_FINALISTS]
    over_seeds = [[first, *(attempt(first.settings, 1.0, seed) for seed in seeds[1:])] for first in finalists]
    best = min(over_seeds, key=rank_over_seeds)
    tried = [*short, *full, *(trial for trials in over_seeds for trial in trials[1:])]
    unique = {(str(trial.settings), trial.share, trial.seed): trial for trial in tried}
    return Chosen(best[0].settings, list(unique.values()), best)
