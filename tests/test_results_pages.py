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
from cujax.reports.gap4 import gap4

RESULTS = Path(__file__).parents[1] / "docs" / "results"
METRICS = {
    "forget (train)": "forget_train_accuracy",
    "retain (test)": "retain_test_accuracy",
    "mean gap": "mean_gap",
    "MIA loss AUC": "mia_loss_auc",
    "JS to retrained": "js_to_retrained",
}


@cache
def load(path):
    return json.loads((RESULTS / path).read_text("utf-8"))


def tables(page):
    """Each as a heading row and its other rows, cells without spaces around them."""
    text = (RESULTS / f"{page}.md").read_text("utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield heading, rows


def sentences(page):
    """The text of a page on one line."""
    return " ".join((RESULTS / f"{page}.md").read_text("utf-8").split())


def rows_by_name(page):
    """The cells of each row by the name at its head; of two with the same name, those of the first."""
    return {name: cells for _, rows in reversed(list(tables(page))) for name, *cells in reversed(rows)}


def test_the_table_of_samples_is_that_of_its_comparison():
    table = load("samples/comparison.json")["tables"]["random:0.1"]
    _, (heading, rows), *_ = tables("samples")
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
    text = sentences("in_plain_words")
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
CIFAR10_SAMPLES = "cifar10_sample/comparison.json"
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
        ("cifar10", 1, CIFAR10_SAMPLES, "random:0.1"),
        ("fashion_mnist_class", 0, "fashion_mnist_class/comparison.json", "class:5"),
        ("samples", 0, "fashion_mnist_sample/comparison.json", "random:0.1"),
        ("samples", 3, "digits_sample/comparison.json", "random:0.1"),
        ("samples", 4, "digits_memorised/comparison.json", "ids:ids.txt"),
        ("other_inputs", 0, "other_inputs/vowels.json", "class:4"),
        ("other_inputs", 1, "other_inputs/wine.json", "class:1"),
        ("other_inputs", 2, "other_inputs/digit_rows.json", "random:0.1"),
    ],
)
def test_the_tables_of_comparisons_are_those_of_their_files(page, number, path, word):
    found = load(path)
    table = found["tables"][word]
    curve = control_curve(table, found["tasks"][word]["controls"])
    where = {} if curve is None else beside_curve(table, curve)
    heading, rows = list(tables(page))[number]
    assert heading[-3:] == ["operations", "verdict", "relative to the control"]
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
    found = load("fashion_mnist_class/comparison.json")
    table = found["tables"]["class:5"]
    mean = {name: row["mean"] for name, row in table.items()}
    passing = {name: row["verdicts"].get("no_trace", 0) for name, row in table.items() if row.get("verdicts")}
    assert {name for name, count in passing.items() if count and "retrain_" not in name} == {"deep_contrastive"}
    assert passing["deep_contrastive"] == 1
    assert passing["retrain_short_40"] == passing["retrain_short_60"] == 2
    assert set(table["retrain_short_10"]["verdicts"]) == {"damaged"}

    others = {name for name in passing if "retrain_" not in name} - {"mask_logit"}
    floor = mean["original"]["retain_test_accuracy"] - 0.02
    gone = {
        name for name in others if mean[name]["forget_test_accuracy"] <= 0.01 and mean[name]["retain_test_accuracy"] >= floor
    }
    assert len({name for name in gone if "contrastive" not in name}) == 13
    stay = {"boundary_expand", "fisher_forgetting", "gradient_ascent", "influence_unlearning"}
    assert all(mean[name]["forget_test_accuracy"] > 0.9 for name in stay)

    text = sentences("fashion_mnist_class")
    hiding = ["scrub", "salun", "random_labels", "neg_grad_plus", "exact_unlearn_last_k", "contrastive"]
    hiding = [f"{name}@reproduction" for name in hiding] + ["unsir", "selective_synaptic_dampening"]
    probes = [mean[name]["probe_below_z"] for name in hiding]
    retrained = mean["retrained"]
    assert (
        f"a probe one layer below the embedding still recognises {min(probes):.3f} to {max(probes):.3f} of the forgotten "
        f"samples, compared with {retrained['probe_below_z']:.3f} for retrained models"
    ) in text
    assert all(mean[name]["retain_test_accuracy"] > retrained["retain_test_accuracy"] - 0.007 for name in hiding)

    def pairs(*keys, of):
        return "; retrained models ".join(" and ".join(f"{row[key]:.3f}" for key in keys) for row in (mean[of], retrained))

    assert f"({pairs('probe_z', 'probe_below_z', of='deep_contrastive')})" in text
    co_un = mean["co_un@reproduction"]
    assert (
        f"(JS {co_un['js_to_retrained']:.3f}, agreement {co_un['agreement']:.3f}; "
        f"retrained models {retrained['js_to_retrained']:.3f} and {retrained['agreement']:.3f})"
    ) in text
    assert f"a probe at the embedding recognises {co_un['probe_z']:.3f} of the forgotten samples" in text
    assert f"It takes {1 / co_un['flops_ratio']:.2f} times the operations" in text
    costs = [
        retrained["retain_test_accuracy"] - mean[f"{name}@reproduction"]["retain_test_accuracy"]
        for name in ("layer_negation", "l1_sparse")
    ]
    assert "at a cost of {:.1f} and {:.1f} points of retained test accuracy".format(*(100 * cost for cost in costs)) in text
    where = beside_curve(table, control_curve(table, found["tasks"]["class:5"]["controls"]))
    assert "below" not in where.values()
    assert {name.split("@")[0] for name, place in where.items() if place == "within"} == {"co_un", "unsir", "layer_negation"}


