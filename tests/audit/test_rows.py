"""The rows of a report on answers that are made up, so that every figure is known."""

import dataclasses

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from cujax.audit.evidence import Answers
from cujax.audit.registry import answer_metrics
from cujax.audit.rows import audit_rows
from cujax.data.images import Images, Source
from cujax.data.requests import ForgetClass, ForgetRandom, make_split
from cujax.training.predict import Predictions

N, CLASSES = 600, 4


def make_source():
    def images(n, prefix):
        labels = np.arange(n, dtype=np.int32) % CLASSES
        return Images(np.zeros((n, 1, 1, 1), np.uint8), labels, np.array([f"{prefix}-{row}" for row in range(n)]))

    return Source("made", "1", images(N, "a"), images(N, "t"), tuple("wxyz"), np.zeros(1), np.ones(1))


SOURCE = make_source()


def answer(labels, right, confidence, seed):
    """Predictions of which a share is right, with logits of a given size."""
    rng = np.random.default_rng(seed)
    n_right = round(right * len(labels))
    answers = np.where(rng.permutation(len(labels)) < n_right, labels, (labels + 1) % CLASSES)
    logits = confidence * np.eye(CLASSES)[answers] + 0.1 * rng.normal(size=(len(labels), CLASSES))
    return Predictions(logits.astype(np.float32), rng.normal(size=(len(labels), 3)) + np.eye(4)[labels][:, :3] * 5, labels)


def answers(split, *, forget, test, seed=0, confidence=(5.0, 2.0)):
    labels = SOURCE.train.labels
    return Answers(
        forget=answer(labels[split.forget.indices], forget, confidence[0] if forget == 1 else confidence[1], seed),
        retain=answer(labels[split.retain.indices], 1.0, 5.0, seed + 1),
        validation=answer(labels[split.validation.indices], test, confidence[1], seed + 2),
        test=answer(SOURCE.test.labels, test, confidence[1], seed + 3),
    )


def rows_of(split, n_retrained=3, **options):
    return audit_rows(
        split,
        original=answers(split, forget=1.0, test=0.9),
        retrained=[answers(split, forget=0.9, test=0.9, seed=10 * (1 + number)) for number in range(n_retrained)],
        unlearned=answers(split, forget=0.9, test=0.85, seed=99),
        **{"clean_test_only": False} | options,
    )


CLASS_TASK, SAMPLE_TASK = make_split(SOURCE, ForgetClass(2)), make_split(SOURCE, ForgetRandom(count=100))


@pytest.mark.parametrize("split", [CLASS_TASK, SAMPLE_TASK], ids=["class", "samples"])
@pytest.mark.parametrize("n_retrained", [0, 1, 3])
def test_every_figure_is_in_its_range_or_absent_with_a_reason(split, n_retrained):
    rows = rows_of(split, n_retrained)
    assert list(rows) == ["original", "retrained", "unlearned", *(["masked"] if split.is_class_task else [])]
    for row in rows.values():
        for key in (metric.key for metric in answer_metrics()):
            if row[key] is None:
                assert len(row["reasons"][key]) > 10
            else:
                assert key not in row["reasons"]
                low = -1 if key.startswith("cosine") else 0
                high = np.inf if key == "log_odds_to_retrained" else 1  # nats
                assert low <= row[key] <= high
    if n_retrained == 0:
        assert all(rows["retrained"][key] is None for key in (metric.key for metric in answer_metrics()))
        assert "--retrained is 0" in rows["unlearned"]["reasons"]["mean_gap"]
    if n_retrained == 1:
        assert "only one retrained model" in rows["retrained"]["reasons"]["js_to_retrained"]


@pytest.mark.parametrize("split", [CLASS_TASK, SAMPLE_TASK], ids=["class", "samples"])
@pytest.mark.parametrize("n_retrained", [0, 2])
def test_the_keys_that_programs_rely_on_are_in_every_row(split, n_retrained):
    for row in rows_of(split, n_retrained).values():
        assert set(row) >= {
            "forget_train_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_test_accuracy",
            "test_accuracy", "mia_loss_auc", "mia_confidence", "js_to_retrained", "reasons",
        }  # fmt: skip


