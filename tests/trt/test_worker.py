"""A worker ends with its parent, even where nobody can tell the worker to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import subprocess, sys
from dataclasses import dataclass
from dipgo_deploy.trt import build

@dataclass
class Job:
    graph: str
    folder: str
    timing_cache: str

WORKER = '''
import os, sys, time
from dipgo_deploy.trt import worker
worker.job_from_json = lambda text: text
worker.build_engine = lambda job: (print(os.getpid(), flush=True), time.sleep(60))
sys.exit(worker.main())
'''
start = subprocess.Popen
build.subprocess.Popen = lambda command, **options: start([sys.executable, "-c", WORKER, *command[3:]], **options)
build.job_to_json = lambda job: "{{}}"
build._build(Job("g", {folder!r}, {folder!r} + "/cache/t.timing"), set())
"""


def wait_for(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that has ended but has not been waited for does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_worker_of_a_killed_build_ends_at_once(tmp_path: Path) -> None:
    log = tmp_path / "g.log"
    with subprocess.Popen([sys.executable, "-c", PARENT.format(folder=str(tmp_path))], env=os.environ) as parent:
        assert wait_for(lambda: log.exists() and log.read_text().endswith("\n")), "the worker did not start"
        worker = int(log.read_text())
        assert is_alive(worker)
        parent.kill()
        assert wait_for(lambda: not is_alive(worker), 2.0)


def test_a_worker_whose_parent_has_ended_before_does_not_begin() -> None:
    code = "from dipgo_deploy.trt.worker import end_with_parent; end_with_parent(0); print('begun')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ((1, "") if sys.platform == "linux" else (0, "begun\n"))
