"""The rules that a reader of one file cannot see: who imports whom, where libraries live, what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dipgo_deploy"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    "core",
    "models",
    "supernet",
    "search",
    "experts",
    "lowering",
    "graphs",
    "trt",
    "runtime",
    "bench",
    "serve",
    "cli",
)
"""Imports run from right to left: a package may import itself and whatever stands before it."""

ONLY_CORE = {"core": set(), "lowering": {"core"}}
"""Packages held to less than the order allows: pure functions on plain data."""

THIRD_PARTY = {"core": {"numpy", "pydantic"}, "lowering": {"numpy"}, "cli": {"numpy", "rich", "typer"}}
"""All that these packages may import from outside the standard library."""

HOMES = {
    "diffusers": ("models/", "runtime/dropin/"),
    "onnx": ("graphs/",),
    "onnx_ir": ("graphs/",),
    "onnxscript": ("graphs/",),
    "onnxruntime": ("runtime/onnxruntime_backend.py", "runtime/devices.py"),
    "polygraphy": ("trt/",),
    "tensorrt": ("trt/",),
    "tensorrt_rtx": ("trt/",),
}
"""Where each heavy library may be imported. devices.py asks ONNX Runtime what it was built with."""

DRAWERS = re.compile(r"utils?|helpers?|common|misc|.*manager.*")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(file: Path) -> str:
    """The first folder below the package, or "" for the package's own file."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """``(dotted name, line)`` of every import, those inside functions included."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def allowed_packages(package: str) -> set[str]:
    return ONLY_CORE.get(package, set(ORDER[: ORDER.index(package)])) | {package}


def named(files: list[Path]) -> list:
    return [pytest.param(file, id=file.relative_to(ROOT).as_posix()) for file in files]


def test_every_package_has_its_place_in_the_order():
    assert {package_of(file) for file in FILES} - {""} <= set(ORDER)


@pytest.mark.parametrize("file", named([file for file in FILES if package_of(file)]))
def test_imports_run_one_way(file):
    wrong = [
        f"{file}:{line}: {name}"
        for name, line in imports_of(file)
        if name.startswith("dipgo_deploy.")
        and name.split(".")[1] in ORDER
        and name.split(".")[1] not in allowed_packages(package_of(file))
    ]
    assert not wrong


@pytest.mark.parametrize("file", named([file for file in FILES if package_of(file) in THIRD_PARTY]))
def test_light_packages_stay_light(file):
    allowed = THIRD_PARTY[package_of(file)] | {"dipgo_deploy"} | sys.stdlib_module_names
    assert [f"{file}:{line}: {n}" for n, line in imports_of(file) if n.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("file", named(FILES))
def test_heavy_libraries_stay_in_their_homes(file):
    where = file.relative_to(PACKAGE).as_posix()
    wrong = [
        f"{file}:{line}: {name}"
        for name, line in imports_of(file)
        if not where.startswith(HOMES.get(name.split(".")[0], (where,)))
    ]
    assert not wrong


def test_there_is_no_drawer_for_odds_and_ends():
    parts = {part for file in FILES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert not [part for part in parts if DRAWERS.fullmatch(part)]


IMPORT_ALL = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")
for name in blocked:
    sys.modules[name] = None
failed = []
for name in modules:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
print("\\n".join(failed))
"""

OPTIONAL = ("onnxruntime", "tensorrt", "tensorrt_rtx", "peft", "fastapi")
ONNX = ("onnx", "onnx_ir", "onnxscript")
HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "sklearn")
BLOCKED = {
    "light": ((*OPTIONAL, *ONNX, *HEAVY), ("", "core", "lowering", "cli")),
    "before-onnx": ((*OPTIONAL, *ONNX), ("models", "supernet", "search", "experts")),
    "without-extras": (OPTIONAL, ("graphs", "runtime", "bench")),
}
"""By name: the libraries that are missing, and the packages whose every module must import all the same."""


@pytest.mark.parametrize("case", BLOCKED)
def test_modules_import_without_the_libraries_they_do_not_own(case):
    blocked, packages = BLOCKED[case]
    homes = ("runtime/onnxruntime_backend.py",)
    found = [f for f in FILES if package_of(f) in packages and not f.relative_to(PACKAGE).as_posix().startswith(homes)]
    modules = ",".join(module_of(file) for file in found if file.name != "__main__.py")
    arguments = [sys.executable, "-c", IMPORT_ALL, ",".join(blocked), modules]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def public_definitions(file: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public classes and functions of a module and public methods of its public classes, properties included."""
    for node in tree_of(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


@pytest.mark.parametrize("file", named(FILES))
def test_public_names_are_documented(file):
    assert ast.get_docstring(tree_of(file)), f"{file}: the module"
    assert [f"{file}:{d.lineno}: {d.name}" for d in public_definitions(file) if not ast.get_docstring(d)] == []


DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"`dipgo-deploy ([a-z][a-z-]*)")


def test_commands_in_the_documents_exist():
    from dipgo_deploy.cli.main import app

    known = {command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    named_commands = {name for document in DOCUMENTS for name in COMMAND.findall(document.read_text(encoding="utf-8"))}
    assert named_commands == known


def test_options_in_the_readme_exist():
    from dipgo_deploy.cli import main

    for line in re.findall(r"`dipgo-deploy ([^`]+)`", (ROOT / "README.md").read_text()):
        command, options = line.split()[0], re.findall(r"(--[a-z-]+)", line)
        done = subprocess.run(
            [sys.executable, "-m", main.__name__, command, "--help"], capture_output=True, text=True, check=True
        )
        assert [option for option in options if option not in done.stdout] == []


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= targets


def test_pinned_versions_satisfy_the_declared_floors():
    import tomllib

    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(r) for r in (*project["dependencies"], *extras["cpu"], *extras["rtx"], *extras["dev"])]
    assert [r.name for r in wanted if r.name not in pins] == []
    assert [str(r) for r in wanted if pins[r.name] not in r.specifier] == []
