"""Command lines: configurations, overrides, exit statuses, and messages a person can act on."""

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import chex
import pytest

from cujax.cli import INTERRUPTED, PREEMPTED, main, parse, take_option
from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments.config import Experiment
from cujax.methods import ContrastiveUnlearning, Retrain, RetrainShort, SalUn, Scrub
from cujax.methods.registry import METHODS

CONFIGS = Path(__file__).parents[1] / "configs"


def parsed(*arguments):
    return parse(arguments, configs=CONFIGS, description="")


def status(work, *arguments):
    return main(work, configs=CONFIGS, description="", arguments=arguments)


def test_without_flags_digits_forget_class_5():
    experiment = parsed()
    assert experiment.data.source == "digits"
    assert experiment.forget == ForgetClass(5)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_names_its_launch_line(path):
    experiment = parsed("--config", path.stem)
    assert isinstance(experiment, Experiment)
    assert experiment.workdir == f"runs/{path.stem}"
    script = "compare" if path.stem.endswith("_compare") else "unlearn"
    assert f"scripts/{script}.py --config {path.stem}" in path.read_text()


def test_flags_override_fields_of_the_configuration():
    experiment = parsed("--config=digits_class", "--seed", "3", "--method.share", "0.5", "--training.epochs", "2")
    default = parsed()
    assert (experiment.seed, experiment.method.share, experiment.training.epochs) == (3, 0.5, 2)
    assert experiment.training.augmentation == default.training.augmentation


def test_the_request_is_chosen_by_name():
    experiment = parsed("--seed", "1", "forget:random", "--forget.count", "12")
    assert experiment.forget == ForgetRandom(count=12)
    assert experiment.seed == 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_chosen_by_name_with_its_own_defaults(name):
    default = parsed().method
    expected = default if isinstance(default, METHODS[name]) else METHODS[name]()
    assert parsed(f"method:{name}").method == expected


def test_the_flags_of_a_method_are_its_own(capsys):
    assert parsed("method:scrub", "--method.temperature", "2", "--seed", "4").method == Scrub(temperature=2.0)
    assert parsed("--method.max-passes", "3").method == ContrastiveUnlearning(max_passes=3)
    with pytest.raises(SystemExit):
        parsed("method:scrub", "--method.unlearn-weight", "2")
    assert "unlearn-weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("method:salun", "--method.batch-size", "32", "forget:random", "--forget.count", "12"),
        ("forget:random", "--forget.count", "12", "method:salun", "--method.batch-size", "32"),
        ("--method.batch-size", "32", "method:salun", "forget:random", "--forget.count", "12"),
    ],
)
def test_method_and_request_are_chosen_in_any_order(arguments):
    experiment = parsed(*arguments)
    assert (experiment.method, experiment.forget) == (SalUn(batch_size=32), ForgetRandom(count=12))


@pytest.mark.parametrize("flag", ["--method.max-passes", "--method.max_passes"])
@pytest.mark.parametrize("joined", [False, True])
def test_settings_of_contrastive_choose_it_as_in_0_1_and_say_so(flag, joined, capsys):
    words = [f"{flag}=3"] if joined else [flag, "3"]
    for arguments in (words, [*words, "forget:random", "--forget.count", "12"]):
        assert parsed(*arguments).method == ContrastiveUnlearning(max_passes=3)
        assert "Write method:contrastive" in "".join(capsys.readouterr())
    assert parsed("--method.share", "0.3").method == RetrainShort(share=0.3)
    with pytest.raises(SystemExit):
        parsed("--method.gamma", "0.3")


def test_naming_the_method_of_the_configuration_keeps_its_settings(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from cujax.experiments.config import Experiment\nfrom cujax.methods import Scrub\n"
        "CONFIG = Experiment(method=Scrub.small())\n"
    )
    assert parsed("--config", str(path), "method:scrub").method == parsed("--config", str(path)).method == Scrub.small()
    assert parsed("--config", str(path), "method:retrain").method == Retrain()


