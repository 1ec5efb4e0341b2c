"""Files that a user names: configurations and networks in Python. Each is loaded once, as a module of its own."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from cujax.model import Model
from cujax.networks.registry import make_network


def split_network(network: str) -> tuple[Path | None, str]:
    """The file and the name in PATH.py:NAME; None and the name for a network of the registry."""
    path, _, name = network.rpartition(":")
    return (Path(path), name) if path.endswith(".py") else (None, network)


def build_model(network: str, num_classes: int, dtype: str = "float32") -> Model:
    """The network of an experiment.

    Raises:
        ValueError: if the name is unknown, what it names is not a function that makes a `Model`, or `dtype` is set for
            a network that has its own.
        FileNotFoundError: if the file is not there.
    """
    path, name = split_network(network)
    if path is None:
        return make_network(network, num_classes, dtype)
    if dtype != "float32":
        raise ValueError(f"dtype {dtype} is for the networks of cujax; {network} decides itself what it computes in.")
    make = getattr(load_python_file(path), name, None)
    model = make(num_classes) if callable(make) else make
    if not isinstance(model, Model):
        raise ValueError(
            f"network {network!r} must name a function that, given the number of classes, returns a cujax Model "
            f"(from_linen, from_nnx or from_function), but it gives {type(model).__name__}."
        )
    return model


def load_python_file(path: Path) -> Any:
    """Imports a Python file that the user named: a configuration or a network.

    The same content at the same place is loaded once, so that what it defines stays equal to itself: two loads of one
    network would be two values, and compile twice.

    Raises:
        FileNotFoundError: if the file is not there.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist.")
    digest = hashlib.sha256(bytes(path) + path.read_bytes()).hexdigest()
    name = f"cujax_user_file_{path.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    # Dataclasses and linen modules look up the annotations of their module there.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