def test_accuracies_are_of_the_parts_they_name():
    rows = rows_of(CLASS_TASK)
    made = answers(CLASS_TASK, forget=1.0, test=0.9)
    right = made.test.logits.argmax(1) == made.test.labels
    of_class = made.test.labels == 2
    assert rows["original"]["forget_train_accuracy"] == 1.0
    assert rows["original"]["forget_test_accuracy"] == pytest.approx(right[of_class].mean())
    assert rows["original"]["retain_test_accuracy"] == pytest.approx(right[~of_class].mean())
    assert rows["original"]["test_accuracy"] == pytest.approx(right.mean())


def test_classes_forgotten_earlier_do_not_count_as_kept():
    first = make_split(SOURCE, ForgetClass(1))
    second = make_split(SOURCE, ForgetClass(2), first.forget.ids.tolist())
    made = answers(second, forget=1.0, test=0.9)
    rows = audit_rows(second, original=made, retrained=[], unlearned=made, clean_test_only=False)
    kept = ~np.isin(made.test.labels, (1, 2))
    right = made.test.logits.argmax(1) == made.test.labels
    assert rows["original"]["retain_test_accuracy"] == pytest.approx(right[kept].mean())
    assert rows["original"]["forget_test_accuracy"] == pytest.approx(right[made.test.labels == 2].mean())


def test_several_models_give_mean_spread_and_range():
    row = rows_of(SAMPLE_TASK)["retrained"]
    models = [answers(SAMPLE_TASK, forget=0.9, test=0.9, seed=10 * (1 + number)) for number in range(3)]
    values = [np.mean(model.test.logits.argmax(1) == model.test.labels) for model in models]
    assert row["test_accuracy"] == pytest.approx(np.mean(values))
    assert row["test_accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert (row["test_accuracy_min"], row["test_accuracy_max"]) == pytest.approx((min(values), max(values)))


def test_memorised_samples_stand_out_and_unseen_ones_do_not():
    rows = rows_of(SAMPLE_TASK)
    assert rows["original"]["mia_loss_auc"] > 0.85
    assert rows["retrained"]["mia_loss_auc"] == pytest.approx(0.5, abs=0.06)
    assert rows["original"]["mean_gap"] > 3 * rows["retrained"]["mean_gap"]


def test_the_masked_control_has_no_membership_figures_and_moves_no_embedding():
    rows = rows_of(CLASS_TASK)
    assert rows["masked"]["forget_test_accuracy"] == rows["masked"]["forget_train_accuracy"] == 0.0
    for key in ("mia_loss_auc", "mia_loss_accuracy", "mia_confidence"):
        assert rows["masked"][key] is None
    key = "cosine_to_former_class_mean"
    assert rows["masked"][key] == rows["original"][key]
    assert rows["retrained"][key] is None


def test_with_noisy_labels_validation_is_held_out():
    clean, noisy = rows_of(SAMPLE_TASK), rows_of(SAMPLE_TASK, clean_test_only=True)
    made = answers(SAMPLE_TASK, forget=0.9, test=0.85, seed=99)
    losses = [
        np.log(np.exp(p.logits.astype(float)).sum(1)) - p.logits[np.arange(len(p.labels)), p.labels]
        for p in (made.forget, made.validation)
    ]
    expected = np.mean([(f < v) + 0.5 * (f == v) for f in losses[0] for v in losses[1]])
    assert noisy["unlearned"]["mia_loss_auc"] == pytest.approx(expected)
    assert noisy["unlearned"]["mia_loss_auc"] != clean["unlearned"]["mia_loss_auc"]


def test_the_floor_of_a_distance_is_oracle_against_the_other_oracles():
    rows = rows_of(SAMPLE_TASK, 2)
    assert rows["retrained"]["js_to_retrained_std"] == pytest.approx(0.0, abs=1e-12)
    assert 0 < rows["retrained"]["js_to_retrained"] < np.log(2)


def test_distances_are_to_all_retrained_models_and_of_a_retrained_model_to_the_others():
    made = {"original": answers(SAMPLE_TASK, forget=1.0, test=0.9), "unlearned": answers(SAMPLE_TASK, forget=0.8, test=0.9)}
    retrained = [answers(SAMPLE_TASK, forget=share, test=0.9, seed=number) for number, share in enumerate((0.9, 0.6, 0.3))]
    rows = audit_rows(SAMPLE_TASK, retrained=retrained, clean_test_only=False, **made)

    def distance(one, other):
        p, q = (softmax(model.forget.logits.astype(float), axis=1) for model in (one, other))
        middle = (p + q) / 2
        return np.mean((rel_entr(p, middle) + rel_entr(q, middle)).sum(1) / 2)

    for name, model in made.items():
        assert rows[name]["js_to_retrained"] == pytest.approx(np.mean([distance(model, other) for other in retrained]))
    to_others = [np.mean([distance(one, other) for other in retrained if other is not one]) for one in retrained]
    assert max(to_others) > 1.1 * min(to_others)
    row = rows["retrained"]
    assert row["js_to_retrained"] == pytest.approx(np.mean(to_others))
    assert row["js_to_retrained_std"] == pytest.approx(np.std(to_others, ddof=1))
    assert row["js_to_retrained_min"] == pytest.approx(min(to_others))
    assert row["js_to_retrained_max"] == pytest.approx(max(to_others))


@pytest.mark.parametrize("split", [CLASS_TASK, SAMPLE_TASK], ids=["class", "samples"])
def test_the_gap_is_of_the_accuracies_that_the_task_is_about(split):
    rows = rows_of(split)
    forget = "forget_test_accuracy" if split.is_class_task else "forget_train_accuracy"
    keys = (forget, "retain_train_accuracy", "retain_test_accuracy")
    expected = np.mean([abs(rows["original"][key] - rows["retrained"][key]) for key in keys])
    assert rows["original"]["mean_gap"] == pytest.approx(expected)


def losses_of(part):
    logits = part.logits.astype(float)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(part.labels)), part.labels]


