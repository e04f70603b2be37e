"""Measure the structure of a source tree, so that two states of the project can be compared.

    python benchmarks/structure.py [PATH] [--json] [--items N] [--minutes M] [--record COLUMN]

Prints one table: sizes of files and functions, documentation, words that make prose hard to read, and tests. PATH is
the root of a tree (default: this one). ``--record before`` writes the column ``before`` of results/structure.json.
Numbers of test items and minutes are not measured, but taken from the command line.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

PACKAGE = "dipgo_deploy"
RESULTS = Path(__file__).parent / "results" / "structure.json"
VAGUE = frozenset("it its itself one ones those what whatever which whichever whoever".split())
"""Words that stand for a noun. A reader has to look for the noun."""

FOR_TOOLS = re.compile(r"#\s*(noqa|type:\s*ignore|!)")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef)


def python_files(folder: Path) -> list[Path]:
    """All Python files below a folder."""
    return sorted(folder.rglob("*.py"))


def lines_of(nodes: Sequence[ast.stmt]) -> int:
    """Lines that statements cover."""
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes)


def import_lines(tree: ast.Module) -> int:
    """Lines of imports, at any depth, and of ``__all__``."""
    nodes: list[ast.stmt] = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            nodes.append(node)
    return lines_of(nodes)


def comment_and_code_lines(text: str) -> tuple[int, int]:
    """Lines with a comment for readers, and lines with code. Docstrings and comments for tools are neither."""
    comments: set[int] = set()
    code: set[int] = set()
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not FOR_TOOLS.match(token.string):
                comments.add(token.start[0])
        elif token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(comments), len(code - docstring_lines(ast.parse(text)))


def bodies(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """Bodies of the module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.body


def docstring_nodes(tree: ast.Module) -> list[ast.Expr]:
    """String statements: docstrings, and strings below a constant or an attribute that describe it."""
    return [
        node
        for body in bodies(tree)
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings cover."""
    return {line for node in docstring_nodes(tree) for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def prose(tree: ast.Module) -> str:
    """The text of all docstrings, without code in backquotes."""
    text = "\n".join(str(node.value.value) for node in docstring_nodes(tree))  # type: ignore[attr-defined]
    return re.sub(r"`+[^`]*`+", " ", text)


def public_definitions(tree: ast.Module) -> Iterator[ast.AST]:
    """The module, its public functions and classes, and public methods of public classes."""
    yield tree
    for node in tree.body:
        if isinstance(node, DOCUMENTED) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, FUNCTIONS) and not n.name.startswith("_"))


def per(count: float, total: float, unit: float, digits: int = 1) -> float:
    """``count`` per ``unit`` of ``total``."""
    return round(unit * count / total, digits) if total else 0.0


def function_lengths(trees: Sequence[ast.Module]) -> list[int]:
    """Lines of every function, nested functions included."""
    return sorted(lines_of([node]) for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def source_measures(root: Path) -> dict[str, float | int | str]:
    """Sizes, imports, comments and prose of the package."""
    files = python_files(root / PACKAGE)
    if not files:
        raise SystemExit(f"{root} has no folder {PACKAGE}: name the root of a tree")
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    lengths = {file: len(text.splitlines()) for file, text in texts.items()}
    longest = max(lengths, key=lambda file: lengths[file])
    functions = function_lengths(list(trees.values()))
    comments, code = map(sum, zip(*map(comment_and_code_lines, texts.values()), strict=True))
    public = [node for tree in trees.values() for node in public_definitions(tree)]
    documented = sum(ast.get_docstring(node) is not None for node in public)  # type: ignore[arg-type]
    text = "\n".join(map(prose, trees.values()))
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", text)
    lines = sum(lengths.values())
    return {
        "files": len(files),
        "lines": lines,
        "median file": int(median(lengths.values())),
        "longest file": lengths[longest],
        "longest file is": longest.relative_to(root).as_posix(),
        "function p50": functions[len(functions) // 2],
        "function p90": functions[int(0.9 * len(functions))],
        "longest function": functions[-1],
        "files under 50 lines": sum(length < 50 for length in lengths.values()),
        "imports and __all__, % of lines": per(sum(map(import_lines, trees.values())), lines, 100),
        "comment lines per 100 code lines": per(comments, code, 100),
        "docstrings on public names, %": per(documented, len(public), 100),
        "docstring words": len(words),
        "vague words per 1,000 docstring words": per(sum(word.lower() in VAGUE for word in words), len(words), 1000),
        "semicolons per 1,000 docstring words": per(text.count(";"), len(words), 1000),
    }


def test_measures(root: Path, code_lines: int) -> dict[str, float | int]:
    """Lines of tests, and lines of the README."""
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in python_files(root / "tests"))
    readme = root / "README.md"
    words = readme.read_text(encoding="utf-8").split() if readme.exists() else []
    return {
        "test lines": lines,
        "test lines per code line": per(lines, code_lines, 1, digits=2),
        "README lines": len(readme.read_text(encoding="utf-8").splitlines()) if readme.exists() else 0,
        "README words": len(words),
    }


def measure(root: Path, items: int | None, minutes: float | None) -> dict[str, float | int | str]:
    """The whole column of one tree."""
    column = source_measures(root)
    column |= test_measures(root, int(column["lines"]))
    if items is not None:
        column["test items"] = items
    if minutes is not None:
        column["test minutes"] = minutes
    return column


def print_table(column: dict[str, float | int | str]) -> None:
    """One line per number."""
    width = max(map(len, column))
    for name, value in column.items():
        print(f"{name:<{width}}  {value:>12,}" if isinstance(value, int | float) else f"{name:<{width}}  {value}")


def main() -> None:
    """Measure, print, and record where a column is named."""
    parser = argparse.ArgumentParser(description="Measure the structure of a source tree.")
    parser.add_argument("path", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--items", type=int, help="number of test items, as pytest --collect-only counts them")
    parser.add_argument("--minutes", type=float, help="minutes of the test suite")
    parser.add_argument("--record", choices=("before", "after"), help=f"write this column of {RESULTS.name}")
    options = parser.parse_args()
    column = measure(options.path.resolve(), options.items, options.minutes)
    if options.json:
        print(json.dumps(column))
    else:
        print_table(column)
    if options.record:
        columns = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        columns[options.record] = column
        ordered = {name: columns[name] for name in ("before", "after") if name in columns}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
