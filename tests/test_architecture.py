"""Rules that no single file can show: who imports whom, where libraries live, and documents that match the program.

Every test is one rule and lists all offenders. Docstrings of public names are ruff's rules D100 to D104.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dipgo_deploy"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

ORDER = (
    "core",
    "models",
    "supernet",
    "lowering",
    "graphs",
    "search",
    "bundle",
    "trt",
    "runtime",
    "pipeline",
    "verify",
    "engines",
    "bench",
    "recipes",
    "cli",
)
"""A package may import itself and the packages before it."""

ONLY_CORE = {"core": set(), "lowering": {"core"}}
"""Packages that may import less than the order allows: pure functions on plain data."""

THIRD_PARTY = {"core": {"numpy", "pydantic"}, "lowering": {"numpy"}, "cli": {"numpy", "rich", "typer"}}
"""Everything that light packages may import from outside the standard library."""

HOMES = {
    "diffusers": ("models/", "pipeline/"),
    "onnx": ("graphs/",),
    "onnx_ir": ("graphs/",),
    "onnxscript": ("graphs/",),
    "onnxruntime": ("runtime/onnxruntime_backend.py", "runtime/environment.py"),
    "polygraphy": ("trt/",),
    "tensorrt": ("trt/",),
    "tensorrt_rtx": ("trt/",),
}
"""Where each heavy library may be imported. environment.py only asks ONNX Runtime how it was built."""

DRAWERS = re.compile(r"utils?|helpers?|common|misc|.*manager.*")
LONGEST_FILE = 300


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(file: Path) -> str:
    """The first folder below the package, or "" for the package's own file."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


MODULES = frozenset(map(module_of, FILES))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node``, without those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from (other, *statements(other))
            continue
        yield child
        yield from statements(child)


