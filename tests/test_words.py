"""Turns of phrase that a native speaker would read twice, from the table in CONTRIBUTING.md."""

import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCLUDED = ("CONTRIBUTING.md", "CHANGELOG.md", "docs/results/", "tests/fixtures/", "tests/test_words.py")


@cache
def banned():
    """Patterns and their replacements."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("| avoid | write |")[1]
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", table, re.MULTILINE)
    return {re.compile(pattern.replace(r"\|", "|").replace(" ", r"\s+")): words for pattern, words in rows}


def pages():
    listed = subprocess.run(["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")]  # an sdist has no git
    return [ROOT / name for name in names if not name.startswith(EXCLUDED) and (ROOT / name).is_file()]


def prose(path):
    """Texts and the lines on which they begin: a whole page, of a program its strings and comments."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return [(1, text)]
    kinds = {tokenize.STRING, tokenize.COMMENT, tokenize.FSTRING_MIDDLE}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


def turns(first, text):
    """Line, what was found and its replacement: a turn may go on in the next line."""
    for pattern, words in banned().items():
        for match in pattern.finditer(text):
            yield first + text.count("\n", 0, match.start()), match.group(), words


def test_the_table_is_read():
    assert len(banned()) > 10


def test_a_turn_is_found_across_a_line_break():
    assert sorted(line for line, _, _ in turns(3, "It is slower. Elsewhere they do\n    anyway. It was mended.")) == [3, 4]


def test_no_page_or_docstring_has_a_banned_turn():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {turn!r}; write: {words}"
        for path in pages()
        for first, text in prose(path)
        for line, turn, words in turns(first, text)
    ]
    assert not found, "\n".join(found)
