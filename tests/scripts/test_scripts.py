"""The scripts as a user runs them, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = {
    "forget_train_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_test_accuracy", "test_accuracy",
    "mia_loss_auc", "mia_confidence", "js_to_retrained",
}  # fmt: skip
QUICK = ["--training.epochs", "3", "--method.max-passes", "3", "--retrained", "2"]


def script(name, *arguments, cwd):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a quick run was made, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    result = script("unlearn", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_main_job_leaves_checkpoints_metrics_and_a_report(finished):
    folder, printed = finished
    run = folder / "runs" / "digits_class"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"original", "retrained_0", "retrained_1", "unlearned"}
    report = json.loads((run / "report.json").read_text())
    assert set(report["rows"]) == {"original", "retrained", "unlearned", "masked"}
    for row in report["rows"].values():
        for key in KEYS:
            value = row[key]
            assert (0 <= value <= 1) if value is not None else row["reasons"][key]
    assert set(report["cost"]["unlearned"]) == {"seconds", "steps", "samples", "flops"}
    assert {"rule", "step"} <= set(report["stop"])
    assert {"forget", "retain", "validation", "test", "digest"} <= set(report["split"])
    assert {"config", "versions", "seed"} <= set(report)
    assert "report.html" in printed
    records = [json.loads(line) for line in (run / "metrics" / "unlearned.jsonl").read_text().splitlines()]
    assert sum("step" in record for record in records) == report["cost"]["unlearned"]["steps"]


def test_auditing_again_gives_the_same_figures(finished):
    folder, _ = finished
    report = folder / "runs" / "digits_class" / "report.json"
    before = json.loads(report.read_text())
    report.unlink()
    result = script("audit", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(report.read_text()) == before


def test_another_checkpoint_of_the_split_can_be_audited(finished):
    folder, _ = finished
    other = script("unlearn", *QUICK, "--workdir", "other", "--seed", "1", "--retrained", "0", cwd=folder)
    assert other.returncode == 0, other.stderr
    result = script("audit", *QUICK, "--unlearned", "other/checkpoints/unlearned", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert len(list((folder / "runs" / "digits_class").glob("audit-*/report.html"))) == 1


def test_the_lineage_is_printed_and_verified(finished, tmp_path):
    folder, _ = finished
    checkpoint = folder / "runs" / "digits_class" / "checkpoints" / "unlearned"
    result = script("lineage", str(checkpoint), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("verified") == 2
    assert "forgot ForgetClass(label=5) by ContrastiveUnlearning" in result.stdout
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "_CHECKPOINT_METADATA").write_text("{}")
    assert script("lineage", "copy", cwd=tmp_path).returncode == 1


def test_auditing_what_is_not_there_names_it(tmp_path):
    result = script("audit", *QUICK, cwd=tmp_path)
    assert result.returncode == 2
    assert "no complete original, retrained_0, retrained_1, unlearned" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_alone_prints_accuracies(tmp_path):
    result = script("train", "--training.epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[:2]] == ["original", "retrained"]


def test_the_benchmark_prints_a_ratio(tmp_path):
    arguments = ["--rounds", "2", "--steps", "1", "--image-size", "8", "--json", "figures.json"]
    result = script("benchmark", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratio"] > 0
    assert figures["samples"] == 128


@pytest.mark.parametrize("name", ["unlearn", "train", "audit", "benchmark", "lineage", "torture"])
def test_help_teaches(name, tmp_path):
    result = script(name, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--" in result.stdout
