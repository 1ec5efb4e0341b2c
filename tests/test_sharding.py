"""The warning about an accelerator that JAX does not use."""

from pathlib import Path

import pytest

from cujax.sharding import unused_accelerator


@pytest.fixture
def machine(monkeypatch):
    """Pretends that this machine has the given device files, and that no platform was chosen."""

    def have(*files):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)

    return have


def test_no_accelerator_no_warning(machine):
    machine()
    assert unused_accelerator() is None


@pytest.mark.parametrize(("file", "kind", "extra"), [("/dev/nvidia0", "GPU", "cuda"), ("/dev/accel0", "TPU", "tpu")])
def test_an_unused_accelerator_is_told_with_its_remedy(machine, file, kind, extra):
    machine(file)
    warning = unused_accelerator()
    assert f"has a {kind}" in warning
    assert f"uv run --extra {extra}" in warning


def test_a_cpu_chosen_on_purpose_is_no_reason_to_warn(machine, monkeypatch):
    machine("/dev/nvidia0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert unused_accelerator() is None
