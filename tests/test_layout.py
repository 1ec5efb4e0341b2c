"""The layout that CONTRIBUTING.md describes; import-linter checks the floors."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "cujax").rglob("*.py"))
SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_module_imports_a_script():
    found = {(path.name, name) for path in MODULES for name in imports(path) if name.split(".")[0] in {"scripts", *SCRIPTS}}
    assert found == set()


def test_no_module_imports_another_of_cujax_inside_a_function():
    """Such an import would hide a cycle. Other packages may be imported where they are needed: they are slow to load.

    Nothing imports a command, so a command may import reports, and with them pictures, after its flags are read.
    """
    found = [
        (path.name, function.name)
        for path in MODULES
        if path.parent.name != "commands"
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cujax")
    ]
    assert found == []


def test_no_module_is_longer_than_400_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_modules_of_the_package_load_without_a_deprecated_name():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:cujax", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("cujax.experiment", "Experiment", "cujax.experiments.config"),
        ("cujax.experiment", "parse_request", "cujax.experiments.request_words"),
        ("cujax.experiment", "digest_of", "cujax.experiments.identity"),
        ("cujax.experiment", "build_model", "cujax.experiments.user_files"),
        ("cujax.training", "Training", "cujax.training.supervised"),
        ("cujax.training", "make_optimizer", "cujax.training.supervised"),
    ],
)
def test_names_of_0_1_are_found_with_a_warning(module, name, now):
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is {now}.{name} now"):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(now), name)


@pytest.mark.parametrize("module", ["cujax.experiment", "cujax.training", "cujax.methods"])
def test_a_name_that_never_was_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = importlib.import_module(module).nothing


@pytest.mark.parametrize("name", ["Examples", "Batch"])
def test_the_step_offers_the_batches_it_takes(name):
    assert getattr(importlib.import_module("cujax.step"), name) is getattr(importlib.import_module("cujax"), name)


def test_no_file_of_the_repository_is_over_a_megabyte_or_an_archive_of_packages():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")[:-1]
    if not listed:
        pytest.skip("not a git checkout: an sdist contains only what pyproject.toml lists")
    assert [name for name in listed if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 1_000_000] == []
    assert [name for name in listed if name.endswith((".whl", ".tar.gz"))] == []