def test_the_first_table_of_the_readme_is_that_of_the_comparisons():
    lines = (RESULTS.parents[1] / "README.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| forgotten | by |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : start + 8]]
    of_class = ("contrastive@reproduction", "deep_contrastive", "retrain_short_70")
    of_samples = ("contrastive_adam", "margin_matching", "shrink_perturb")
    rows = [(CIFAR10, "class:5", name) for name in of_class] + [(CIFAR10_SAMPLES, "random:0.1", name) for name in of_samples]
    for (file, word, name), (_, _, verdict, retained, operations) in zip(rows, cells, strict=True):
        table = load(file)["tables"][word]
        mean, key = table[name]["mean"], "retain_test_accuracy"
        assert verdict == in_words(table[name]), name
        assert retained == f"{mean[key]:.3f} ({table['retrained']['mean'][key]:.3f})", name
        assert operations == f"{1 / mean['flops_ratio']:.2f}", name


def test_the_sentences_on_samples_are_those_of_their_comparison():
    table = load("fashion_mnist_sample/comparison.json")["tables"]["random:0.1"]
    assert table["margin_matching"]["verdicts"] == {"no_trace": 1, "hidden": 1, "not_forgotten": 1}
    assert table["contrastive"]["verdicts"]["hidden"] == 2
    for name in ("retrain_short_40", "retrain_short_60", "shrink_perturb"):
        assert table[name]["verdicts"] == {"no_trace": 3}
    mean = {name: row["mean"] for name, row in table.items()}
    assert mean["contrastive"]["mean_gap"] < 0.55 * mean["margin_matching"]["mean_gap"]
    text = sentences("samples")
    matched, retrained, mixed = mean["margin_matching"], mean["retrained"], mean["shrink_perturb"]
    keys = ("mia_loss_auc", "js_to_retrained", "agreement")
    theirs, its = ([f"{row[key]:.3f}" for key in keys] for row in (retrained, mixed))
    assert (
        f"(AUC {its[0]}, JS {its[1]}, agreement {its[2]}; retrained models {theirs[0]}, {theirs[1]} and {theirs[2]})"
    ) in text
    steps = [f"{row['relearning_steps']:.0f}" for row in (mixed, retrained)]
    assert "the samples are relearned in {} steps, compared with {}.".format(*steps) in text

    def pairs(*keys):
        return "; retrained models ".join(" and ".join(f"{row[key]:.3f}" for key in keys) for row in (matched, retrained))

    assert f"JS and agreement are the same as theirs ({pairs('js_to_retrained', 'agreement')})" in text
    assert f"AUC of the attack are higher ({pairs('forget_train_accuracy', 'mia_loss_auc')})" in text
    steps = (
        f"{matched['relearning_steps']:.0f} steps, compared with {retrained['relearning_steps']:.0f} for retrained models"
    )
    assert steps in text
    js = f"its JS ({mean['contrastive']['js_to_retrained']:.3f}) is higher than that of the untouched original"
    assert f"{js} ({mean['original']['js_to_retrained']:.3f})" in text
    assert f"relearned in {mean['contrastive']['relearning_steps']:.0f} steps. On two seeds, it hides them." in text


def test_the_table_of_contrast_below_the_last_layer_is_that_of_its_comparison():
    task = load("fashion_mnist_class/comparison.json")["tasks"]["class:5"]
    (heading, rows), others = tables("beyond")
    keys = [COLUMNS[column] for column in heading[2:]]
    expected = []
    for seed, cell in task["cells"]["deep_contrastive"].items():
        expected.append(
            [seed, IN_TABLES[cell["verdict"]["word"]], *(f"{cell['row'][key]:.{digits}f}" for key, digits in keys)]
        )
        reference = task["references"][seed]["retrained"]
        ends = [[f"{end(row[key] for row in reference):.{digits}f}" for end in (min, max)] for key, digits in keys]
        expected.append([seed, "retrained, lowest to highest", *(" to ".join(pair) for pair in ends)])
        assert cell["row"]["js_to_retrained"] > max(row["js_to_retrained"] for row in reference)
        assert cell["row"]["agreement"] < min(row["agreement"] for row in reference)
    assert rows == expected
    stored = {
        "digits, class 5, seeds 0 to 2": "digits_class",
        "Fashion-MNIST, 10 % at random, 20 small retrained models": "fashion_mnist_sample_small",
        "digits with noisy labels, 10 % at random, seeds 0 to 2": "digits_sample",
    }
    named = {name: words for name, words, _ in others[1]}
    assert named.keys() - stored.keys() == {"CIFAR-10, class 5, one seed"}
    for name, config in stored.items():
        found = [verdict["word"] for verdict in load(f"verdicts/{config}.json") if verdict["name"] == "deep_contrastive"]
        counts = {word: found.count(word) for word in sorted(set(found), key=lambda word: -ORDER.index(word))}
        words = ", ".join(IN_TABLES[word] + f" {count}" * (len(found) > 1) for word, count in counts.items())
        assert named[name] == words, name
    assert named["CIFAR-10, class 5, one seed"] == in_words(load(CIFAR10)["tables"]["class:5"]["deep_contrastive"])


def test_the_sentences_on_noisy_digits_are_those_of_their_comparisons():
    text = sentences("samples")
    noisy = load("digits_sample/comparison.json")["tables"]["random:0.1"]
    assert {name for name, row in noisy.items() if row.get("verdicts") == {"no_trace": 3}} == {
        "retrain_short_60",
        "shrink_perturb",
    }
    assert {name for name, row in noisy.items() if row.get("verdicts", {}).get("no_trace")} == {
        "retrain_short_40",
        "retrain_short_60",
        "shrink_perturb",
    }
    assert noisy["retrain_short_40"]["verdicts"]["no_trace"] == 1
    mixed, short, matched = (noisy[name]["mean"] for name in ("shrink_perturb", "retrain_short_40", "margin_matching"))
    assert f"(JS {mixed['js_to_retrained']:.3f}, agreement {mixed['agreement']:.3f})" in text
    assert f"passes on one seed (JS {short['js_to_retrained']:.3f})" in text
    assert f"nearest answers of the methods** (JS {matched['js_to_retrained']:.3f})" in text
    accuracy = [noisy[name]["mean"]["retain_test_accuracy"] for name in ("margin_matching", "retrained")]
    assert "Its test accuracy ({:.3f}) is higher than that of retrained models ({:.3f})".format(*accuracy) in text
    known = noisy["retrained"]["mean"]["forget_train_accuracy"]
    assert f"so the accuracy of retrained models on the samples is {known:.3f} here" in text
    hard = load("digits_memorised/comparison.json")["tables"]["ids:ids.txt"]
    assert not any("no_trace" in row.get("verdicts", {}) for row in hard.values())
    mixed, retrained = hard["shrink_perturb"]["mean"], hard["retrained"]["mean"]
    assert (
        f"predicts the given labels for {mixed['forget_train_accuracy']:.3f} of the samples, and only its answers "
        f"(JS {mixed['js_to_retrained']:.3f}) distinguish it from retrained models ({retrained['js_to_retrained']:.3f})"
    ) in text
    assert hard["shrink_perturb"]["verdicts"] == {"distinguishable": 3}
    left = [
        hard[name]["mean"]["forget_train_accuracy"]
        for name in ("retrained", "margin_matching", "contrastive", "neg_grad_plus")
    ]
    assert (
        "Retrained models predict the given labels for {:.3f} of these samples, margin matching for {:.3f}, "
        "contrastive unlearning for {:.3f}, NegGrad+ for {:.3f}, and fine-tuning for nearly all".format(*left)
    ) in text
    assert f"{hard['retrain_short_40']['mean']['agreement']:.3f} of its answers agree with those of retrained models" in text
    rows = load("other_inputs/digit_rows.json")["tables"]["random:0.1"]
    after = [cells[-1] for cells in list(tables("samples"))[7][1]]
    assert after == [
        f"{noisy['margin_matching']['mean']['js_to_retrained']:.3f}",
        f"{left[1]:.3f}",
        f"{hard['margin_matching']['mean']['relearning_steps']:.0f}",
        in_words(rows["margin_matching"]),
        f"{rows['margin_matching']['mean']['js_to_retrained']:.3f}",
    ]
    ids = (RESULTS / "digits_memorised" / "ids.txt").read_text("utf-8").split()
    assert len(set(ids)) == 130


def test_the_figures_of_undo_on_fashion_mnist_are_those_of_its_comparison():
    text = sentences("fashion_mnist_class")
    table = load("fashion_mnist_class/undo.json")["tables"]["class:5"]
    mean, retrained = table["undo"]["mean"], table["retrained"]["mean"]
    assert table["undo"]["verdicts"] == {"distinguishable": 1, "no_trace": 2}
    assert (
        f"retained accuracy {mean['retain_test_accuracy']:.3f} (retrained models {retrained['retain_test_accuracy']:.3f}), "
        f"JS {mean['js_to_retrained']:.3f}, {mean['relearning_steps']:.0f} steps to relearn, at "
        f"{1 / mean['flops_ratio']:.2f} of the operations"
    ) in text
    of_table = load("fashion_mnist_class/comparison.json")["tables"]["class:5"]["retrained"]["mean"]
    assert retrained["js_to_retrained"] == pytest.approx(of_table["js_to_retrained"])


def test_the_sentences_on_cifar10_are_those_of_its_comparison():
    text = sentences("cifar10")
    table = load(CIFAR10)["tables"]["class:5"]
    mean = {name: row["mean"] for name, row in table.items()}
    assert not any("no_trace" in row.get("verdicts", {}) for row in table.values())
    retrained, short = mean["retrained"], mean["retrain_short_70"]
    loss = 100 * (retrained["retain_test_accuracy"] - short["retain_test_accuracy"])
    assert f"costs {loss:.1f} points of retained accuracy" in text
    assert table["retrain_short_70"]["verdicts"] == {"damaged": 1}
    own = mean["contrastive@reproduction"]
    assert (
        f"{own['forget_test_accuracy']:.3f} of the class is classified correctly, and retained accuracy is "
        f"{own['retain_test_accuracy']:.3f}, that of retrained models, at {1 / own['flops_ratio']:.2f} of the operations"
    ) in text
    assert round(own["retain_test_accuracy"], 3) == round(retrained["retain_test_accuracy"], 3)
    assert f"(AUC {own['mia_loss_auc']:.3f}; retrained models {retrained['mia_loss_auc']:.3f})" in text
    assert (
        f"a probe recognises {own['probe_z']:.3f} of the forgotten samples, compared with {retrained['probe_z']:.3f} for "
        "retrained models"
    ) in text
    undo = mean["undo"]
    assert (
        f"At {1 / undo['flops_ratio']:.2f} of the operations its JS is {undo['js_to_retrained']:.3f} and its agreement "
        f"{undo['agreement']:.3f} (between retrained models {retrained['js_to_retrained']:.3f} and "
        f"{retrained['agreement']:.3f}), and its retained accuracy is {undo['retain_test_accuracy']:.3f}, more than "
        f"retraining cut short reaches at {1 / short['flops_ratio']:.2f} ({short['retain_test_accuracy']:.3f})"
    ) in text
    pair, of_retrained = (f"{row['probe_z']:.3f} and {row['probe_below_z']:.3f}" for row in (undo, retrained))
    assert f"probes recognise {pair} (retrained models {of_retrained})" in text
    methods = {name for name, row in table.items() if row.get("verdicts") and "retrain_" not in name} - {"undo"}
    nearest = sorted(methods, key=lambda name: mean[name]["js_to_retrained"])
    assert nearest[:2] == ["mask_logit", "neg_grad_plus@reproduction"]
    mask, plus, deep = (mean[name] for name in (*nearest[:2], "deep_contrastive"))
    assert (
        f"JS {mask['js_to_retrained']:.3f} and agreement {mask['agreement']:.3f}, compared with "
        f"{plus['js_to_retrained']:.3f} and {plus['agreement']:.3f} for NegGrad+"
    ) in text
    assert f"{plus['forget_test_accuracy']:.3f} of the class is still classified correctly" in text
    assert f"a probe at the embedding recognises {plus['probe_z']:.3f} of the forgotten samples." in text
    assert f"its probes recognise {deep['probe_z']:.3f} and {deep['probe_below_z']:.3f}" in text
    left = [mean[f"{name}@reproduction"]["forget_test_accuracy"] for name in ("scrub", "salun")]
    assert "still classify {:.3f} and {:.3f} of it correctly here".format(*left) in text
    quarter = mean["retrain_short_20"]["retain_test_accuracy"]
    assert (
        f"its retained accuracy is {quarter:.3f}, compared with {plus['retain_test_accuracy']:.3f} for NegGrad+ at the same "
        "number of operations"
    ) in text


def test_the_sentences_on_samples_of_cifar10_are_those_of_its_comparison():
    text, plain = sentences("cifar10"), sentences("in_plain_words")
    found = load(CIFAR10_SAMPLES)
    table = found["tables"]["random:0.1"]
    mean = {name: row["mean"] for name, row in table.items()}
    original, retrained, mixed, short = (
        mean[name] for name in ("original", "retrained", "shrink_perturb", "retrain_short_40")
    )
    assert found["tasks"]["random:0.1"]["cells"]["shrink_perturb"]["0"]["verdict"]["faults"] == []
    assert (
        f"at {1 / mixed['flops_ratio']:.2f} of the operations: {mixed['forget_train_accuracy']:.3f} of the samples are "
        f"classified correctly (retrained models {retrained['forget_train_accuracy']:.3f}), and the attack on the loss is "
        f"at {mixed['mia_loss_auc']:.3f} ({retrained['mia_loss_auc']:.3f})"
    ) in text
    assert abs(short["gflops"] / mixed["gflops"] - 1) < 0.01
    lost = 100 * (retrained["retain_test_accuracy"] - short["retain_test_accuracy"])
    assert f"cut short to the same operations loses {lost:.1f} points of test accuracy" in text
    assert f"the original classifies {original['forget_train_accuracy']:.3f} of the samples correctly" in text
    assert original["js_to_retrained"] < retrained["js_to_retrained"]
    names = ("contrastive_adam", "neg_grad_plus_adam", "margin_matching")
    first, second, third = (f"{mean[name]['forget_train_accuracy']:.3f}" for name in names)
    assert f"{first}, {second} and {third} of them are still classified correctly" in text
    cost = 100 * (retrained["retain_test_accuracy"] - mean["undo"]["retain_test_accuracy"])
    assert f"forgets them and costs {cost:.1f} points of test accuracy" in text
    expected = gap4(found, "random:0.1")
    rows = [row for row in expected.rows if "published" not in row[0]]
    heading, shown = list(tables("cifar10"))[2]
    assert (heading, shown) == (expected.columns, rows)
    gaps = {row[0]: row[-1].split(" ")[0] for row in rows}
    assert f"the gap of one retrained model to the others is already {gaps['retrained']}" in text
    assert (
        f"its mean gap is {gaps['shrink_perturb']} points; that of one retrained model to the others is {gaps['retrained']}"
        f". Retraining cut short to the same operations has {gaps['retrain_short_40']}."
    ) in plain
    other = sentences("not_reproduced")
    assert f"the smallest is {gaps['shrink_perturb']} points (`shrink_perturb`)" in other
    assert f"the gap of one retrained model to the others is {gaps['retrained']}" in other
    assert f"Contrastive unlearning has {gaps['contrastive_adam']}, and 0.61" in other
    assert min(float(gaps[name]) for name in gaps.keys() - {"retrained"}) == float(gaps["shrink_perturb"])


def test_the_claims_and_their_figures_are_those_of_the_comparisons():
    table, samples = load(CIFAR10)["tables"]["class:5"], load(CIFAR10_SAMPLES)["tasks"]["random:0.1"]
    retrained = table["retrained"]["mean"]
    both = [table[f"contrastive@{which}"] for which in ("published", "reproduction")]
    (_, claims), (_, methods), (_, aims) = tables("not_reproduced")
    for row, key in zip(
        claims, ("forget_test_accuracy", "retain_test_accuracy", None, "mia_loss_auc", "probe_z"), strict=False
    ):
        if key is not None:
            of_retrained = f" (retrained {retrained[key]:.3f})" if key != "forget_test_accuracy" else ""
            assert row[2:4] == [f"{found['mean'][key]:.3f}{of_retrained}" for found in both]
    others = [1 / table[f"{name}@reproduction"]["mean"]["flops_ratio"] for name in ("neg_grad_plus", "salun", "scrub")]
    share = [f"{1 / found['mean']['flops_ratio']:.2f}" for found in both]
    assert claims[2][2:4] == [share[0], share[1] + " (NegGrad+ {:.2f}, SalUn {:.2f}, SCRUB {:.2f})".format(*others)]

    def score(row):
        return abs(row["test_accuracy"] - row["forget_train_accuracy"])

    cell, references = samples["cells"]["contrastive_adam"]["0"], samples["references"]["0"]
    mean = np.mean([score(row) for row in references["retrained"]])
    assert claims[5][3] == f"{score(cell['row']):.3f} (retrained {mean:.3f}, original {score(references['original']):.3f})"
    assert [word for found in both for word in found["verdicts"]] == ["damaged", "not_forgotten"]
    assert cell["verdict"]["word"] == "not_forgotten"

    missed = {}
    for path in sorted((RESULTS / "reproductions").glob("*.json")):
        entries = json.loads(path.read_text("utf-8"))
        if not any(reached(entry) for entry in entries.values()):
            missed[path.stem] = entries.get("fashion_mnist_class") or entries["digits_class"]
    assert [row[0].strip("`") for row in methods] == list(missed)
    for row, entry in zip(methods, missed.values(), strict=True):
        seeds = entry["seeds"].values()
        assert row[2] == ", ".join(f"{seed['unlearned']['forget_test_accuracy']:.3f}" for seed in seeds)
        key = "retain_test_accuracy"
        points = [100 * (seed["unlearned"][key] - seed["retrained"][key]) for seed in seeds]
        assert row[3] == ", ".join(f"{value:+.1f}" for value in points)
    assert len(aims) == 5


@pytest.mark.parametrize(("folder", "word", "n"), [("cifar10", "class:5", 8), ("cifar10_sample", "random:0.1", 5)])
def test_the_answers_on_cifar10_give_the_accuracies_and_agreements_of_the_table(folder, word, n):
    with np.load(RESULTS / folder / "answers.npz", allow_pickle=False) as stored:
        answers = dict(stored)
    task = load(f"{folder}/comparison.json")["tasks"][word]
    retrained = [answers[f"forget_answers/retrained_{number}"] for number in range(n)]
    of_class = answers["test_labels"] == (5 if word == "class:5" else -1)
    rows = {"original": task["references"]["0"]["original"]} | {
        name: cells["0"]["row"] for name, cells in task["cells"].items()
    }
    for name, row in rows.items():
        test, forget = answers[f"test_answers/{name}"], answers[f"forget_answers/{name}"]
        right = test == answers["test_labels"]
        if of_class.any():
            assert np.mean(right[of_class]) == pytest.approx(row["forget_test_accuracy"])
        assert np.mean(right[~of_class]) == pytest.approx(row["retain_test_accuracy"])
        assert np.mean(forget == answers["forget_labels"]) == pytest.approx(row["forget_train_accuracy"])
        assert np.mean([np.mean(forget == other) for other in retrained]) == pytest.approx(row["agreement"])
        logits = answers[f"forget_logits/{name}"]
        assert np.mean(logits.argmax(axis=1) == forget[: len(logits)]) > 0.995  # float16 has ties
    assert load(f"{folder}/digests.json").keys() == rows.keys() | {f"retrained_{number}" for number in range(n)}


def test_the_curves_on_cifar10_are_the_stored_ones():
    curves = load("cifar10/training.json")
    retrained = np.mean([curves[f"retrained_{number}"]["train_accuracy"] for number in range(8)], axis=0)
    rows = rows_by_name("cifar10")
    assert rows["retrained models, mean"] == [f"{value:.3f}" for value in retrained]
    stored = curves["original"]["train_accuracy"]
    lines = [line for line in (RESULTS / "cifar10.md").read_text().splitlines() if line.startswith("| original |")]
    assert [cell.strip() for cell in lines[-1].split("|")[2:-1]] == [f"{value:.3f}" for value in stored]


def test_the_tables_of_the_defaults_are_those_of_their_comparisons():
    kinds = {
        "class": ("digits_class_0_to_2", "fashion_mnist_class_0_to_2", "digits_class_3_to_7", "fashion_mnist_class_3_to_7"),
        "samples": (
            "../digits_sample/comparison",
            "../fashion_mnist_sample/comparison",
            "digits_sample_3_to_7",
            "fashion_mnist_sample_3_to_4",
        ),
    }
    for (kind, names), (_, rows) in zip(kinds.items(), tables("defaults"), strict=True):
        word = "class:5" if kind == "class" else "random:0.1"
        found = [load(f"defaults/{name}.json")["tables"][word] for name in names]
        for name, *cells, operations in rows:
            ours = [table.get(name) or table.get(f"{name}@reproduction") for table in found]
            assert cells == ["–" if row is None else in_words(row) for row in ours], name
            ratio = ours[1] and ours[1]["mean"]["flops_ratio"]
            assert operations == (f"{1 / ratio:.2f}" if ratio else "–"), name
        passed = {
            name: sum((table.get(name) or {}).get("verdicts", {}).get("no_trace", 0) for table in found[:2])
            for name, *_ in rows
        }
        expected = {"class": ("retrain_short_70", 5), "samples": ("shrink_perturb", 6)}[kind]
        assert (rows[0][0], passed[rows[0][0]]) == expected
        assert max(passed.values()) == expected[1]
    others = {
        name: load(f"defaults/{name}.json")["tables"] for name in ("digits_class_3_to_7", "fashion_mnist_class_3_to_7")
    }
    passed = [tables["class:5"]["retrain_short_70"]["verdicts"]["no_trace"] for tables in others.values()]
    assert passed == [3, 4]
    text = sentences("defaults")
    assert "it passes on three of five on digits and on four of five on Fashion-MNIST" in text
    of_samples = [load(f"defaults/{name}.json")["tables"]["random:0.1"] for name in kinds["samples"][2:]]
    assert [table["shrink_perturb"]["verdicts"]["no_trace"] for table in of_samples] == [4, 2]
    assert of_samples[0]["retrain_short_40"]["verdicts"]["no_trace"] == 2
    assert all(table["retrain_short_60"]["verdicts"].keys() == {"no_trace"} for table in of_samples)
    digits = [load(f"defaults/digits_class_{seeds}.json")["tables"]["class:5"] for seeds in ("0_to_2", "3_to_7")]
    assert sum(table["retrain_short_70"]["verdicts"]["no_trace"] for table in digits) == 5
    readme = " ".join((RESULTS.parents[1] / "README.md").read_text("utf-8").split())
    assert "the default passes on five of the eight that were run" in readme


def test_the_table_of_small_requests_is_that_of_its_comparison():
    found = load("digits_sample/sizes.json")["tables"]
    heading, rows = list(tables("samples"))[5]
    assert heading[0] == "number"
    for size, name, *cells in rows:
        row = found[f"random:{size}"][name]
        expected = [f"{row['mean'][key]:.{digits}f}" for key, digits in (COLUMNS[column] for column in heading[2:-1])]
        assert cells == [*expected, in_words(row)], (size, name)
    names = ("shrink_perturb", "retrained", "original", "margin_matching", "contrastive")
    test = {
        name: [f"{found[f'random:{size}'][name]['mean']['retain_test_accuracy']:.3f}" for size in (1, 10, 100)]
        for name in names
    }
    text = sentences("samples")
    both = [*test["shrink_perturb"], *test["retrained"]]
    assert "test accuracy is {}, {} and {}, where retrained models have {}, {} and {}.".format(*both) in text
    of_ten = (test[name][1] for name in ("original", "margin_matching", "contrastive"))
    assert "falls from {} to {} and {}".format(*of_ten) in text


def test_the_table_of_likelihood_ratios_is_that_of_the_stored_audits():
    found = load("digits_sample/full.json")
    _, rows = list(tables("samples"))[6]
    for name, *cells, verdict in rows:
        key = {"original": "original", "retrained": "retrained"}.get(name, "unlearned")
        metrics = found[name if key == "unlearned" else "shrink_perturb"]["metrics"]
        columns = ("ulira_auc", "ulira_accuracy", "ulira_tpr", "klom")
        assert cells == [f"{metrics[column][key]:.3f}" for column in columns], name
        assert verdict == (IN_TABLES[found[name]["verdict"]] if key == "unlearned" else "–")
    assert {one["retrained_models"] for one in found.values()} == {16}
    auc = found["shrink_perturb"]["metrics"]["ulira_auc"]
    assert f"(AUC {auc['unlearned']:.3f}; retrained models {auc['retrained']:.3f})" in sentences("samples")
    assert auc["unlearned"] <= auc["retrained"] + 0.02
