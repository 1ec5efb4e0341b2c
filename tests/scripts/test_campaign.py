"""A campaign runs its commands in order, keeps what they completed, stops in time, and writes down what was measured."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from cujax import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def campaign():
    spec = importlib.util.spec_from_file_location("campaign", ROOT / "scripts" / "campaign.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_measures_everything_and_goes_on_where_it_was_stopped(campaign, tmp_path, monkeypatch, capsys):
    ran = []

    def here(seconds, command):
        assert 0 < seconds <= 3600
        assert command[:3] == [sys.executable, "-m", "cujax"]
        ran.append(command[3])
        fewer = [] if command[3] == "benchmark" else ["--data.limit", "500"]
        return commands.run(command[3], [*command[4:], *fewer])

    monkeypatch.setattr(campaign, "within", here)
    page = tmp_path / "page" / "gpu.md"
    options = ["--dry-run", "--epochs", "1", "--retrained", "1", "--workdir", str(tmp_path / "runs"), "--page", str(page)]
    assert campaign.main(options) == 0
    assert ran == ["benchmark", "benchmark", "unlearn", "unlearn", "compare", "compare"]
    text = page.read_text()
    assert "Not measured yet" not in text
    assert "A dry run" in text
    assert text.count("| unlearning loop ") == 2, "a step of each dtype"
    assert text.count("| fine_tune ") == 2, "a comparison of each task"
    ran.clear()
    assert campaign.main(options) == 0
    assert ran == ["unlearn", "unlearn", "compare", "compare"], "a benchmark is not repeated; the others know what is there"
    assert page.read_text() == text


def test_without_time_nothing_is_begun_and_the_page_says_so(campaign, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "within", lambda seconds, command: pytest.fail("something was begun"))
    page = tmp_path / "gpu.md"
    assert campaign.main(["--hours", "1e-12", "--workdir", str(tmp_path / "runs"), "--page", str(page)]) == 0
    assert page.read_text().count("Not measured yet.") == 6
    assert "run the same command again to go on" in capsys.readouterr().err


def test_a_command_that_fails_is_reported_and_the_next_one_begins(campaign, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "within", lambda seconds, command: 1 if command[3] == "unlearn" else 0)
    options = ["--dry-run", "--workdir", str(tmp_path / "runs"), "--page", str(tmp_path / "gpu.md")]
    assert campaign.main(options) == 1
    told = capsys.readouterr().err
    assert told.count("FAILED Contrastive unlearning") == 2
    assert "[6/6] Methods: samples" in told


@pytest.mark.parametrize("hours", ["0", "-1", "nan"])
def test_no_time_at_all_is_refused(campaign, hours):
    with pytest.raises(SystemExit, match="2"):
        campaign.main(["--hours", hours])


def test_a_command_is_asked_to_end_when_the_time_is_over_and_waited_for(campaign, tmp_path):
    """It saves its progress first, which may take longer than the time that was left."""
    saved = tmp_path / "saved"
    program = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_): time.sleep(0.2); pathlib.Path({str(saved)!r}).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    script = tmp_path / "slow.py"
    script.write_text(f"import time\n{program}")

    def once_begun(self, timeout=None, wait=campaign.subprocess.Popen.wait):
        if timeout is None:
            return wait(self)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise campaign.subprocess.TimeoutExpired("slow", timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign.subprocess.Popen, "wait", once_begun)
        assert campaign.within(1.0, [sys.executable, str(script)]) == 143
    assert saved.exists()


def test_a_command_that_is_done_in_time_gives_its_status(campaign):
    assert campaign.within(600, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
