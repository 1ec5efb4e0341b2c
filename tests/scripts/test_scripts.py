"""The scripts as a user runs them: the main job and the audit in processes of their own, the others in this one."""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
KEYS = {
    "forget_train_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_test_accuracy", "test_accuracy",
    "mia_loss_auc", "mia_confidence", "js_to_retrained",
}  # fmt: skip
QUICK = ["--data.limit", "700", "--training.epochs", "3", "--method.max-passes", "3", "--retrained", "2"]


def script(name, *arguments, cwd, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, "-W", "error", str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a script in this process, which has imported and compiled most of it before."""

    def run(name, *arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setitem(sys.modules, "interrupted", types.ModuleType("interrupted"))  # it sets signal handlers
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, printed.out, printed.err)

    return run


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


def test_an_audit_says_what_the_run_said_and_more(finished):
    folder, _ = finished
    run = folder / "runs" / "digits_class"
    result = script("audit", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr
    report, audit = (json.loads(path.read_text()) for path in (run / "report.json", run / "audit-quick" / "report.json"))
    assert report.pop("created") <= audit.pop("created")
    assert report["audit"].pop("level") == "standard"
    assert audit["audit"].pop("level") == "quick"
    measured, quick = ({metric["key"]: metric for metric in one["audit"].pop("metrics")} for one in (report, audit))
    closer = {"recalibration", "from retained data", "few-shot probes"}  # looks that quick leaves out
    assert {metric["family"] for key, metric in quick.items() if metric != measured[key]} <= closer
    assert measured.keys() == quick.keys()
    assert audit == report
    assert "relearning" in result.stdout


def test_another_checkpoint_of_the_split_can_be_audited(finished, here):
    folder, _ = finished
    other = here("unlearn", *QUICK, "--workdir", "other", "--seed", "1", "--retrained", "0", "--audit", "none", cwd=folder)
    assert other.returncode == 0, other.stderr
    result = here("audit", *QUICK, "--unlearned", "other/checkpoints/unlearned", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert len(list((folder / "runs" / "digits_class").glob("audit-quick-*/report.html"))) == 1


def test_the_lineage_is_printed_and_verified(finished, tmp_path, here):
    folder, _ = finished
    checkpoint = folder / "runs" / "digits_class" / "checkpoints" / "unlearned"
    result = here("lineage", str(checkpoint), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("verified") == 2
    assert "forgot class 5 by ContrastiveUnlearning" in result.stdout
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "_CHECKPOINT_METADATA").write_text("{}")
    assert here("lineage", "copy", cwd=tmp_path).returncode == 1


def test_auditing_what_is_not_there_names_it(tmp_path, here):
    result = here("audit", *QUICK, cwd=tmp_path)
    assert result.returncode == 2
    assert "no complete original, retrained_0, retrained_1, unlearned" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_alone_prints_accuracies(tmp_path, here):
    result = here("train", "--training.epochs", "1", "--retrained", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[:2]] == ["original", "retrained"]


def test_the_benchmark_writes_figures_and_compares_with_them(tmp_path, here):
    arguments = ["--network", "small_cnn", "--rounds", "1", "--steps", "1", "--image-size", "8", "--json", "figures.json"]
    result = here("benchmark", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["ratios"]["unlearning / training"] > 0
    result = here("benchmark", *arguments, "--compare", "figures.json", cwd=tmp_path)
    assert "training, time / earlier" in result.stdout, result.stderr
    result = here("benchmark", *arguments, "--channels", "3", "--compare", "figures.json", cwd=tmp_path)
    assert result.returncode == 2
    assert "channels 1 there, 3 now" in result.stderr


def test_a_profile_and_compiled_programs_are_left_where_they_are_asked_for(tmp_path):
    arguments = [
        "--data.limit", "200", "--training.epochs", "1", "--training.batch-size", "128", "--retrained", "0",
        "--profile", "profile",
    ]  # fmt: skip
    places = {"JAX_COMPILATION_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = script("train", *arguments, cwd=tmp_path, **places)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))
    assert list((tmp_path / "cache" / "cujax" / "xla").iterdir())


def test_weights_of_another_framework_become_an_original_to_unlearn(tmp_path, here):
    rng = np.random.default_rng(0)
    layers = {"conv1": (16, 3, 3, 3), "head.0": (64, 64), "head.2": (128, 64), "fc.1": (3, 128)}
    tensors, norms, before = {}, ["bn1"], 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for number, inputs in ((1, before), (2, width)):
            layers[f"layer{stage}.0.conv{number}"] = (width, inputs, 3, 3)
            norms.append(f"layer{stage}.0.bn{number}")
        if width != before:
            layers[f"layer{stage}.0.shortcut.0"] = (width, before, 1, 1)
            norms.append(f"layer{stage}.0.shortcut.1")
        before = width
    for name, shape in layers.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:])).astype(
            np.float32
        )
        if len(shape) == 2:
            tensors[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    for name in norms:
        convolution = name.replace("bn", "conv").replace("shortcut.1", "shortcut.0")
        width = layers[convolution][0]
        tensors |= {f"{name}.{kind}": np.ones(width, np.float32) for kind in ("weight", "running_var")}
        tensors |= {f"{name}.{kind}": np.zeros(width, np.float32) for kind in ("bias", "running_mean")}
    save_file(tensors, tmp_path / "net.safetensors")
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8), labels=np.arange(120) % 3)
    result = here("import_weights", "net.safetensors", "original", "--network", "resnet8", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "3 classes" in result.stdout
    again = here("import_weights", "net.safetensors", "original", "--network", "resnet8", cwd=tmp_path)
    assert again.returncode == 2
    assert "never overwritten" in again.stderr
    arguments = ["--original", "original", "--network", "resnet8", "--data.source", "data.npz", "--retrained", "0"]
    arguments += ["--method.max-passes", "1", "--method.retain-batch-size", "16", "--workdir", "run", "--audit", "none"]
    result = here("unlearn", *arguments, "forget:class", "--forget.label", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_preparing_data_without_tensorflow_names_the_extra(tmp_path, here):
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed here")
    result = here("prepare_data", "cifar10", cwd=tmp_path)
    assert result.returncode == 2
    assert "uv run --extra prepare cujax prepare-data cifar10" in result.stderr


def test_a_folder_with_damaged_images_is_refused_or_unlearned_without_them(tmp_path, here):
    rng = np.random.default_rng(0)
    for number in range(90):
        path = tmp_path / "pictures" / f"class {number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    arguments = ["--data.source", "./pictures", "--retrained", "0", "--training.epochs", "1", "--training.batch-size", "16"]
    arguments += ["--method.retain-batch-size", "16", "--method.max-passes", "1", "--workdir", "run", "--audit", "none"]
    request = ["forget:class", "--forget.label", "1"]
    result = here("unlearn", *arguments, *request, cwd=tmp_path)
    assert result.returncode == 2
    assert "class 2/89.png: damaged or not an image" in result.stderr
    assert not (tmp_path / "run").exists()
    result = here("unlearn", *arguments, "--data.skip-bad", *request, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "left out: class 2/89.png" in result.stderr
    assert (tmp_path / "run" / "skipped_images.txt").read_text().startswith("class 2/89.png")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "interrupted"))
def test_help_teaches(name, here, tmp_path):
    result = here(name, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--" in result.stdout
    assert not result.stderr