def test_forgotten_classes_are_attacked_with_test_samples_of_the_same_classes():
    made = answers(CLASS_TASK, forget=1.0, test=0.9)
    forget, held_out = losses_of(made.forget), losses_of(made.test)[made.test.labels == 2]
    expected = np.mean([(f < h) + 0.5 * (f == h) for f in forget for h in held_out])
    assert rows_of(CLASS_TASK)["original"]["mia_loss_auc"] == pytest.approx(expected)


def test_memorised_samples_look_like_members_to_the_trained_attack_and_unseen_ones_do_not():
    rows = rows_of(SAMPLE_TASK)
    assert rows["original"]["mia_confidence"] < 0.1
    assert rows["retrained"]["mia_confidence"] > 0.9


def test_the_masked_row_says_why_its_attacks_are_absent():
    reasons = rows_of(CLASS_TASK)["masked"]["reasons"]
    assert "not all finite" in reasons["mia_loss_auc"]
    assert "mask" in reasons["mia_confidence"]


def test_too_few_held_out_samples_take_away_only_what_needs_more():
    few = np.concatenate([np.flatnonzero(SOURCE.test.labels != 2), np.flatnonzero(SOURCE.test.labels == 2)[:3]])

    def with_few(made):
        return dataclasses.replace(made, test=made.test.take(few))

    made = with_few(answers(CLASS_TASK, forget=1.0, test=0.9))
    row = audit_rows(CLASS_TASK, original=made, retrained=[], unlearned=made, clean_test_only=False)["original"]
    assert row["mia_loss_accuracy"] is None
    assert "3 held-out samples" in row["reasons"]["mia_loss_accuracy"]
    assert row["mia_loss_auc"] is not None


def only(made, classes):
    """The same answers on a test set that has no other classes."""
    return dataclasses.replace(made, test=made.test.take(np.isin(made.test.labels, classes)))


def test_without_test_samples_of_the_class_its_figures_are_absent_with_the_reason():
    made = only(answers(CLASS_TASK, forget=1.0, test=0.9), (0, 1, 3))
    row = audit_rows(CLASS_TASK, original=made, retrained=[made], unlearned=made, clean_test_only=False)["original"]
    assert row["forget_test_accuracy"] is None
    assert "no sample of the forgotten classes" in row["reasons"]["forget_test_accuracy"]
    assert row["mia_loss_auc"] is None
    assert row["forget_train_accuracy"] == 1.0


def test_without_test_samples_of_what_stays_its_figures_are_absent_with_the_reason():
    made = only(answers(CLASS_TASK, forget=1.0, test=0.9), (2,))
    row = audit_rows(CLASS_TASK, original=made, retrained=[], unlearned=made, clean_test_only=False)["original"]
    for key in ("retain_test_accuracy", "mia_confidence"):
        assert row[key] is None
        assert row["reasons"][key]
    assert row["forget_test_accuracy"] is not None
