"""Devices: the only file that knows about them."""

import os
from pathlib import Path

import jax


def unused_accelerator() -> str | None:
    """A warning with its remedy if this machine has a GPU or TPU and JAX computes on the CPU; else None.

    A CPU chosen on purpose (JAX_PLATFORMS=cpu) is no reason to warn.
    """
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return None
    for kind, extra, signs in (
        ("GPU", "cuda", ["/dev/nvidia0", "/proc/driver/nvidia/version"]),
        ("TPU", "tpu", ["/dev/accel0", "/dev/vfio/0"]),
    ):
        if any(Path(sign).exists() for sign in signs):
            return (
                f"this machine has a {kind}, but JAX computes on the CPU: its {kind} support is not installed. "
                f"Run the command as: uv run --extra {extra} ..."
            )
    return None
