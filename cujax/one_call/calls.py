"""`cujax.unlearn` and `cujax.audit_model`: plain arrays in, plain trees out. No files are read or written."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cujax.adapters.common import OutputNames
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
from cujax.one_call.network import as_model, as_variables, check_order, in_form_of
from cujax.progress import Progress, bar, silent
from cujax.training.supervised import Trainer, Training


@dataclass(frozen=True, eq=False)
class UnlearnResult:
    """The result of `cujax.unlearn`.

    Attributes:
        variables: The arrays to use from now on, in the form in which they were given: a `cujax.Variables`, or a dict of
            collections (`{"params": ..., "batch_stats": ...}`), also for a train state (its optimiser state depends on the
            forgotten data), or an `nnx.State` for `nnx.update`.
        model: The network to use from now on: the given one, unless the method masks logits.
        verdict: The verdict without retrained models. If the request is for whole classes and for samples of other
            classes, the worse of the two.
        history: The history of the run: its checks, why it ended, its cost.
        split: Which rows were to be forgotten, retained and held out.
        cases: What the models are judged on: one case for whole classes and one for samples if the request names both.
        original: The model before unlearning.
        unlearned: The model after unlearning.
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
    """The result of `cujax.audit_model`.

    Attributes:
        verdict: The verdict. If the request is for whole classes and for samples of other classes, the worse of the two.
        findings: Every metric with the values of all models, and the verdict; one entry for each of `UnlearnResult.cases`.
        retrained: The arrays of the retrained models, whether trained now or given.
    """

    verdict: Verdict
    findings: tuple[Findings, ...]
    retrained: tuple[Variables, ...]

    def __str__(self) -> str:
        return _in_words(self.verdict)


def _in_words(verdict: Verdict, *more: str) -> str:
    """Lines of text; the first is a warning if nothing was done."""
    unchanged = ["UNCHANGED: the parameters are those of the original; nothing was forgotten."] * verdict.unchanged
    return "\n".join(
        [*unchanged, f"{HEADINGS[verdict.word]}: {'; '.join(verdict.reasons)}.", *(f"{line}." for line in more)]
    )


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
    outputs: OutputNames | None = None,
    subjects: Any = None,
    copies: Copies | None = None,
    stop_rule: str = "accuracy",
    retain_tolerance: float = 0.05,
    progress: bool | None = None,
) -> UnlearnResult:
    """Unlearns some of the training samples of a trained network.

    Args:
        model_or_module: A `cujax.Model`, a flax.linen module or a flax.nnx module.
        variables: Its trained arrays: a `cujax.Variables`, `{"params": ..., "batch_stats": ...}`, or a train state with
            these as attributes; or an nnx module or its `nnx.state`. They are not changed. Whatever else a dict with
            "params" holds, such as "opt_state", is left out, with a warning.
        inputs: The training samples, a pytree of arrays, each `[n, ...]`, exactly as the network takes them: images
            normalised as in training. float64 becomes float32.
        labels: `[n]` integers from 0.
        forget: What to forget: an int for a class, an array of integers for row indices, or an array of `[n]` booleans for
            a mask of rows. Or a request: `cujax.ForgetClasses((2, 5))`, `cujax.ForgetRandom(count=10)`.
        validation: Held-out data, which shows when to stop: a pair `(inputs, labels)` of additional samples; row indices or
            a mask of rows of `inputs`; or a fraction of each class of `inputs`, treated as unseen (correct only for whole
            classes; it warns for samples). None: no held-out data; a sample request then runs all passes of the method.
        test: `(inputs, labels)` of samples that only the audit reads.
        method: The unlearning method; `cujax.ContrastiveUnlearning()` by default, with a retain batch no larger than the
            retain set.
        key: Key for all randomness; `jax.random.key(0)` by default.
        embedding: For a module that returns only logits: the submodule that computes them.
        outputs: For a module that returns a pair: the names of its elements, `("embedding", "logits")`, the default, or
            `("logits", "embedding")`.
        subjects: `[n]` strings or integers: the subject of each row, for `forget=cujax.ForgetSubject("anna")`. A fraction
            given as `validation` then holds out whole subjects.
        copies: What to do with other samples that have the same inputs as one in the request: "with" (forget them too),
            "keep" or "refuse"; None for the request's own setting, which is "refuse" for classes and rows.
        stop_rule: When unlearning may end: "accuracy", "loss" or "none".
        retain_tolerance: Unlearning ends if validation accuracy on retained data falls by more than this.
        progress: Whether to show progress bars on stderr; None: only if it is a terminal.

    Raises:
        ValueError: if arrays are not compatible with each other or the network, contain NaN, or labels have no logit or
            contradict the order of the network's pair; if the request covers nothing, all rows, or rows that do not exist;
            or if the method does not support the request.
        TypeError: if `model_or_module` is not a network.

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
    model = as_model(model_or_module, embedding=embedding, outputs=outputs)
    inputs = checked_rows("", inputs, labels)
    first = jax.tree.map(lambda rows: rows[:1], inputs)
    original = as_variables(variables, model, first)
    check_order(model, original, first, labels)
    classes = abstract_outputs(model, original, first).logits.shape[1]
    given = gathered(inputs, labels, classes, validation=validation, test=test, subjects=subjects)
    split = split_of(given, forget, copies)
    if method is None:
        method = ContrastiveUnlearning()
        method = replace(method, retain_batch_size=min(method.retain_batch_size, len(split.retain)))
    if not callable(method):
        raise ValueError(
            f"method is {method!r}, but must be a method with its settings: cujax.ContrastiveUnlearning(), or one of those "
            "in cujax.methods."
        )
    if getattr(method, "training", ...) is None:
        raise ValueError(
            f"{method_name(method)} trains a network from scratch but has no recipe; give it "
            "training=cujax.TrainingRecipe(...)."
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
        f"{method_name(method)} returned another model than it was given, which cannot be judged here; call the method "
        "directly."
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
        result: The result of `cujax.unlearn`.
        retrained: How many models to train on the retain set: 8 for any verdict, 5 for every fault. Or the arrays of such
            models, each in a form that `cujax.unlearn` accepts, trained with the original's recipe.
        recipe: How the original was trained; needed to train models. With it, the metrics that do not affect the verdict
            are computed too.
        test: `(inputs, labels)`, if not given to `cujax.unlearn`.
        key: Key for the retrained models; `jax.random.key(1)` by default.
        progress: As in `cujax.unlearn`.

    Raises:
        ValueError: if there are no test samples or none of the retained classes; if a count is given without a recipe; or
            if a given model does not belong to this network, or is the original, the unlearned model or a repeated one.
        FloatingPointError: if training diverges.
    """
    shown = _progress(progress)
    cases = tuple(replace(case, recipe=recipe, progress=shown) for case in _tested(result, test))
    first, model = cases[0], cases[0].model
    if isinstance(retrained, int):
        if retrained < 0 or (retrained and recipe is None):
            raise ValueError(
                f"retrained is {retrained}, but recipe is {recipe}; to train models, say how the original was trained with "
                "recipe=cujax.TrainingRecipe(...), or give the arrays of trained models."
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
                    f"retrained[{number}] is {name}, parameter for parameter; give models trained without the forgotten "
                    "rows (result.split.retain.indices), each with a different key."
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
