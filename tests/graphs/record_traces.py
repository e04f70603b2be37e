"""Record the digests that test_trace_version.py compares traces with: ``python -m tests.graphs.record_traces``."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from dipgo_deploy.core.contract import installed_versions
from dipgo_deploy.graphs import Trace, trace
from dipgo_deploy.graphs.trace import TRACE_VERSION
from dipgo_deploy.models import load_model
from tests.graphs.surgery import TRACES

RECORD = Path(__file__).parent.parent / "data" / "traces.json"
LIBRARIES = ("diffusers", "onnx", "onnx-ir", "onnxscript", "torch")
"""Libraries that decide what an export looks like."""


def trace_digest(made: Trace) -> str:
    """sha256 over ``blocks.json`` and the structure of the master graph.

    The structure leaves out floating-point constants, whose last bits may differ from one processor to another.
    """
    graph = onnx.load_model(made.master, load_external_data=False).graph
    for tensor in graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.ClearField("external_data")  # The offset depends on the header of the weights file.
    digest = hashlib.sha256((made.folder / "blocks.json").read_bytes())
    digest.update(graph.SerializeToString(deterministic=True))
    return digest.hexdigest()


def complaint(record: dict, versions: dict[str, str], digests: dict[str, str], trace_version: int) -> str | None:
    """What is wrong with the recorded digests, or None. ``record`` was made with the same library versions."""
    assert record["versions"] == versions
    changed = sorted(name for name, digest in digests.items() if record["digests"][name] != digest)
    if record["trace_version"] != trace_version:
        return f"TRACE_VERSION is {trace_version}, recorded {record['trace_version']}: run python -m {MODULE}"
    if changed:
        return (
            f"the traces of {', '.join(changed)} changed, but TRACE_VERSION is still {trace_version}: raise it in "
            f"dipgo_deploy/graphs/trace.py, so that old traces in caches are not used, then run python -m {MODULE}"
        )
    return None


MODULE = "tests.graphs.record_traces"


def main() -> None:
    """Write the record. Refuses to replace digests of the same TRACE_VERSION and libraries."""
    versions = installed_versions(LIBRARIES)
    with TemporaryDirectory() as folder:
        digests = {
            f"{name}/{granularity}": trace_digest(
                trace(load_model(name), granularity=granularity, out=Path(folder) / f"{name}-{granularity}")
            )
            for name, granularity in TRACES
        }
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
        if (record["versions"], record["trace_version"]) == (versions, TRACE_VERSION):
            sys.exit(complaint(record, versions, digests, TRACE_VERSION) or "nothing changed")
    document = {"trace_version": TRACE_VERSION, "versions": versions, "digests": digests}
    RECORD.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