def test_help_lists_the_methods_and_the_settings_of_the_chosen_one(capsys):
    with pytest.raises(SystemExit):
        parsed("method:scrub", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "now: Scrub; available: bad_teacher, boundary_expand, boundary_shrink, " in shown
    assert "--method.gamma" in shown


def test_a_configuration_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from cujax.experiments.config import Experiment\nCONFIG = Experiment(seed=11)\n")
    assert parsed("--config", str(path)).seed == 11


def test_a_request_by_predicate_comes_from_a_configuration_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from cujax.experiments.config import Experiment\nfrom cujax.data.requests import ForgetWhere\n"
        "CONFIG = Experiment(forget=ForgetWhere(lambda name, label: label == 2))\n"
    )
    assert parsed("--config", str(path), "--seed", "4").forget.predicate("x", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing"], "'nothing' does not exist; choose one of cifar10_class"),
        (["--config"], "--config needs a value"),
        (["forget:class", "--forget.label", "77"], "class 77 does not exist"),
        (["--method.temperature", "0"], "temperature must be positive"),
        (["--data.source", "no_such_set", "--data.data-dir", "/nonexistent"], "no_such_set' is not in /nonexistent"),
        (["--sed", "3"], "sed"),
        (["method:scrubb"], "method 'scrubb' does not exist; choose one of bad_teacher, boundary_expand"),
        (["method:scrub", "method:salun"], "give one method, not method:scrub and method:salun"),
        (["method:mask_logit", "forget:random", "--forget.count", "3"], "mask_logit hides whole classes"),
        (["method:catastrophic_forget_last_k", "--method.last-layers", "100"], "last_layers is 100, but the network has"),
        (["--data.source", ""], "data.source is empty"),
        (["--workdir", ""], "workdir is empty"),
        (["--config", ""], "--config needs a value"),
        (["--config="], "--config needs a value"),
        (["forget:ids", "--forget.path", ""], "path is empty"),
        (["forget:classes", "--forget.labels"], "labels"),
        (["forget:class", "--forget.label", ""], "to forget is empty"),
        (["--no-validation", "--validation-ids", "x.txt"], "validation_ids is x.txt, but validation is off"),
        (["--profile", "/dev/null/profile"], "profile /dev/null/profile cannot be created as a folder"),
    ],
)
def test_bad_input_ends_with_status_2_and_says_why(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def never(run):
        raise AssertionError("computed")

    try:
        code = status(never, *arguments)
    except SystemExit as stopped:
        code = stopped.code
    shown = capsys.readouterr()
    assert code == 2
    assert message in " ".join((shown.err + shown.out).replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_file_without_config_is_told(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    assert status(lambda run: None, "--config", str(path)) == 2
    assert "must define CONFIG" in capsys.readouterr().err


def test_interrupting_says_what_is_kept_and_how_to_go_on(tmp_path, capsys):
    def interrupted(run):
        (run.workdir / "checkpoints" / "original").mkdir(parents=True)
        (run.workdir / "checkpoints" / "unlearned.orbax-checkpoint-tmp").mkdir()
        raise KeyboardInterrupt

    assert status(interrupted, "--workdir", str(tmp_path / "run")) == INTERRUPTED
    message = capsys.readouterr().err
    assert "kept" in message
    assert "original." in message
    assert "Run the same command again" in message


def test_a_preempted_run_saves_where_it_stands_ends_with_143_and_goes_on_from_there(tmp_path, capsys):
    flags = ["--training.epochs", "3", "--save-seconds", "None", "--workdir", str(tmp_path / "run")]
    metrics = tmp_path / "run" / "metrics" / "original.jsonl"

    def preempted(run):
        """SIGTERM arrives in the second epoch."""

        @contextlib.contextmanager
        def progress(description, total):
            yield lambda n=1, note="": os.kill(os.getpid(), signal.SIGTERM)

        run.progress = progress
        run.original()

    assert status(preempted, *flags) == PREEMPTED == 143
    message = capsys.readouterr().err
    assert "Complete and kept" in message
    assert "nothing yet. Begun, with saved progress: original. Run the same command again" in message
    assert len(metrics.read_text().splitlines()) == 22
    models = []
    assert status(lambda run: models.append(run.original()), *flags) == 0
    assert "original resumes from step 22." in capsys.readouterr().err
    assert not (tmp_path / "run" / "progress").exists()
    flags[-1] = str(tmp_path / "whole")
    assert status(lambda run: models.append(run.original()), *flags) == 0
    chex.assert_trees_all_equal(models[0].variables, models[1].variables)
    assert metrics.read_text() == (tmp_path / "whole" / "metrics" / "original.jsonl").read_text()


def test_deterministic_operations_are_asked_of_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert status(lambda run: None, "--deterministic", "--workdir", str(tmp_path / "run")) == 0
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"


def test_a_failed_computation_ends_with_status_1(tmp_path, capsys):
    def diverge(run):
        raise FloatingPointError("training diverged")

    assert status(diverge, "--workdir", str(tmp_path / "run")) == 1
    assert "error: training diverged" in capsys.readouterr().err


def test_work_gets_the_prepared_run(tmp_path):
    seen = []
    chosen = ["--config", "digits_class_deep"]
    assert status(seen.append, *chosen, "--workdir", str(tmp_path / "run"), "--seed", "5") == 0
    assert seen[0].experiment == dataclasses.replace(parsed(*chosen), workdir=str(tmp_path / "run"), seed=5)


def test_taking_an_option_leaves_the_others():
    assert take_option(["a", "--x", "1", "b"], "--x") == ("1", ["a", "b"])
    assert take_option(["a", "--x=1"], "--x") == ("1", ["a"])
    assert take_option(["a"], "--x") == (None, ["a"])


@pytest.mark.parametrize("arguments", [["--x", ""], ["--x="], ["--x"], ["--x", "  "]])
def test_an_option_without_a_value_is_refused(arguments):
    with pytest.raises(ValueError, match="--x needs a value"):
        take_option(arguments, "--x")


@pytest.mark.parametrize("text", ["CONFIG = (", "import no_such_package", "CONFIG = 1 / 0"])
def test_what_is_wrong_in_a_configuration_file_is_a_sentence_with_its_line(tmp_path, text, capsys):
    path = tmp_path / "mine.py"
    path.write_text(f"# mine\n{text}\n")
    assert status(lambda run: None, "--config", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}, line 2: ")


def test_an_interrupted_comparison_counts_what_is_complete(tmp_path, capsys):
    def interrupted(run):
        for number in range(20):
            (run.workdir / "class-5" / f"method_{number}" / "seed_0" / "checkpoints" / "unlearned").mkdir(parents=True)
            (run.workdir / "class-5" / f"method_{number}" / "seed_0" / "audit-1.json").touch()
        raise KeyboardInterrupt

    assert status(interrupted, "--workdir", str(tmp_path / "run")) == INTERRUPTED
    assert "20 models, 20 measured models" in capsys.readouterr().err


def test_folders_beside_the_workdir_are_named_when_interrupted(tmp_path, capsys):
    (tmp_path / "shared" / "split" / "checkpoints" / "retrained_0").mkdir(parents=True)

    def interrupted(run):
        raise KeyboardInterrupt

    arguments = ["--workdir", str(tmp_path / "run")]
    code = main(interrupted, configs=CONFIGS, description="", arguments=arguments, also_kept_in=[str(tmp_path / "shared")])
    assert code == INTERRUPTED
    assert f"Complete and kept in {tmp_path}/shared: split/retrained_0." in capsys.readouterr().err


def test_a_class_by_name_and_by_number_are_one_run(tmp_path):
    seen = []
    for label in ("5", "05", "name:5", "label:5"):
        assert status(seen.append, "--workdir", str(tmp_path / "run"), "forget:class", "--forget.label", label) == 0
    assert {run.experiment.forget for run in seen} == {ForgetClass(5)}


def test_a_full_disk_is_told_with_what_to_do(tmp_path, capsys):
    def full(run):
        raise OSError(28, "No space left on device", "report.json")

    assert status(full, "--workdir", str(tmp_path / "run")) == 1
    assert "No space left on device: 'report.json'. Free space and run the same command again" in capsys.readouterr().err
