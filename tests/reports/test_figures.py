"""The pictures: what is drawn, from answers that are made up, so that every bar and point is known."""

import io
import itertools

import numpy as np
import pytest

from cujax.audit.evidence import Answers, Evidence, Relearning
from cujax.data.images import Images, Source
from cujax.data.requests import ForgetClass, ForgetRandom, make_split
from cujax.reports.audit_figures import relearning_figure
from cujax.reports.figures import (
    confidence_caption,
    confidence_figure,
    destination_caption,
    destination_figure,
    embeddings_figure,
    stopping_caption,
    stopping_figure,
)
from cujax.reports.html import svg
from cujax.training.predict import Predictions

CLASSES = 4
NAMES = ("zero", "one", "two", "three")


def make_source(n_test=80, test_classes=range(CLASSES)):
    def images(labels, prefix):
        ids = np.array([f"{prefix}-{row}" for row in range(len(labels))])
        return Images(np.zeros((len(labels), 1, 1, 1), np.uint8), labels.astype(np.int32), ids)

    train, test = images(np.arange(200) % CLASSES, "a"), images(np.resize(test_classes, n_test), "t")
    return Source("made", "1", train, test, NAMES, np.zeros(1), np.ones(1))


def make_answers(source, split, seed=0, logits=CLASSES):
    rng = np.random.default_rng(seed)

    def answer(labels):
        return Predictions(
            (3 * rng.normal(size=(len(labels), logits))).astype(np.float32),
            (rng.normal(size=(len(labels), 5)) + 3 * np.eye(5)[labels]).astype(np.float32),
            labels,
        )

    parts = (split.forget, split.retain, split.validation)
    return Answers(*(answer(source.train.labels[part.indices]) for part in parts), answer(source.test.labels))


SOURCE = make_source()
SPLITS = {"class": make_split(SOURCE, ForgetClass(1)), "samples": make_split(SOURCE, ForgetRandom(count=30))}
both_tasks = pytest.mark.parametrize("task", SPLITS)


def models_of(split, names=("original", "unlearned", "retrained"), source=SOURCE):
    return {name: make_answers(source, split, seed) for seed, name in enumerate(names)}


