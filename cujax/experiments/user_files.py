"""Files that a user names: configurations and networks in Python. Each is loaded once, as its own module."""

import contextlib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cujax.data.images import Source
from cujax.model import Model, Variables, abstract_variables
from cujax.networks.registry import MODULES, make_network

_DEFAULT = "small_cnn"


def split_network(network: str) -> tuple[Path | None, str]:
    """The file and the name in PATH.py:NAME; None and the name for a network of the registry."""
    path, _, name = network.rpartition(":")
    return (Path(path), name) if path.endswith(".py") else (None, network)


def build_model(network: str, num_classes: int, dtype: str = "float32") -> Model:
    """The network of an experiment.

    Raises:
        ValueError: if the name is unknown, it does not name a function that returns a `Model`, or `dtype` is set for a
            network that has its own.
        FileNotFoundError: if the file does not exist.
    """
    path, name = split_network(network)
    if path is None:
        return make_network(network, num_classes, dtype)
    if dtype != "float32":
        raise ValueError(f"dtype {dtype} applies to the networks of cujax; {network} chooses its own dtype.")
    loaded = load_python_file(path)
    if not hasattr(loaded, name):
        names = sorted(known for known, found in vars(loaded).items() if callable(found) and not known.startswith("_"))
        raise ValueError(f"{path} has no {name!r}; it has {', '.join(names) or 'no functions'}.")
    make = getattr(loaded, name)
    with _of_the_user(path):
        model = make(num_classes) if callable(make) else make
    if not isinstance(model, Model):
        raise ValueError(
            f"network {network!r} must name a function that, given the number of classes, returns a cujax Model "
            f"(from_linen, from_nnx or from_function), but it returns {type(model).__name__}."
        )
    return model


def network_for(network: str, source: Source) -> str:
    """The network of an experiment on some data: if its inputs are not images, "mlp" replaces the default.

    Raises:
        ValueError: if a network of cujax takes images, but the inputs are not images.
    """
    if source.are_images or network not in MODULES or network == "mlp":
        return network
    if network == _DEFAULT:
        return "mlp"
    raise ValueError(
        f"network {network} takes images [H, W, C], but {source.name} has {source.input_words}; give --network mlp, or your "
        "own as PATH.py:FUNCTION."
    )


def load_python_file(path: Path) -> Any:
    """Imports a Python file that the user named: a configuration or a network.

    The same content at the same path is loaded once, so that what it defines stays equal to itself: loading a network twice
    would give two values, and compile twice. Like a script, the file can import modules in its folder.

    Raises:
        FileNotFoundError: if the file does not exist.
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
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with _of_the_user(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def abstract_arrays(model: Model, network: str, source: Source) -> Variables:
    """Names, shapes and dtypes of a network's arrays.

    Raises:
        ValueError: if it cannot be applied to the inputs.
    """
    path, _ = split_network(network)
    if path is None:
        return abstract_variables(model, source.input_shapes)
    with _of_the_user(path, f" when applied to {source.input_words}"):
        return abstract_variables(model, source.input_shapes)


@contextlib.contextmanager
def _of_the_user(path: Path, when: str = "") -> Iterator[None]:
    """Reports errors in a user's file as a message with the line.

    Raises:
        ValueError: instead of any exception, except for a ValueError raised outside the file.
    """
    path = path.expanduser().resolve()
    try:
        yield
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}; correct it.") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        if not lines and isinstance(error, ValueError):
            raise
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        way_out = (
            "install it, or run the command in a folder where it can be imported"
            if isinstance(error, ImportError)
            else "correct it"
        )
        raise ValueError(f"{where}{when}: {type(error).__name__}: {error}; {way_out}.") from error
