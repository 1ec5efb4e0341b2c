"""Draws the modules of the package, layer by layer, with their imports, as a Mermaid diagram in docs/design.md.

    uv run scripts/structure.py --write     # after a change of the layout
    uv run scripts/structure.py --check     # status 1 if the diagram does not match the code

The layers are those of the import-linter contract in pyproject.toml.
"""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- structure:begin -->", "<!-- structure:end -->"


def floors() -> list[list[str]]:
    """The modules of each layer, the top layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return [[room.strip() for room in layer.split("|")] for layer in contracts[0]["layers"]]


def imports() -> dict[str, set[str]]:
    """By module (or package) of cujax, the modules that it imports from."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "cujax").rglob("*.py")):
        room = path.relative_to(ROOT / "cujax").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cujax"):
                names = [f"{node.module}.{alias.name}" if node.module == "cujax" else node.module for alias in node.names]
                found.setdefault(room, set()).update(str(name).split(".")[1] for name in names)
    return {room: others - {room} for room, others in found.items() if room != "__init__"}


def drawing() -> str:
    """The diagram: a box per layer, and an arrow from a module to each import on the nearest layer."""
    lines = ["```mermaid", "flowchart TD"]
    all_floors = floors()
    for number, rooms in zip(range(len(all_floors), 0, -1), all_floors, strict=True):
        lines.append(f'  subgraph floor{number}["{number}"]')
        lines += [f"    {room}" for room in rooms]
        lines.append("  end")
    level = {room: number for number, rooms in enumerate(all_floors) for room in rooms}
    for room, others in sorted(imports().items(), key=lambda entry: (level[entry[0]], entry[0])):
        nearest = min((level[other] for other in others), default=None)
        lines += [f"  {room} --> {other}" for other in sorted(others) if level[other] == nearest]
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Checks or writes the diagram, and returns the exit status."""
    if arguments not in (["--check"], ["--write"]):
        print(__doc__)
        return 0 if arguments in (["--help"], ["-h"]) else 2
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    drawn = f"{before}{BEGIN}\n{drawing()}\n{END}{rest.split(END)[1]}"
    if arguments == ["--write"]:
        PAGE.write_text(drawn, "utf-8")
    elif drawn != text:
        print(f"the drawing in {PAGE} is not that of the code; run scripts/structure.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
