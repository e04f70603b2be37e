"""What every refusal looks like, and the ways to damage a file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dipgo_deploy.cli.main import run


def refused(arguments: list[object], words: str, capsys: Any, code: int = 3) -> None:
    """The command exits with ``code`` and one ``error:`` line that holds ``words``, after nothing but progress.

    What was at ``--out`` is there unchanged, and nothing else beside it.
    """
    target = Path(str(arguments[arguments.index("--out") + 1])) if "--out" in arguments else None
    before = _state(target)
    assert run([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    lines = [
        line
        for line in captured.err.splitlines()
        if not line.endswith(" …") and not line.startswith(("assumed: ", "note: "))
    ]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in captured.err, captured.err
    assert words in lines[0], lines[0]
    assert re.search(r"[:,;] \w", lines[0].removeprefix("error: ")), "it says what to do"
    assert code == 4 or captured.out == ""  # a verification that fails still reports
    assert _state(target) == before


def _state(target: Path | None) -> object:
    if target is None or not target.parent.is_dir():
        return None
    found = [target, *target.parent.iterdir(), *(target.rglob("*") if target.is_dir() else ())]
    return {path: path.read_bytes() if path.is_file() else path.exists() for path in found}


def truncate(path: Path) -> None:
    """Keep the first half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path, at: int, bits: int = 0xFF) -> None:
    """Flip ``bits`` of the byte at an offset."""
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def seal(bundle: Path) -> None:
    """Make the manifest's records fit the files as they are now: what a forger would do."""

    def update(manifest: dict[str, Any]) -> None:
        for record in manifest["files"]:
            content = (bundle / record["path"]).read_bytes()
            record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(bundle / "bundle.json", update)
