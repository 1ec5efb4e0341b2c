"""What the pages show runs as they say: Python is executed, command lines are read by the parsers of their commands.

A block of Python that is no example of its own is marked by a line before it: `<!-- not run: REASON -->`.
"""

import doctest
import re
import runpy
import shlex
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

import cujax
from cujax.commands import COMMANDS, MODULES
from cujax.commands import main as cujax_command
from cujax.reports.glossary import TERMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^(?P<before>[^\n]*\n\n?)?^```(?P<kind>[\w{}-]*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:uv run|cujax) [^`]+)`")
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\b(COMMAND|NAME)\b")
# Programs that are not ours.
OTHERS = {"bash", "dask", "gcloud", "pip", "pytest", "sbatch", "sphinx-build", "uvx"}


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *kinds):
    """What stands before each block of these kinds, and its text."""
    text = page.read_text("utf-8")
    return [(match["before"] or "", match["text"]) for match in _BLOCK.finditer(text) if match["kind"] in kinds]


def command_lines(page):
    """The commands that a page shows, in words: without comments and assignments; variables are replaced."""
    inline = [line for line in _INLINE.findall(_BLOCK.sub("", page.read_text("utf-8"))) if not _PLACEHOLDER.search(line)]
    shown = "\n".join([*(block for _, block in blocks(page, "sh", "bash")), *inline])
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", " ", _COMMENT.sub("", shown)).splitlines():
        for key, value in variables.items():
            line = line.replace(f"${key}", value)
        for part in re.split(r" && |; ", line):
            words = shlex.split(part)
            while words and re.match(r"\w+=|export$|time$", words[0]):
                key, given, value = words.pop(0).partition("=")
                variables |= {key: value} if given else {}
            words = [word for word in words if word != "..."]
            if words:
                yield words


def program_and_arguments(words):
    """What a command line runs, and its arguments: without `uv run` and its options."""
    if words[:2] == ["uv", "run"]:
        words = words[2:]
        while words[0] in ("--extra", "--python"):
            words = words[2:]
    return words[0], words[1:]


class Parsed(Exception):  # noqa: N818 - it ends a command that was understood
    pass


@pytest.fixture
def parses(monkeypatch):
    """Gives a function that runs a command until its flags are read."""
    read = tyro.cli

    def cli(*args, **kwargs):
        read(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def parses(words):
        program, arguments = program_and_arguments(words)
        if program in OTHERS:
            return True
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            if program == "cujax":
                return cujax_command() == 0
            if program.startswith("scripts/") and program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            elif program == "scripts/tpu_vm.sh" and arguments[:1] == ["start"]:
                return parses(["scripts/unlearn.py", *arguments[1:]])
            else:
                return program == "scripts/tpu_vm.sh"
        except Parsed:
            return True
        except SystemExit as end:  # 0: --help
            return end.code == 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return True

    return parses


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text("utf-8")], ids=name)
def test_examples_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted > 0


def test_every_block_of_python_is_run_or_marked():
    plain = [(name(page), text) for page in PAGES for before, text in blocks(page, "python", "py", "pycon")
             if not text.startswith(">>> ") and not re.match(r"<!-- not run: .+ -->", before)]  # fmt: skip
    assert plain == []


def test_every_block_says_what_it_is_in():
    kinds = {match["kind"] for page in PAGES for match in _BLOCK.finditer(page.read_text("utf-8"))}
    assert kinds <= {"", "sh", "python", "toml", "mermaid", "{code-cell}", "{eval-rst}", "{include}", "{toctree}"}


@pytest.mark.parametrize("page", [page for page in PAGES if [*command_lines(page)]], ids=name)
def test_the_command_lines_of_the_page_are_understood(page, parses):
    refused = [shlex.join(words) for words in command_lines(page) if not parses(words)]
    assert refused == []


def test_a_wrong_flag_and_an_unknown_command_are_found(parses):
    assert parses(["cujax", "unlearn", "--retrained", "3"])
    assert not parses(["cujax", "unlearn", "--retrain", "3"])
    assert not parses(["uv", "run", "--extra", "cuda", "scripts/unlearn.py", "--config", "nowhere"])
    assert not parses(["cujax", "forget"])
    assert not parses(["python", "unlearn.py"])


def test_toml_can_be_read():
    assert [tomllib.loads(text) for page in PAGES for _, text in blocks(page, "toml")]


def test_the_glossary_has_the_sentences_of_the_reports():
    rows = [f"| {term} | {sentence} |" for term, sentence in sorted(TERMS.values(), key=lambda row: row[0].lower())]
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    assert page.partition("|---|---|\n")[2].splitlines() == rows


def test_the_reference_has_every_public_name_and_command_and_no_other():
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE)) == sorted(cujax.__all__)
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page, re.MULTILINE)) == COMMANDS


def test_every_page_is_in_the_table_of_contents():
    lines = [line for _, text in blocks(ROOT / "docs" / "index.md", "{toctree}") for line in text.splitlines()]
    listed = {f"{re.sub(r'.*<(.*)>', r'\1', line)}.md" for line in lines}
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == {"index.md"}


def test_every_command_is_shown_somewhere():
    shown = {program_and_arguments(words)[0] for page in PAGES for words in command_lines(page)}
    assert {f"scripts/{MODULES.get(command, command)}.py" for command in COMMANDS} <= shown
