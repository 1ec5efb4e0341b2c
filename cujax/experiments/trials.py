"""Trials of a method's settings: what they gave, which is the best, and which settings come next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy.stats import qmc

from cujax.methods.base import Method
from cujax.methods.search_space import SearchSpace, places_of, settings_at
from cujax.methods.traits import published_settings, reproduction_settings

ObjectiveName = Literal["accuracy", "features"]


class Objective(NamedTuple):
    """What makes a setting the best.

    Attributes:
        tolerance: By how much validation accuracy on retained data may fall.
        rule: What is to be small among settings within it, in words.
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
    """What some settings gave on validation data.

    Attributes:
        settings: The settings that were tried.
        forget_accuracy: On the forget set.
        validation_forget_accuracy: On validation samples of the classes of the forget set.
        retain_drop: By how much validation accuracy on retained data fell.
        unforgotten: What is to be small: classes: `validation_forget_accuracy`; samples: how far `forget_accuracy` is from
            it, on either side; and the sum of `traces`.
        steps: Optimiser steps.
        seconds: What it took.
        stop_rule: Why it ended.
        tolerance: By how much the objective lets accuracy on retained data fall.
        traces: As `cujax.audit.traces.Traces` gives them; none where accuracy is all that counts.
        failed: Why the trial gave nothing; "" if it did not fail.
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

    @classmethod
    def failure(cls, settings: dict[str, Any], reason: str) -> Self:
        """A trial that failed: the worst in everything."""
        return cls(settings, 1.0, 1.0, 1.0, 1.0, 0, 0.0, "failed", failed=reason)

    @property
    def is_admissible(self) -> bool:
        """Whether retained data was kept."""
        return not self.failed and self.retain_drop <= self.tolerance + 1e-9

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """Smaller is better. Small validation sets tie often; without the third, the most brittle setting would win."""
        shortfall = 0.0 if self.is_admissible else self.retain_drop
        return shortfall, self.unforgotten, max(self.retain_drop, 0.0), self.steps


def tried_first(kind: type[Method], task: Literal["class", "samples"]) -> list[dict[str, Any]]:
    """The settings of the first trials: the published ones, then those of the method's reproduction, where it has any."""
    published, reproduction = published_settings(kind, task), reproduction_settings(kind, task)
    return [published] if reproduction in (None, published) else [published, dict(reproduction)]


def draw(space: SearchSpace, earlier: Sequence[Trial], *, sampler: str, seed: int, number: int) -> dict[str, Any]:
    """The settings of trial `number`, from what is known: the same whether or not tuning was interrupted.

    Args:
        space: The ranges.
        earlier: The trials before it that drew from them.
        sampler: "halton" or "tpe".
        seed: Of the draw.
        number: Of the trial, from 0.
    """
    if sampler == "halton":
        points = qmc.Halton(len(space), rng=np.random.default_rng(seed)).random(number + 1)
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