def imported_names(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


@cache
def imports_of(file: Path, typing: bool = False) -> tuple[tuple[str, int], ...]:
    """``(dotted name, line)`` of every import. Imports inside functions count, those for ``typing`` only on request."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return tuple(imported_names(ast.walk(tree) if typing else statements(tree)))


def place(file: Path, line: int, text: str) -> str:
    return f"{file.relative_to(ROOT).as_posix()}:{line}: {text}"


def offenders(rule: str, lines: list[str]) -> None:
    """Fail with all offenders, one a line."""
    assert not lines, f"{rule}\n  " + "\n  ".join(lines)


def test_every_package_has_its_place_in_the_order() -> None:
    offenders(f"packages that are not in {ORDER}", sorted({package_of(file) for file in FILES} - {"", *ORDER}))


def test_imports_run_one_way() -> None:
    """Imports that only a type checker reads count too: types are dependencies of a reader."""
    wrong = []
    for file in FILES:
        package = package_of(file)
        if package not in ORDER:
            continue
        allowed: Set[str] = ONLY_CORE.get(package, set(ORDER[: ORDER.index(package)])) | {package}
        for name, line in imports_of(file, typing=True):
            parts = name.split(".")
            if parts[0] == "dipgo_deploy" and parts[1] in ORDER and parts[1] not in allowed:
                wrong.append(place(file, line, name))
    offenders("a package imports a package that comes after it", wrong)


def module_graph() -> dict[str, set[str]]:
    """The modules that each module imports. Importing from another package also runs that package's ``__init__``."""
    graph: dict[str, set[str]] = {}
    for file in FILES:
        module = module_of(file)
        edges = graph.setdefault(module, set())
        for name, _ in imports_of(file, typing=True):
            target = name if name in MODULES else name.rpartition(".")[0]
            if target not in MODULES:
                continue
            edges.add(target)
            other = ".".join(target.split(".")[:2])
            if other != ".".join(module.split(".")[:2]):
                edges.add(other)
        edges.discard(module)
    return graph


def find_cycle(graph: Mapping[str, Set[str]]) -> list[str]:
    """A shortest cycle of ``graph``, its first node repeated at the end. Empty without cycles."""
    shortest: list[str] = []
    for start in sorted(graph):
        before: dict[str, str] = {}
        todo = [start]
        while todo:
            node = todo.pop(0)
            for target in sorted(graph.get(node, ())):
                if target == start:
                    path = [start, node]
                    while path[-1] != start:
                        path.append(before[path[-1]])
                    if not shortest or len(path) < len(shortest):
                        shortest = path[::-1]
                    todo = []
                    break
                if target not in before:
                    before[target] = node
                    todo.append(target)
    return shortest


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and imports for a type checker count too. So does a module that imports its package."""
    cycle = find_cycle(module_graph())
    assert not cycle, " imports\n  ".join(cycle)


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"a", "b"}}, ["b", "c", "d", "b"]),
    ],
)
def test_the_search_for_circles_finds_a_shortest_one(edges: dict[str, set[str]], cycle: list[str]) -> None:
    assert find_cycle(edges) == cycle


def test_light_packages_stay_light() -> None:
    wrong = [
        place(file, line, name)
        for file in FILES
        if (package := package_of(file)) in THIRD_PARTY
        for name, line in imports_of(file)
        if name.split(".")[0] not in THIRD_PARTY[package] | {"dipgo_deploy"} | sys.stdlib_module_names
    ]
    offenders(f"light packages import more than {THIRD_PARTY}", wrong)


def test_heavy_libraries_stay_in_their_homes() -> None:
    wrong = [
        place(file, line, name)
        for file in FILES
        for name, line in imports_of(file, typing=True)
        if (homes := HOMES.get(name.split(".")[0]))
        if not file.relative_to(PACKAGE).as_posix().startswith(homes)
    ]
    offenders(f"a library is imported outside of {HOMES}", wrong)


def test_ruff_bans_every_heavy_library_outside_its_home() -> None:
    """The messages of ruff name the homes of the table above."""
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert banned.keys() == HOMES.keys()
    wrong = [
        f"{library}: {banned[library]['msg']!r} does not name {home}"
        for library, homes in HOMES.items()
        for home in homes
        if f"dipgo_deploy/{home.rstrip('/')}" not in banned[library]["msg"]
    ]
    offenders("messages of banned-api in pyproject.toml", wrong)


def test_ruff_asks_for_docstrings_on_public_names() -> None:
    lint = PROJECT["tool"]["ruff"]["lint"]
    ignored = {
        *lint["ignore"],
        *(rule for path, rules in lint["per-file-ignores"].items() if "tests" not in path for rule in rules),
    }
    assert "D" in lint["select"] and not ignored & {"D", "D1", "D100", "D101", "D102", "D103", "D104"}


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    wrong = {
        file.relative_to(ROOT).as_posix()
        for file in FILES
        if any(DRAWERS.fullmatch(part) for part in file.relative_to(ROOT).with_suffix("").parts)
    }
    offenders("names that say nothing about the content", sorted(wrong))


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    wrong = [f"{file.relative_to(ROOT)}: {length} lines" for file, length in lengths.items() if length > LONGEST_FILE]
    offenders(f"files of more than {LONGEST_FILE} lines", wrong)


IMPORT_ALL = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")
for name in blocked:
    sys.modules[name] = None
for name in modules:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""

OPTIONAL = ("onnxruntime", "tensorrt", "tensorrt_rtx", "peft", "fastapi")
ONNX = ("onnx", "onnx_ir", "onnxscript")
HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "sklearn")
LIGHT = ("", "core", "lowering", "recipes", "cli")
BEFORE_ONNX = ("models", "supernet")
BLOCKED = {
    "light": ((*OPTIONAL, *ONNX, *HEAVY), LIGHT),
    "before-onnx": ((*OPTIONAL, *ONNX), BEFORE_ONNX),
    "without-extras": (OPTIONAL, tuple(package for package in ORDER if package not in (*LIGHT, *BEFORE_ONNX))),
}
"""By name: the missing libraries, and the packages whose modules must all import without them."""


@pytest.mark.parametrize("case", BLOCKED)
def test_modules_import_without_the_libraries_they_do_not_own(case: str) -> None:
    blocked, packages = BLOCKED[case]
    owners = tuple(home for library in blocked for home in HOMES.get(library, ()) if home.endswith(".py"))
    files = [file for file in FILES if package_of(file) in packages and file.name != "__main__.py"]
    modules = [module_of(file) for file in files if file.relative_to(PACKAGE).as_posix() not in owners]
    arguments = [sys.executable, "-c", IMPORT_ALL, ",".join(blocked), ",".join(modules)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    offenders(f"modules that need one of {blocked}", result.stdout.splitlines())


DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMAND = re.compile(r"(?:^|\$ )dipgo-deploy ([a-z][a-z-]*)", re.MULTILINE)
TARGET = re.compile(r"(?:^|\$ )make ([a-z-]+)\b", re.MULTILINE)


def code_in_documents() -> Iterator[tuple[Path, int, str]]:
    """``(document, line, code)`` of every line of a code block and every piece of code within a line."""
    for document in DOCUMENTS:
        in_block = False
        text = re.sub(r" *\\\n *", " ", document.read_text(encoding="utf-8"))  # Commands may go on in the next line.
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                in_block = not in_block
            elif in_block:
                yield document, number, line.strip()
            else:
                yield from ((document, number, code) for code in re.findall(r"`([^`]+)`", line))


def test_documents_name_existing_commands_and_every_command() -> None:
    from dipgo_deploy.cli.main import app

    known = {command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback}
    used = [
        (place(file, number, name), name)
        for file, number, code in code_in_documents()
        for name in COMMAND.findall(code)
    ]
    offenders("commands that do not exist", [where for where, name in used if name not in known])
    offenders("commands that no document names", sorted(known - {name for _, name in used}))


def test_options_in_the_documents_exist() -> None:
    from typer.main import get_command

    from dipgo_deploy.cli.main import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: {"--help", *(option for entry in command.params for option in (*entry.opts, *entry.secondary_opts))}
        for name, command in commands.items()
    }
    wrong = [
        place(file, number, f"{name} {option}")
        for file, number, code in code_in_documents()
        for name in COMMAND.findall(code)[:1]
        for option in re.findall(r"(?<=\s)(--[a-z0-9-]+)", code)
        if option not in options.get(name, ())
    ]
    offenders("options that do not exist", wrong)


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = [
        place(file, number, f"make {target}")
        for file, number, code in code_in_documents()
        for target in TARGET.findall(code)
        if target not in targets
    ]
    offenders("targets that the Makefile lacks", wrong)


def test_pinned_versions_satisfy_the_declared_floors() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    groups = (PROJECT["project"]["dependencies"], extras["cpu"], extras["rtx"], extras["dev"])
    requirements = [Requirement(line) for group in groups for line in group]
    offenders("requirements without a pin", [r.name for r in requirements if r.name not in pins])
    offenders("pins below their floor", [str(r) for r in requirements if pins[r.name] not in r.specifier])
