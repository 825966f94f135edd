"""Engines that the bundle has already, from a build that was told the same: they are kept as they are."""

from __future__ import annotations

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import EngineRecord, GraphEngine, check_engine, load_record
from edgevqa.runtime.errors import EdgeVQAError
from edgevqa.runtime.plans import Version


def finished_engines(bundle: Bundle, key: str, wanted: EngineRecord) -> dict[str, GraphEngine]:
    """Undamaged engines of the bundle's present graphs, where all but the graphs of their record is as in `wanted`.

    Their profiles are for the caller to compare.
    """
    if key not in bundle.manifest.engines:
        return {}
    try:
        record = load_record(bundle, key)
    except EdgeVQAError:
        return {}
    if _told(record, wanted.tensorrt_version) != _told(wanted, wanted.tensorrt_version):
        return {}
    return {name: engine for name, engine in record.graphs.items() if _is_whole(bundle, key, name, record)}


def _told(record: EngineRecord, version: Version) -> EngineRecord:
    """What the record says of the build. TensorRT's Python may not tell its build, then that is not compared."""
    own = (*record.tensorrt_version[:3], record.tensorrt_version[3] if version[3] else 0)
    return msgspec.structs.replace(record, graphs={}, driver=None, calibration_sha256=None, tensorrt_version=own)


def _is_whole(bundle: Bundle, key: str, graph: str, record: EngineRecord) -> bool:
    try:
        check_engine(bundle, key, graph, record)
    except EdgeVQAError:
        return False
    return True
