"""The documentation names pages, commands and options that exist, and the site builds."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GENERATED = {"reference/cli.md", "reference/api.md", "changelog.md"}
OTHER_TOOLS = {"--extra-index-url", "--strict", "--quick", "--families", "--schedules", "--rounds"}
"""Options of pip, mkdocs and the scripts in docs and benchmarks, which may stand alone in inline code."""


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS = hooks().commands()
OPTIONS = {name: {word for one in command.params for word in one.opts} for name, command in COMMANDS.items()}


def snippets(page: Path) -> Iterator[str]:
    """Lines of code blocks, with continued lines joined, and inline code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    yield from (line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def command_lines(page: Path) -> Iterator[list[str]]:
    for line in snippets(page):
        if line.startswith("dipgo-deploy "):
            yield shlex.split(line.split("#")[0].replace("[OPTIONS]", ""))[1:]


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_and_its_options_exist(page):
    for command, *words in command_lines(page):
        if command in ("--help", "COMMAND", "FILE"):
            continue
        assert command in COMMANDS, f"{page.name}: {command}"
        named = {word.split("=")[0] for word in words if word.startswith("--")}
        assert named - OPTIONS[command] - {"--help"} == set(), f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_option_in_the_text_exists(page):
    known = set().union(*OPTIONS.values()) | OTHER_TOOLS | {"--help"}
    named = {line.split()[0].split("=")[0] for line in snippets(page) if re.match("--[a-z]", line)}
    assert named - known == set()


def test_every_page_is_in_the_navigation_and_exists():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w./-]+\.md", text[text.index("\nnav:") :]))
    existing = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert named - GENERATED == existing
    assert GENERATED <= named


def test_the_page_of_the_command_line_has_every_command():
    page = hooks().cli_reference()
    assert [name for name in COMMANDS if f"\n## {name}\n" not in page] == []
    assert len(COMMANDS) == len(app.registered_commands)


def test_links_from_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)]
    assert [link for link in map("".join, links) if not (ROOT / link).is_file()] == []
    assert len(text.splitlines()) <= 120


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")]
    assert len(pages) > 20
    loaded = [re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\" >]+)", page) for page in pages]
    assert [link for links in loaded for link in links] == []
