"""The figures on the results pages are those of the JSON files beside them."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cujax.audit.verdict import ORDER
from cujax.audit.verdict_words import IN_TABLES, ON_ANSWERS
from cujax.experiments.reproductions import reached
from cujax.reports.control_curve import beside_curve, control_curve

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGES = ("README", "beyond", "in_plain_words")
METRICS = {
    "forget (train)": "forget_train_accuracy",
    "forget (test)": "forget_test_accuracy",
    "retain (train)": "retain_train_accuracy",
    "retain (test)": "retain_test_accuracy",
    "test (all)": "test_accuracy",
    "mean gap": "mean_gap",
    "MIA loss AUC": "mia_loss_auc",
    "MIA confidence, AUC": "mia_confidence_auc",
    "class inference AUC": "class_inference_auc",
    "JS to retrained": "js_to_retrained",
    "activation distance": "activation_distance",
    "agreement": "agreement",
    "probe at hidden": "probe_hidden",
    "probe at z": "probe_z",
    "nearest class mean": "nearest_class_mean",
    "CKA at z, to retrained": "cka_z",
    "relearning ratio": "relearning_ratio",
    "residual knowledge": "residual_knowledge",
}
COMPARISONS = {
    "digits, class 5": ("digits_class", "class:5"),
    "digits, random 10 %, a fifth of the labels wrong": ("digits_sample", "random:0.1"),
    "Fashion-MNIST (10,000), class 5": ("fashion_mnist", "class:5"),
    "Fashion-MNIST (10,000), random 10 %": ("fashion_mnist", "random:0.1"),
}
AUDITS = {
    "deep_contrastive, defaults": "deep_contrastive_default_seed_0",
    "deep_contrastive, tuned by accuracy": "deep_contrastive",
    "deep_contrastive, tuned by features": "deep_contrastive_features_seed_0",
    **{f"deep_contrastive, seed {seed}": f"deep_contrastive_default_seed_{seed}" for seed in range(3)},
    **{f"deep_contrastive, tuned by features, seed {seed}": f"deep_contrastive_features_seed_{seed}" for seed in range(3)},
}
CLASS, SAMPLES = "audits/fashion_mnist_class", "audits/fashion_mnist_sample"


@cache
def load(path):
    return json.loads((RESULTS / path).read_text("utf-8"))


@cache
def measures(path):
    return {measure["key"]: measure for measure in load(path)["audit"]["measures"]}


def value(path, key, who="unlearned"):
    return measures(path)[key]["figures"][who]["value"]


def retrained(path, key):
    values = measures(path)[key]["retrained"]["values"]
    return min(values), max(values)


def between(low, high):
    return f"{low:.3f} to {high:.3f}"


def tables(page):
    """Each as a heading row and its other rows, cells without spaces around them."""
    text = (RESULTS / f"{page}.md").read_text("utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield heading, rows


def rows_by_name(page):
    """The cells of each row by the name at its head; of two with the same name, those of the first."""
    return {name: cells for _, rows in reversed(list(tables(page))) for name, *cells in reversed(rows)}


def in_audit_table(folder, heading, name):
    """What an audit table must say in a cell."""
    key, name = METRICS[heading], name.strip("*")
    path = f"{folder}/{'contrastive' if name.startswith(('original', 'retrained')) else AUDITS.get(name, name)}.json"
    if name == "original":
        return f"{value(path, key, 'original'):.3f}"
    if name.startswith("retrained"):
        return between(*retrained(path, key))
    if value(path, key) is None:
        return "–"
    mark = {"above": " ▲", "below": " ▼"}.get((measures(path)[key]["verdict"] or {}).get("word"), "")
    return f"{value(path, key):.3f}{mark}"


def in_comparison(heading, name):
    name = name.strip("*").split(" ")[0]
    if heading == "GFLOP, Fashion-MNIST class":
        table = load("fashion_mnist/comparison.json")["tables"]["class:5"]
        return f"{table[name]['mean']['gflops']:.0f}" if name in table else "–"
    folder, request = COMPARISONS[heading]
    table = load(f"{folder}/comparison.json")["tables"][request]
    if name not in table:
        return "–"
    return f"{table[name]['mean']['mean_gap']:.4f} ± {table[name]['std']['mean_gap']:.4f}"


def in_digits_table(path, heading, key):
    if heading.startswith("retrained"):
        return between(*retrained(path, key))
    return f"{value(path, key, heading):.3f}"


def expected_cells(page):
    """(row, column, printed, expected) of each cell that has a source."""
    digits = iter(("beyond/audit_digits_class.json", "beyond/audit_digits_sample.json"))
    for heading, rows in tables(page):
        if heading[0] == "method":
            folder = CLASS if "forget (test)" in heading else SAMPLES
            expect = lambda column, name, folder=folder: in_audit_table(folder, column, name)  # noqa: E731
        elif heading[1:2] == ["digits, class 5"]:
            expect = in_comparison
        elif heading[1:3] == ["unlearned", "original"]:
            path = next(digits)
            expect = lambda column, name, path=path: in_digits_table(path, column, name)  # noqa: E731
        else:
            continue
        for name, *cells in rows:
            for column, cell in zip(heading[1:], cells, strict=True):
                yield name, column, cell, expect(column, name)


@pytest.mark.parametrize(("page", "count"), [("README", 700), ("beyond", 200)])
def test_cells_are_those_of_the_files(page, count):
    cells = list(expected_cells(page))
    assert len(cells) >= count
    assert [cell for cell in cells if cell[2] != cell[3]] == []


def audit(name, key, folder=CLASS):
    return value(f"{folder}/{name}.json", key)


def default_seeds(key):
    return [audit(f"deep_contrastive_default_seed_{seed}", key) for seed in range(3)]


def tuned_seeds(key):
    return [audit(f"deep_contrastive_features_seed_{seed}", key) for seed in range(3)]


def gap(folder, request, name):
    return load(f"{folder}/comparison.json")["tables"][request][name]["mean"]["mean_gap"]


def points(name):
    """Loss of test accuracy on noisy digits, in points."""
    table = load("digits_sample/comparison.json")["tables"]["random:0.1"]
    return 100 * (table["original"]["mean"]["retain_test_accuracy"] - table[name]["mean"]["retain_test_accuracy"])


def repeated(who, key):
    """Of the reproductions of three methods on Fashion-MNIST, seed 0."""
    names = ("scrub", "neg_grad_plus", "selective_synaptic_dampening")
    return [load(f"reproductions/{name}.json")["fashion_mnist_class"]["seeds"]["0"][who][key] for name in names]


DEFAULT, LIKE = "deep_contrastive_default_seed_0", f"{CLASS}/contrastive.json"
# Page, sentence with named figures (spaces match line ends), and the figures by name.
SENTENCES = [
    (
        "in_plain_words",
        r"a share of (?P<a>[\d.]+) of its test images is answered right, at (?P<b>[\d.]+) to (?P<c>[\d.]+) of test accuracy "
        r"on the other classes, where the retrained model has (?P<d>\d\.\d+)",
        lambda: {
            "a": max(repeated("unlearned", "forget_test_accuracy")),
            "b": min(repeated("unlearned", "retain_test_accuracy")),
            "c": max(repeated("unlearned", "retain_test_accuracy")),
            "d": max(repeated("retrained", "retain_test_accuracy")),
        },
    ),
    (
        "beyond",
        r"more on seed 1: (?P<a>[\d.]+), where they have at most (?P<b>[\d.]+)\)",
        lambda: {"a": default_seeds("probe_hidden")[1], "b": retrained(LIKE, "probe_hidden")[1]},
    ),
    (
        "beyond",
        r"retained training images \((?P<a>[\d.]+) to (?P<b>[\d.]+); retrained models (?P<c>[\d.]+) to (?P<d>[\d.]+)\)",
        lambda: dict(
            zip(
                "abcd",
                (
                    min(default_seeds("retain_train_accuracy")),
                    max(default_seeds("retain_train_accuracy")),
                    *retrained(LIKE, "retain_train_accuracy"),
                ),
                strict=True,
            )
        ),
    ),
    (
        "beyond",
        r"test accuracy is (?P<a>[\d.]+) to (?P<b>[\d.]+), retained training accuracy (?P<c>[\d.]+) to (?P<d>[\d.]+)",
        lambda: {
            "a": min(tuned_seeds("retain_test_accuracy")),
            "b": max(tuned_seeds("retain_test_accuracy")),
            "c": min(tuned_seeds("retain_train_accuracy")),
            "d": max(tuned_seeds("retain_train_accuracy")),
        },
    ),
    (
        "beyond",
        r"takes (?P<a>[\d.]+) to (?P<b>[\d.]+) of their steps, and class inference has an AUC of at most (?P<c>\d\.\d+)",
        lambda: {
            "a": min(default_seeds("relearning_ratio")),
            "b": max(default_seeds("relearning_ratio")),
            "c": max(default_seeds("class_inference_auc")),
        },
    ),
    (
        "beyond",
        r"Class inference finds it \((?P<a>[\d.]+) to (?P<b>[\d.]+), retrained models at most (?P<c>[\d.]+)\)",
        lambda: {
            "a": min(default_seeds("class_inference_auc")),
            "b": max(default_seeds("class_inference_auc")),
            "c": retrained(LIKE, "class_inference_auc")[1],
        },
    ),
    (
        "beyond",
        r"test samples of the class \(AUC (?P<a>[\d.]+) to (?P<b>[\d.]+)\)",
        lambda: {"a": min(default_seeds("mia_loss_auc")), "b": max(default_seeds("mia_loss_auc"))},
    ),
    (
        "beyond",
        r"defaults: (?P<a>\d+) steps, 43,008 samples, (?P<b>\d+) GFLOP",
        lambda: {
            "a": load(f"{CLASS}/{DEFAULT}.json")["cost"]["unlearned"]["steps"],
            "b": load(f"{CLASS}/{DEFAULT}.json")["cost"]["unlearned"]["flops"] / 1e9,
        },
    ),
    (
        "in_plain_words",
        r"defaults: (?P<a>[\d.]+) of answers agree with a retrained",
        lambda: {"a": audit(DEFAULT, "agreement")},
    ),
    (
        "in_plain_words",
        r"A probe reads (?P<a>[\d.]+) of the class at the embedding and (?P<b>[\d.]+) one layer below",
        lambda: {"a": audit(DEFAULT, "probe_z"), "b": audit(DEFAULT, "probe_hidden")},
    ),
    (
        "in_plain_words",
        r"On seed 1 the probe one layer below reads (?P<a>\d\.\d+)",
        lambda: {"a": default_seeds("probe_hidden")[1]},
    ),
    (
        "in_plain_words",
        r"training images is (?P<a>[\d.]+), where retrained",
        lambda: {"a": audit(DEFAULT, "retain_train_accuracy")},
    ),
    (
        "in_plain_words",
        r"embedding reads (?P<a>[\d.]+) and (?P<b>[\d.]+) of the class \(the original",
        lambda: {"a": audit("unsir", "probe_z"), "b": audit("exact_unlearn_last_k", "probe_z")},
    ),
    (
        "in_plain_words",
        r"retained training images is (?P<a>[\d.]+) and (?P<b>\d\.\d+);",
        lambda: {"a": audit("unsir", "retain_train_accuracy"), "b": audit("exact_unlearn_last_k", "retain_train_accuracy")},
    ),
    (
        "in_plain_words",
        r"`fisher_forgetting`: (?P<a>[\d.]+) to (?P<b>[\d.]+) of the class is answered",
        lambda: {"a": audit("scrub", "forget_test_accuracy"), "b": audit("fisher_forgetting", "forget_test_accuracy")},
    ),
    (
        "in_plain_words",
        r"gap \((?P<a>[\d.]+)\), then `random_labels` and `salun` \((?P<b>[\d.]+) and (?P<c>[\d.]+)\)",
        lambda: {
            letter: gap("digits_sample", "random:0.1", name)
            for letter, name in zip("abc", ("contrastive", "random_labels", "salun"), strict=True)
        },
    ),
    (
        "in_plain_words",
        r"`contrastive` and `salun` (?P<a>[\d.]+) points, `random_labels` (?P<b>\d\.\d)",
        lambda: {"a": points("contrastive"), "b": points("random_labels")},
    ),
    (
        "in_plain_words",
        r"with an AUC of (?P<a>[\d.]+) \(the original (?P<b>[\d.]+);",
        lambda: {
            "a": value("beyond/audit_digits_sample.json", "ulira_auc"),
            "b": value("beyond/audit_digits_sample.json", "ulira_auc", "original"),
        },
    ),
    (
        "README",
        r"on seed 0 the gap is (?P<a>\d\.\d+)",
        lambda: {
            "a": load("fashion_mnist/comparison.json")["tasks"]["random:0.1"]["cells"]["contrastive"]["0"]["row"]["mean_gap"]
        },
    ),
    (
        "README",
        r"ended the run after (?P<a>\d+) steps and kept the parameters of step (?P<b>\d+)",
        lambda: {
            "a": load("fashion_mnist/comparison.json")["tasks"]["random:0.1"]["cells"]["contrastive"]["1"]["cost"]["steps"],
            "b": load("fashion_mnist/comparison.json")["tasks"]["random:0.1"]["cells"]["contrastive"]["1"]["stop"]["step"],
        },
    ),
]


@pytest.mark.parametrize(
    ("page", "pattern", "figures"), SENTENCES, ids=[f"{page}-{n}" for n, (page, _, _) in enumerate(SENTENCES)]
)
def test_sentences_are_those_of_the_files(page, pattern, figures):
    text = " ".join((RESULTS / f"{page}.md").read_text("utf-8").split())
    found = re.search(pattern, text)
    assert found, pattern
    expected = figures()
    assert found.groupdict().keys() == expected.keys()
    for name, printed in found.groupdict().items():
        digits = len(printed.partition(".")[2])
        assert printed == f"{expected[name]:.{digits}f}", name


def test_the_table_of_samples_is_that_of_its_comparison():
    table = load("samples/comparison.json")["tables"]["random:0.1"]
    _, (heading, rows), _ = tables("samples")
    places = {"nearer": "below", "as near": "within", "farther": "above"}
    assert {row[0] for row in rows} == set(table)
    for name, *cells in rows:
        mean = table[name]["mean"] | {"share": table[name]["mean"]["gflops"] / table["retrained"]["mean"]["gflops"]}
        remark = next((text for text in table[name]["remarks"] if "cut short to" in text), "")
        found = [f"{mean[METRICS[column]]:.{4 if column == 'mean gap' else 3}f}" for column in heading[1:-2]]
        place = next((word for begin, word in places.items() if remark.startswith(begin)), "–")
        assert cells == [*found, f"{mean['share']:.2f}", place], name


@pytest.mark.parametrize("slice_", ["v5e:2x4", "v5p:2x4x4", "v5e:16x16"])
def test_the_table_of_slices_is_that_of_the_compiler(slice_):
    found = load(f"compiled/resnet18-{slice_.replace(':', '-')}.json")
    (line,) = (line for line in (RESULTS.parent / "scaling.md").read_text().splitlines() if line.startswith(f"| {slice_} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == str(found["devices"])
    for kind in {one["kind"] for one in found["collectives"]}:
        sizes = [one["size"] for one in found["collectives"] if one["kind"] == kind]
        assert f"{len(sizes)} {kind} ({sum(sizes) / 1e6:.2f} MB)" in cells[3]
    figures = ("sent_mb", "gflop", "temporary_mib", "compute_ms", "send_ms")
    assert cells[4:9] == [f"{found[key]:.{digits}f}" for key, digits in zip(figures, (1, 0, 0, 2, 2), strict=True)]
    assert cells[9] == f"{1 - found['communication_share']:.1%}"


def test_the_table_of_digits_is_that_of_its_comparison():
    found = load("digits/comparison.json")
    table = found["tables"]["class:5"]
    curve = control_curve(table, found["tasks"]["class:5"]["controls"])
    where = beside_curve(table, curve)
    rows = rows_by_name("digits")
    assert rows.keys() == table.keys()
    columns = [("forget_test_accuracy", 3), ("retain_test_accuracy", 3), ("js_to_retrained", 3), ("agreement", 3)]
    for name, row in table.items():
        cells = [
            "–" if row["mean"][key] is None else f"{row['mean'][key]:.{digits}f}"
            for key, digits in (*columns, ("log_odds_to_retrained", 2))
        ]
        ratio = row["mean"]["flops_ratio"]
        cells.append("1.00" if name == "retrained" else "–" if ratio is None else f"{1 / ratio:.2f}")
        assert rows[name][:6] == cells, name
        for word, count in row.get("verdicts", {}).items():
            assert ON_ANSWERS[word] + f" {count}" * (len(row["verdicts"]) > 1) in rows[name][6], name
        assert rows[name][7] == where.get(name, "–"), name


def test_the_sentences_on_digits_are_those_of_its_comparison():
    table = load("digits/comparison.json")["tables"]["class:5"]
    others = {
        name: row
        for name, row in table.items()
        if name not in ("original", "retrained", "mask_logit") and "retrain_" not in name
    }
    gone = {
        name
        for name, row in others.items()
        if row["mean"]["forget_test_accuracy"] == row["std"]["forget_test_accuracy"] == 0
    }
    assert len(gone) == 11
    retained = {name: table[name]["mean"]["retain_test_accuracy"] for name in gone | {"retrained"}}
    assert min(retained.values()) >= retained["retrained"] - 0.0055
    assert max(gone, key=retained.get) == "contrastive"
    operations = {name: 1 / table[name]["mean"]["flops_ratio"] for name in gone}
    assert max(operations, key=operations.get) == "contrastive"
    distances = {name: table[name]["mean"]["js_to_retrained"] for name in gone}
    assert min(distances, key=distances.get) == "deep_contrastive"
    assert all(distances[name] < distances["contrastive"] for name in ("selective_synaptic_dampening", "neg_grad_plus"))
    assert all(set(row["verdicts"]) - {"no_trace", "not_judged"} for row in others.values())


def test_the_plain_words_on_methods_are_those_of_the_files():
    text = " ".join((RESULTS / "in_plain_words.md").read_text("utf-8").split())
    tried = {}
    for path in (RESULTS / "reproductions").glob("*.json"):
        entry = json.loads(path.read_text("utf-8")).get("fashion_mnist_class")
        if entry is not None:
            tried[path.stem] = reached(entry)
    assert f"On Fashion-MNIST, {sum(tried.values())} of {len(tried)} methods do so on all three seeds" in text
    assert all(tried[name] for name in ("scrub", "neg_grad_plus", "selective_synaptic_dampening"))

    def words(config):
        found = {}
        for verdict in load(f"verdicts/{config}.json"):
            found.setdefault(verdict["name"], []).append(verdict["word"])
        return found

    for config in ("digits_class", "fashion_mnist_class_small"):
        for name in ("mask_logit", "contrastive", "salun", "random_labels"):
            assert set(words(config)[name]) == {"hidden"}, (config, name)
    methods = [words("digits_sample"), words("fashion_mnist_sample_small")]
    for found in methods:
        found.pop("original")
        found.pop("retrained")
        assert len(found) == 5
    assert {word for found in methods[0].values() for word in found} == {"damaged", "not_forgotten", "distinguishable"}
    assert methods[1].pop("contrastive") == ["distinguishable"]
    assert list(methods[1].values()) == [["not_forgotten"]] * 4
    table = load("digits/comparison.json")["tables"]["class:5"]
    where = beside_curve(table, control_curve(table, load("digits/comparison.json")["tasks"]["class:5"]["controls"]))
    assert {name for name, place in where.items() if place == "below"} == {"selective_synaptic_dampening", "unsir"}


CIFAR10 = "cifar10/comparison.json"
# Headings of the tables of comparisons: metric and decimals.
COLUMNS = {
    "class (test)": ("forget_test_accuracy", 3),
    "retained (test)": ("retain_test_accuracy", 3),
    "samples (train)": ("forget_train_accuracy", 3),
    "test": ("retain_test_accuracy", 3),
    "loss AUC": ("mia_loss_auc", 3),
    "JS": ("js_to_retrained", 3),
    "agreement": ("agreement", 3),
    "mean gap": ("mean_gap", 4),
    "probe, embedding": ("probe_z", 3),
    "probe, below it": ("probe_below_z", 3),
    "steps to relearn": ("relearning_steps", 0),
}


def in_words(row):
    """The verdicts of a row with the number of seeds of each, the worst first."""
    verdicts = sorted(row.get("verdicts", {}).items(), key=lambda item: -ORDER.index(item[0]))
    return ", ".join(IN_TABLES[word] + f" {count}" * (len(verdicts) > 1) for word, count in verdicts) or "–"


@pytest.mark.parametrize(
    ("page", "number", "path", "word"),
    [
        ("cifar10", 0, CIFAR10, "class:5"),
        ("fashion_mnist_class", 0, "fashion_mnist_class/comparison.json", "class:5"),
        ("samples", 0, "fashion_mnist_sample/comparison.json", "random:0.1"),
        ("other_inputs", 0, "other_inputs/vowels.json", "class:4"),
        ("other_inputs", 1, "other_inputs/wine.json", "class:1"),
        ("other_inputs", 2, "other_inputs/digit_rows.json", "random:0.1"),
    ],
)
def test_the_tables_of_comparisons_are_those_of_their_files(page, number, path, word):
    found = load(path)
    table = found["tables"][word]
    where = beside_curve(table, control_curve(table, found["tasks"][word]["controls"]))
    heading, rows = list(tables(page))[number]
    assert heading[-3:] == ["operations", "verdict", "beside the control"]
    assert {row[0] for row in rows} == set(table)
    for name, *cells in rows:
        mean = table[name]["mean"]
        expected = []
        for key, digits in (COLUMNS[column] for column in heading[1:-3]):
            expected.append("–" if mean.get(key) is None else f"{mean[key]:.{digits}f}")
        ratio = mean["flops_ratio"]
        expected.append("1.00" if name == "retrained" else "–" if ratio is None else f"{1 / ratio:.2f}")
        expected.append(in_words(table[name]))
        assert cells == [*expected, where.get(name, "–")], name


def test_the_sentences_on_the_class_of_fashion_mnist_are_those_of_its_comparison():
    table = load("fashion_mnist_class/comparison.json")["tables"]["class:5"]
    methods = {name: row for name, row in table.items() if row.get("verdicts") and "retrain_" not in name}
    passing = {name: row["verdicts"].get("no_trace", 0) for name, row in table.items() if row.get("verdicts")}
    assert {name for name in methods if passing[name]} == {"deep_contrastive"}
    assert passing["deep_contrastive"] == 1
    assert passing["retrain_short_40"] == passing["retrain_short_60"] == 2
    assert set(table["retrain_short_10"]["verdicts"]) == {"damaged"}
    hiding = [table[f"{name}@reproduction"]["mean"] for name in ("neg_grad_plus", "scrub", "contrastive")]
    probes = [row["probe_below_z"] for row in hiding]
    assert (f"{min(probes):.3f}", f"{max(probes):.3f}") == ("0.882", "0.958")
    assert min(probes) == hiding[0]["probe_below_z"]
    assert all(row["retain_test_accuracy"] > table["retrained"]["mean"]["retain_test_accuracy"] - 0.0015 for row in hiding)
    found = load("fashion_mnist_class/comparison.json")
    where = beside_curve(table, control_curve(table, found["tasks"]["class:5"]["controls"]))
    assert "below" not in where.values()


def test_the_first_table_of_the_readme_is_that_of_the_comparisons():
    lines = (RESULTS.parents[1] / "README.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| forgotten | by |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : start + 8]]
    rows = [("fashion_mnist_class", "class:5", name) for name in ("contrastive@reproduction", "deep_contrastive")]
    rows += [("fashion_mnist_class", "class:5", "retrain_short_40")]
    rows += [("fashion_mnist_sample", "random:0.1", name) for name in ("contrastive", "margin_matching", "retrain_short_40")]
    for (folder, word, name), (_, _, verdict, retained, operations) in zip(rows, cells, strict=True):
        table = load(f"{folder}/comparison.json")["tables"][word]
        mean, key = table[name]["mean"], "retain_test_accuracy"
        assert verdict == in_words(table[name]), name
        assert retained == f"{mean[key]:.3f} ({table['retrained']['mean'][key]:.3f})", name
        assert operations == f"{1 / mean['flops_ratio']:.2f}", name


def test_the_sentences_on_samples_are_those_of_their_comparison():
    table = load("fashion_mnist_sample/comparison.json")["tables"]["random:0.1"]
    assert table["margin_matching"]["verdicts"] == {"no_trace": 2, "not_forgotten": 1}
    assert table["contrastive"]["verdicts"]["hidden"] == 2
    assert table["retrain_short_40"]["verdicts"] == table["retrain_short_60"]["verdicts"] == {"no_trace": 3}
    mean = {name: row["mean"] for name, row in table.items()}
    assert mean["contrastive"]["mean_gap"] < 0.55 * mean["margin_matching"]["mean_gap"]
    text = " ".join((RESULTS / "samples.md").read_text("utf-8").split())
    matched, retrained = mean["margin_matching"], mean["retrained"]

    def pairs(*keys):
        return "; ".join(" and ".join(f"{row[key]:.3f}" for key in keys) for row in (matched, retrained))

    assert f"JS and agreement are theirs ({pairs('js_to_retrained', 'agreement')})" in text
    assert f"AUC are above theirs ({pairs('forget_train_accuracy', 'mia_loss_auc')})" in text
    steps = f"{matched['relearning_steps']:.0f} steps where retrained models take {retrained['relearning_steps']:.0f}"
    assert steps in text
    js = f"its JS ({mean['contrastive']['js_to_retrained']:.3f}) is beyond the untouched original's"
    assert f"{js} ({mean['original']['js_to_retrained']:.3f})" in text
    assert f"relearned in {mean['contrastive']['relearning_steps']:.0f} steps. On two seeds it hides them." in text


def test_the_answers_on_cifar10_give_the_accuracies_and_agreements_of_the_table():
    with np.load(RESULTS / "cifar10" / "answers.npz", allow_pickle=False) as stored:
        answers = dict(stored)
    task = load(CIFAR10)["tasks"]["class:5"]
    retrained = [answers[f"forget_answers/retrained_{number}"] for number in range(3)]
    of_class = answers["test_labels"] == 5
    rows = {"original": task["references"]["0"]["original"]} | {
        name: cells["0"]["row"] for name, cells in task["cells"].items()
    }
    for name, row in rows.items():
        test, forget = answers[f"test_answers/{name}"], answers[f"forget_answers/{name}"]
        right = test == answers["test_labels"]
        assert np.mean(right[of_class]) == pytest.approx(row["forget_test_accuracy"])
        assert np.mean(right[~of_class]) == pytest.approx(row["retain_test_accuracy"])
        assert np.mean(forget == answers["forget_labels"]) == pytest.approx(row["forget_train_accuracy"])
        assert np.mean([np.mean(forget == other) for other in retrained]) == pytest.approx(row["agreement"])
        logits = answers[f"forget_logits/{name}"]
        assert np.mean(logits.argmax(axis=1) == forget[: len(logits)]) > 0.995  # float16 has ties
    assert load("cifar10/digests.json").keys() == rows.keys() | {f"retrained_{number}" for number in range(3)}


def test_the_curves_on_cifar10_are_the_stored_ones():
    curves = load("cifar10/training.json")
    retrained = np.mean([curves[f"retrained_{number}"]["train_accuracy"] for number in range(3)], axis=0)
    rows = rows_by_name("cifar10")
    assert rows["retrained models, mean"] == [f"{value:.3f}" for value in retrained]
    stored = curves["original"]["train_accuracy"]
    lines = [line for line in (RESULTS / "cifar10.md").read_text().splitlines() if line.startswith("| original |")]
    assert [cell.strip() for cell in lines[-1].split("|")[2:-1]] == [f"{value:.3f}" for value in stored]
