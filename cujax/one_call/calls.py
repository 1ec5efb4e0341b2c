"""`cujax.unlearn` and `cujax.audit_model`: plain arrays in, plain trees out. No file is read or written."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.findings import Findings
from cujax.audit.verdict import ORDER, Verdict
from cujax.audit.verdict_words import HEADINGS
from cujax.data.batches import DeviceImages, check_augmentation, input_shapes, to_device
from cujax.data.request_kinds import Copies
from cujax.data.requests import Part, Split
from cujax.experiments.case import Candidate, Case
from cujax.experiments.change import is_unchanged
from cujax.experiments.judging import compare_models, verdict_without_retrained
from cujax.methods.base import History, Loop, Method, check_fits
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.mask_logit import MaskedModel
from cujax.methods.stop_rules import STOP_RULES
from cujax.methods.traits import method_name
from cujax.model import Inputs, Model, PyTree, Variables, abstract_outputs
from cujax.one_call.given import checked_pair, checked_rows, gathered, split_of
from cujax.one_call.network import as_model, as_variables, in_form_of
from cujax.progress import Progress, bar, silent
from cujax.training.supervised import Trainer, Training


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """What `cujax.unlearn` gives.

    Attributes:
        variables: The arrays to use from now on, as they were given: a `cujax.Variables`, or a dict of collections
            (`{"params": ..., "batch_stats": ...}`), also for a train state, whose optimiser remembers the forgotten data, or
            an `nnx.State` for `nnx.update`.
        model: The network to use from now on: the given one, unless the method masks logits.
        verdict: What is known without retrained models; of a request for whole classes and for samples of others, the
            worse of both.
        history: How the run went: checks, why it ended, what it cost.
        split: Which rows were forgotten, retained and held out.
        cases: What the models are judged on; one for whole classes and one for samples, where both were asked for.
        original: The model before.
        unlearned: The model after.
    """

    variables: Any
    model: Model
    verdict: Verdict
    history: History
    split: Split
    cases: tuple[Case, ...]
    original: Candidate
    unlearned: Candidate

    def __str__(self) -> str:
        return _in_words(self.verdict, self.history.stop_reason)


@dataclass(frozen=True, eq=False)
class AuditReport:
    """What `cujax.audit_model` gives.

    Attributes:
        verdict: The verdict; of a request for whole classes and for samples of others, the worse of both.
        findings: Every metric with the values of all models, and the verdict: one for each of `UnlearnResult.cases`.
        retrained: The arrays of the models that were compared with, trained now or given.
    """

    verdict: Verdict
    findings: tuple[Findings, ...]
    retrained: tuple[Variables, ...]

    def __str__(self) -> str:
        return _in_words(self.verdict)


def _in_words(verdict: Verdict, *more: str) -> str:
    return "\n".join([f"{HEADINGS[verdict.word]}: {'; '.join(verdict.reasons)}.", *(f"{line}." for line in more)])


def unlearn(
    model_or_module: Any,
    variables: Any,
    inputs: Inputs,
    labels: Any,
    *,
    forget: Any,
    validation: Any = None,
    test: tuple[Inputs, Any] | None = None,
    method: Method | None = None,
    key: jax.Array | None = None,
    embedding: str | None = None,
    subjects: Any = None,
    copies: Copies | None = None,
    stop_rule: str = "accuracy",
    retain_tolerance: float = 0.05,
    progress: bool | None = None,
) -> UnlearnResult:
    """Makes a trained network forget some of the samples that it was trained on.

    Args:
        model_or_module: A `cujax.Model`, a flax.linen module or a flax.nnx module.
        variables: Its trained arrays: a `cujax.Variables`, `{"params": ..., "batch_stats": ...}`, or a train state with
            these as attributes; or an nnx module or its `nnx.state`. They are not changed.
        inputs: The training samples, a pytree of arrays, each `[n, ...]`, exactly as the network takes them: images
            normalised as in training. float64 becomes float32.
        labels: `[n]` integers from 0.
        forget: An int is a class; an array of integers holds row indices; an array of `[n]` booleans is a mask of rows. Or
            a request: `cujax.ForgetClasses((2, 5))`, `cujax.ForgetRandom(count=10)`.
        validation: What the network was not trained on, which shows when to stop. A pair `(inputs, labels)` of further
            samples; row indices or a mask of rows of `inputs`; a fraction of each class of `inputs`, as if it had not been
            seen (right for whole classes alone; it warns for samples). None: nothing; then samples are forgotten for all
            passes of the method.
        test: `(inputs, labels)` of samples for the audit, which nothing else reads.
        method: How to forget; `cujax.ContrastiveUnlearning()` by default, its retain batch no larger than the retain set.
        key: Of all that is random; `jax.random.key(0)` by default.
        embedding: Of a module that returns logits alone: the submodule that computes them.
        subjects: `[n]` texts or integers: whose sample each row is, for `forget=cujax.ForgetSubject("anna")`. A fraction
            as validation then holds out whole subjects.
        copies: What happens to other samples with the same inputs as a forgotten one: "with" (forgotten with it), "keep" or
            "refuse"; None for what the request says, which is "refuse" for classes and rows.
        stop_rule: When unlearning may end: "accuracy", "loss" or "none".
        retain_tolerance: It ends if validation accuracy on retained data falls by more than this.
        progress: Whether to show bars on stderr; None: where that is a terminal.

    Raises:
        ValueError: if arrays do not fit together or to the network, hold NaN, or labels have no logit; if nothing, all
            rows, or rows that do not exist are to be forgotten; or if the method does not fit the request.
        TypeError: if `model_or_module` is no network.

    >>> import flax.linen as nn, jax, numpy as np
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, rows):
    ...         return nn.Dense(3, name="head")(nn.relu(nn.Dense(8)(rows)))
    >>> rng = np.random.default_rng(0)
    >>> rows, labels = rng.normal(size=(90, 4)), np.arange(90) % 3
    >>> variables = Net().init(jax.random.key(0), rows[:1])
    >>> method = ContrastiveUnlearning(max_passes=1, retain_batch_size=32)
    >>> result = unlearn(Net(), variables, rows, labels, forget=2, embedding="head", method=method)
    >>> sorted(result.variables), result.split.forgotten_classes
    (['params'], (2,))
    """
    model = as_model(model_or_module, embedding=embedding)
    inputs = checked_rows("", inputs)
    first = jax.tree.map(lambda rows: rows[:1], inputs)
    original = as_variables(variables, model, first)
    classes = abstract_outputs(model, original, first).logits.shape[1]
    given = gathered(inputs, labels, classes, validation=validation, test=test, subjects=subjects)
    split = split_of(given, forget, copies)
    if method is None:
        method = ContrastiveUnlearning()
        method = replace(method, retain_batch_size=min(method.retain_batch_size, len(split.retain)))
    if getattr(method, "training", ...) is None:
        raise ValueError(
            f"{method_name(method)} trains a network anew and has no recipe; give training=cujax.TrainingRecipe(...) to it."
        )
    check_fits(method, split, model, original)
    shown = _progress(progress)
    samples, tested = (to_device(given.source, part) for part in (given.source.train, given.source.test))
    loop = Loop(samples, retain_tolerance, shown, stop_rule=STOP_RULES.find(stop_rule)())
    made = method(model, original, split, key=jax.random.key(0) if key is None else key, loop=loop)
    cases = tuple(
        Case(model, part, samples, tested, progress=shown) for part in split.divided(np.asarray(given.source.train.labels))
    )
    before, after = Candidate(original), Candidate(made.variables, _masked_classes(made.model, model, method))
    verdict = _worst([verdict_without_retrained(case, before, after) for case in cases])
    arrays = in_form_of(made.variables, variables, model)
    return UnlearnResult(arrays, made.model, verdict, made.history, split, cases, before, after)


def _masked_classes(made: Model, model: Model, method: Method) -> tuple[int, ...]:
    if made == model:
        return ()
    if isinstance(made, MaskedModel) and made.model == model:
        return made.masked_classes
    raise ValueError(
        f"{method_name(method)} returned another model than it was given, which cannot be judged; call it alone."
    )


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: ORDER.index(verdict.word))


def _progress(shown: bool | None) -> Progress:
    return bar if (sys.stderr.isatty() if shown is None else shown) else silent


def audit_model(
    result: UnlearnResult,
    *,
    retrained: int | Sequence[PyTree],
    recipe: Training | None = None,
    test: tuple[Inputs, Any] | None = None,
    key: jax.Array | None = None,
    progress: bool | None = None,
) -> AuditReport:
    """Compares an unlearned model with models that never saw the forgotten samples, as the audit of a run does.

    Args:
        result: What `cujax.unlearn` gave.
        retrained: How many models to train on the retain set: 8 for any verdict, 5 for every fault. Or the arrays of such
            models, each as `cujax.unlearn` takes them, trained by the recipe of the original.
        recipe: How the original was trained; needed to train models. With it, the looks that take no part in the verdict
            are taken, too.
        test: `(inputs, labels)`, where `cujax.unlearn` was given none.
        key: Of the retrained models; `jax.random.key(1)` by default.
        progress: As in `cujax.unlearn`.

    Raises:
        ValueError: if there are no test samples or none of the retained classes, a count comes without a recipe, or a
            given model is not of this network, or is the original, the unlearned model or another given one.
        FloatingPointError: if training diverges.
    """
    shown = _progress(progress)
    cases = tuple(replace(case, recipe=recipe, progress=shown) for case in _tested(result, test))
    first, model = cases[0], cases[0].model
    if isinstance(retrained, int):
        if retrained < 0 or (retrained and recipe is None):
            raise ValueError(
                f"retrained is {retrained}, and recipe {recipe}; to train models give how the original was trained, "
                "recipe=cujax.TrainingRecipe(...), or give the trained models' arrays."
            )
        if retrained and not model.has_initialiser:
            raise ValueError(
                "retrained models need fresh parameters, but the network was given as an nnx module, which cannot be "
                "initialised again; give cujax.unlearn from_nnx(module, constructor=...), or here the retrained arrays."
            )
        key = jax.random.key(1) if key is None else key
        models = []
        for number in range(retrained):
            assert recipe is not None
            trainer = Trainer(recipe, first.train_images, shown)
            what = f"training retrained_{number}"
            own = jax.random.fold_in(key, number)
            trained = trainer.train(
                model, first.split.retain.indices, own, description=what, frozen=result.original.variables
            )
            models.append(trained.variables)
    else:
        row = input_shapes(first.train_images)
        models = [as_variables(one, model, row, name=f"retrained[{number}]") for number, one in enumerate(retrained)]
        _check_distinct(result, models)
    if recipe is not None:
        check_augmentation(recipe.augmentation, are_images=first.train_images.mean.size > 0)
    candidates = [Candidate(variables) for variables in models]
    findings = []
    for case in cases:
        found = compare_models(case, result.original, result.unlearned, candidates, closely=recipe is not None)
        level = "quick" if recipe is None else "standard"
        findings.append(Findings(level, found.metrics, found.verdict, found.models))
    return AuditReport(_worst([found.verdict for found in findings]), tuple(findings), tuple(models))


def _check_distinct(result: UnlearnResult, models: Sequence[Variables]) -> None:
    others = {"the original": result.original.variables, "the unlearned model": result.unlearned.variables}
    for number, variables in enumerate(models):
        for name, other in others.items():
            if is_unchanged(other, variables):
                raise ValueError(
                    f"retrained[{number}] is {name}, parameter for parameter; give models that were trained without the "
                    "forgotten rows (result.split.retain.indices), each from another key."
                )
        others[f"retrained[{number}]"] = variables


def _tested(result: UnlearnResult, test: tuple[Inputs, Any] | None) -> tuple[Case, ...]:
    """The cases with test samples."""
    cases = result.cases
    if test is not None:
        cases = tuple(_with_test(case, test) for case in cases)
    labels = cases[0].labels(train=False)
    if not len(labels) or np.isin(labels, result.split.absent_classes).all():
        raise ValueError(
            f"there are {len(labels)} test samples, and none of the retained classes, but an audit compares models on them; "
            "give test=(inputs, labels) that no model was trained on."
        )
    return cases


def _with_test(case: Case, test: tuple[Inputs, Any]) -> Case:
    samples = case.train_images
    assert isinstance(samples, DeviceImages)
    inputs, labels = checked_pair("test", test, samples.images, case.model.num_classes)
    rows = np.arange(len(labels), dtype=np.int32)
    images = replace(samples, images=jax.tree.map(jnp.asarray, inputs), labels=jnp.asarray(labels))
    split = replace(case.split, test=Part(rows, np.array([f"test_{row:08d}" for row in rows.tolist()], str)))
    return replace(case, test_images=images, split=split)