def png(figure):
    """The picture as the report has it; warnings are errors here."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def texts(items):
    return [item.get_text() for item in items]


@both_tasks
def test_embeddings_have_a_column_a_model_and_a_row_a_projection(task):
    split = SPLITS[task]
    models = models_of(split, ("original", "unlearned"))
    figure = embeddings_figure(models, split, NAMES)
    png(figure)
    assert [axis.get_title() for axis in figure.axes] == [
        "original (PCA)", "unlearned (PCA)", "original (t-SNE)", "unlearned (t-SNE)",
    ]  # fmt: skip
    assert texts(figure.axes[0].get_legend().get_texts()) == ["retained (test)", "forget"]
    stays = [1] if task == "class" else []
    n_kept = np.sum(~np.isin(SOURCE.test.labels, stays))
    for axis in figure.axes:
        kept, forget = axis.collections
        assert (len(kept.get_offsets()), len(forget.get_offsets())) == (n_kept, len(split.forget))
        assert np.isfinite(np.concatenate([kept.get_offsets(), forget.get_offsets()])).all()
        assert texts(axis.texts) == [name for label, name in enumerate(NAMES) if label not in stays]


def test_principal_components_keep_distances_of_what_lies_in_a_plane():
    split = SPLITS["class"]
    models = models_of(split, ("original",))
    for predictions in (models["original"].forget, models["original"].test):
        predictions.embeddings[:, 2:] = 0
    axis = embeddings_figure(models, split, NAMES).axes[0]
    drawn = np.asarray(axis.collections[1].get_offsets())
    embeddings = models["original"].forget.embeddings
    distances = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(drawn[:, None] - drawn[None], axis=-1), distances, rtol=1e-3, atol=1e-3)


def test_a_single_forget_sample_can_be_drawn():
    split = make_split(SOURCE, ForgetRandom(count=1))
    models = models_of(split, ("original",))
    for figure in (
        embeddings_figure(models, split, NAMES),
        confidence_figure(models, split),
        destination_figure({"original": [models["original"]]}, split, NAMES),
    ):
        png(figure)


def test_a_model_whose_embeddings_have_collapsed_to_a_point_can_be_drawn():
    # Without a spread t-SNE's start is NaN, and its compiled code then crashes the process.
    split = SPLITS["class"]
    models = models_of(split, ("original",))
    for predictions in (models["original"].forget, models["original"].test):
        predictions.embeddings[:] = 0.5
    png(embeddings_figure(models, split, NAMES))


CHECKS = [
    {"step": step, "forget_accuracy": forget, "target": 0.4, "retain_accuracy": retain}
    for step, forget, retain in ((0, 0.9, 0.95), (8, 0.6, 0.94), (16, 0.3, 0.9))
]


@pytest.mark.parametrize(("is_class_task", "target"), [(True, "threshold"), (False, "held-out samples (the target)")])
def test_the_stop_rule_is_drawn_with_its_target_and_the_step_that_was_kept(is_class_task, target):
    figure = stopping_figure(CHECKS, 8, "retain_tolerance", is_class_task)
    png(figure)
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("optimiser steps", "accuracy")
    assert texts(axis.get_legend().get_texts()) == ["forgotten data", target, "retained (validation)"]
    forget, goal, retain, kept = axis.lines
    for line, values in ((forget, [0.9, 0.6, 0.3]), (goal, [0.4] * 3), (retain, [0.95, 0.94, 0.9])):
        np.testing.assert_allclose(line.get_xdata(), [0, 8, 16])
        np.testing.assert_allclose(line.get_ydata(), values)
    assert set(kept.get_xdata()) == {8}
    assert "retain_tolerance: step 8" in axis.texts[0].get_text()


@both_tasks
def test_confidences_are_shares_of_each_part_and_test_is_of_what_stays(task):
    split = SPLITS[task]
    models = models_of(split)
    figure = confidence_figure(models, split)
    png(figure)
    assert [axis.get_title() for axis in figure.axes] == list(models)
    assert all(axis.get_xlabel() == "probability of the true label" for axis in figure.axes)
    assert figure.axes[0].get_ylabel() == "share of samples"
    assert texts(figure.axes[0].get_legend().get_texts()) == ["forget", "retain", "test"]
    for axis, answers in zip(figure.axes, models.values(), strict=True):
        kept = answers.test.take(~np.isin(answers.test.labels, [1] if task == "class" else []))
        for patch, part in zip(axis.patches, (answers.forget, answers.retain, kept), strict=True):
            odds = np.exp(part.logits.astype(float))
            p = odds[np.arange(len(odds)), part.labels] / odds.sum(1)
            expected = np.histogram(p, np.linspace(0, 1, 26))[0] / len(p)
            np.testing.assert_allclose(patch.get_path().vertices[1:50:2, 1], expected, atol=1e-12)


def shares(predictions, labels):
    """The share of each answer among the rows with some labels."""
    answers = predictions.logits[np.isin(predictions.labels, labels)].argmax(1)
    return np.array([np.mean(answers == label) for label in range(CLASSES)])


def test_bars_say_where_a_forgotten_class_goes_mean_over_several_models():
    split = SPLITS["class"]
    models = models_of(split, ("original", "unlearned"))
    several = [make_answers(SOURCE, split, seed) for seed in (5, 6, 7)]
    masked = models["original"].masked(split.forgotten_classes)
    drawn = {name: [one] for name, one in models.items()} | {"retrained": several, "masked": [masked]}
    figure = destination_figure(drawn, split, NAMES)
    png(figure)
    (axis,) = figure.axes
    assert texts(axis.get_xticklabels()) == ["zero", "one\n(forgotten)", "two", "three"]
    assert axis.get_ylabel() == "share of the forgotten class"
    assert texts(axis.get_legend().get_texts()) == list(drawn)
    for bars, answers in zip(axis.containers, drawn.values(), strict=True):
        expected = np.mean([shares(one.test, [1]) for one in answers], axis=0)
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected)
    assert axis.containers[3][1].get_height() == 0.0
    edges = [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] for bars in zip(*axis.containers, strict=True)]
    for number, group in enumerate(edges):  # side by side, around the tick
        assert np.mean(group) == pytest.approx(number)
        assert all(left[1] == pytest.approx(right[0]) for left, right in itertools.pairwise(group))


def test_bars_are_of_the_forget_set_where_the_test_set_has_none_of_the_class():
    source = make_source(test_classes=(0, 2, 3))
    split = make_split(source, ForgetClass(1))
    answers = make_answers(source, split)
    (axis,) = destination_figure({"original": [answers]}, split, NAMES).axes
    np.testing.assert_allclose([bar.get_height() for bar in axis.containers[0]], shares(answers.forget, [1]))


def test_matrices_say_where_forgotten_samples_go_label_by_label():
    split = SPLITS["samples"]
    models = models_of(split, ("original", "unlearned"))
    drawn = {
        **{name: [one] for name, one in models.items()},
        "retrained": [make_answers(SOURCE, split, 8), models["original"]],
    }
    figure = destination_figure(drawn, split, NAMES)
    png(figure)
    *axes, scale = figure.axes
    assert [axis.get_title() for axis in axes] == list(drawn)
    assert axes[0].get_ylabel() == "label of the forget sample"
    assert scale.get_ylabel() == "share of the label's samples"
    for axis, several in zip(axes, drawn.values(), strict=True):
        assert texts(axis.get_xticklabels()) == texts(axis.get_yticklabels()) == list(NAMES)
        matrix = np.asarray(axis.images[0].get_array())
        for label in range(CLASSES):
            expected = np.mean([shares(one.forget, [label]) for one in several], axis=0)
            np.testing.assert_allclose(matrix[label], expected)


@both_tasks
@pytest.mark.parametrize("name", ["<script>", "a_b^c\\", "5 $", "$x_{$"])
def test_any_class_name_can_be_drawn_as_it_is(task, name):
    split, names = SPLITS[task], (name, *NAMES[1:])
    models = models_of(split, ("original",))
    figure = destination_figure({"original": [models["original"]]}, split, names)
    png(figure)
    assert texts(figure.axes[0].get_xticklabels())[0] == name
    if task == "class":
        figure = embeddings_figure(models, split, names)
        png(figure)
        assert texts(figure.axes[0].texts)[0] == name


def test_of_many_classes_the_most_frequent_answers_are_drawn_and_the_others_together():
    names = tuple(f"class {label}" for label in range(100))
    rng = np.random.default_rng(0)
    labels = np.full(500, 1)
    # Class 7 is the most frequent answer; every class is answered sometimes.
    logits = np.eye(100, dtype=np.float32)[np.where(rng.random(500) < 0.5, 7, rng.integers(0, 100, 500))]
    part = Predictions(logits, np.zeros((500, 2), np.float32), labels)
    models = {"original": [Answers(part, part, part, part)]}
    figure = destination_figure(models, SPLITS["class"], names)
    png(figure)
    (axis,) = figure.axes
    shown = texts(axis.get_xticklabels())
    assert len(shown) <= 14
    assert {"class 7", "class 1\n(forgotten)"} <= set(shown)
    assert shown[-1] == f"{100 - len(shown) + 1} others"
    assert sum(bar.get_height() for bar in axis.containers[0]) == pytest.approx(1)
    figure = destination_figure(models, SPLITS["samples"], names)
    assert len(figure.axes[0].get_xticklabels()) == 20


def test_captions_state_what_is_drawn_in_numbers():
    split = SPLITS["class"]
    models = models_of(split)
    caption = destination_caption({name: [one] for name, one in models.items()}, split, NAMES)
    for name, one in models.items():
        assert f"{name} {shares(one.test, [1])[1]:.3f}, then most often" in caption
    assert "went from 0.900 to 0.600 in 8 steps (target 0.400)" in stopping_caption(CHECKS, 8, "it did")
    assert "No step was kept" in stopping_caption(CHECKS, 0, "it did")
    assert all(f"{name} 0." in confidence_caption(models, split) for name in models)


def test_a_picture_drawn_again_has_the_same_bytes():
    first, again = (svg(confidence_figure(models_of(SPLITS["class"]), SPLITS["class"])) for _ in range(2))
    assert first == again
    assert b"<dc:date>" not in first


@both_tasks
def test_answers_beyond_the_classes_are_counted_together(task):
    split = SPLITS[task]
    models = {"unlearned": [make_answers(SOURCE, split, logits=CLASSES + 2)]}
    figure = destination_figure(models, split, NAMES)
    png(figure)
    axis = figure.axes[0]
    ticks = [text.replace("\n(forgotten)", "") for text in texts(axis.get_xticklabels())]
    assert ticks == [*NAMES, "no class"]
    answers = models["unlearned"][0]
    if task == "class":
        rows = answers.test.logits[answers.test.labels == 1].argmax(axis=1)
        assert axis.patches[-1].get_height() == pytest.approx((rows >= CLASSES).mean())
    else:
        assert texts(axis.get_yticklabels()) == list(NAMES)
        matrix = axis.images[0].get_array()
        for label in range(CLASSES):
            rows = answers.forget.logits[answers.forget.labels == label].argmax(axis=1)
            assert matrix[label, CLASSES] == pytest.approx((rows >= CLASSES).mean())


def test_steps_are_whole_numbers_on_their_axis():
    course = Relearning((0, 1, 2), (0.2, 0.6, 1.0), 0.95)
    models = {name: [Evidence(None, relearning=course)] for name in ("original", "unlearned", "retrained")}
    check = {"forget_accuracy": 0.5, "target": 0.1, "retain_accuracy": 0.9}
    checks = [{"step": step, **check} for step in range(3)]
    for figure in (relearning_figure(models), stopping_figure(checks, 2, "stop_rule", True)):
        figure.draw_without_rendering()
        assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())
