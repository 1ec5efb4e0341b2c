"""Turns of phrase that a native speaker would read twice, from the table in CONTRIBUTING.md."""

import io
import re
import subprocess
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCLUDED = ("CONTRIBUTING.md", "CHANGELOG.md", "docs/results/", "tests/fixtures/", "tests/test_words.py")


def banned():
    """Patterns and their replacements."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| avoid | write |")[1]
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", table, re.MULTILINE)
    return {re.compile(pattern.replace(r"\|", "|")): words for pattern, words in rows}


def pages():
    listed = subprocess.run(["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")]  # an sdist has no git
    return [ROOT / name for name in names if not name.startswith(EXCLUDED) and (ROOT / name).is_file()]


def prose(path):
    """Line numbers and text: of a program its strings and comments."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return list(enumerate(text.splitlines(), 1))
    kinds = {tokenize.STRING, tokenize.COMMENT, tokenize.FSTRING_MIDDLE}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [
        (token.start[0] + number, line)
        for token in tokens
        if token.type in kinds
        for number, line in enumerate(token.string.splitlines())
    ]


def test_the_table_is_read():
    assert len(banned()) > 10


def test_no_page_or_docstring_has_a_banned_turn():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}; write: {words}"
        for path in pages()
        for number, line in prose(path)
        for pattern, words in banned().items()
        for match in [pattern.search(line)]
        if match
    ]
    assert not found, "\n".join(found)
