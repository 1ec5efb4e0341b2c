"""Runs that are killed at random moments end with what an uninterrupted one ends with; in full: scripts/torture.py."""

from test_scripts import script

FLAGS = (
    "--data.limit 500 --retrained 1 --audit quick --save-steps 4 --training.epochs 6 --method.max-passes 2 "
    "--method.learning-rate 0.005"
)


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    optimised = {"JAX_DISABLE_MOST_OPTIMIZATIONS": None}  # these runs compile once and train again and again
    result = script("torture", "--folder", "torture", "--kills", "3", f"--flags={FLAGS}", cwd=tmp_path, **optimised)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("3 kills over")
    assert "Every run ended with the same parameters, metadata, metrics and report." in result.stdout
