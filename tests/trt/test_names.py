"""Every name of TensorRT's API that the code uses exists in 10.16, 11.4 and RTX 1.7, so one code path serves all."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipgo_deploy.runtime.tensorrt_engine import OpenEngine

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "dipgo_deploy"
LISTS = json.loads((HERE / "tensorrt_api.json").read_text())
"""Public members by version and class, as each library lists them."""

OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "parser_refitter": "OnnxParserRefitter",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "tensor": "ITensor",
}
"""The class behind each variable name in the files below."""

MODULES = ("trt",)
"""Variables that hold the module itself, in addition to attributes called ``module``."""

OWN_ENGINES = "tensorrt_backend.py"
"""The file in which ``engine`` is our OpenEngine, not an engine of the library."""

RTX_ALONE = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("ComputeCapability", ""),
}
"""Names that only RTX has: the choice of architectures, which Target makes only for RTX."""

UNLISTED = "name"
"""A property of tensors, layers and enumerations in every version. The lists leave this property out."""

FILES = [
    path
    for path in (*(PACKAGE / "trt").glob("*.py"), *(PACKAGE / "runtime").glob("tensorrt*.py"))
    if path.name in ("network.py", "target.py", "worker.py") or path.parent.name == "runtime"
]


def uses_of(path: Path) -> Iterator[tuple[str, str]]:
    """``(class, member)`` of every use of TensorRT. The member is "" for the class itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if node.attr == UNLISTED:
            continue
        if isinstance(owner, ast.Name) and owner.id == "engine" and path.name == OWN_ENGINES:
            assert hasattr(OpenEngine, node.attr) or node.attr in OpenEngine.__dataclass_fields__, node.attr
        elif isinstance(owner, ast.Name) and owner.id in OBJECTS:
            yield OBJECTS[owner.id], node.attr
        elif _is_module(owner):
            yield node.attr, ""
        elif isinstance(owner, ast.Attribute) and _is_module(owner.value):
            yield owner.attr, node.attr


def _is_module(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "module"
    return isinstance(node, ast.Name) and node.id in MODULES


USES = sorted({(*use, path.name) for path in FILES for use in uses_of(path)} - {("__version__", "", "target.py")})


def test_the_scan_finds_known_uses():
    uses = {(owner, member) for owner, member, _ in USES}
    known = {
        ("Builder", "create_network"),
        ("OnnxParser", "parse_from_file"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("BuilderFlag", "REFIT_IDENTICAL"),
        ("ITensor", "shape"),
    }
    assert known <= uses and len(uses) >= 20


@pytest.mark.parametrize("version", list(LISTS))
def test_every_name_exists_in_every_version(version: str) -> None:
    shared = [use for use in USES if use[:2] not in RTX_ALONE or version == "rtx1.7"]
    assert [use for use in shared if not has_name(version, *use[:2])] == []


def has_name(version: str, owner: str, member: str) -> bool:
    return owner in LISTS[version] and (not member or member in LISTS[version][owner])


def test_only_the_target_uses_what_only_rtx_has() -> None:
    assert {file for owner, member, file in USES if (owner, member) in RTX_ALONE} == {"target.py"}


@pytest.mark.parametrize("version", list(LISTS))
def test_type_names_exist_in_every_version(version: str) -> None:
    from dipgo_deploy.trt.network import DTYPE_NAMES

    assert set(DTYPE_NAMES) <= set(LISTS[version]["DataType"])


def test_a_name_that_one_version_lacks_would_be_found() -> None:
    assert has_name("10.16", "BuilderFlag", "FP16") and not has_name("11.4", "BuilderFlag", "FP16")
    assert not has_name("rtx1.7", "ICudaEngine", "device_memory_size") and not has_name("11.4", "NoSuchClass", "")
