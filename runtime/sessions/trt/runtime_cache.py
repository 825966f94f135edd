"""What TensorRT-RTX compiles for this GPU when it first runs an engine, kept in the user's cache for the next start."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.plans import readable_version
from edgevqa.runtime.sessions.trt.driver import DeviceInfo
from edgevqa.runtime.sessions.trt.toolkit import Toolkit


class RuntimeCache:
    """One engine's compiled kernels. TensorRT-RTX itself refuses those of another GPU, driver or version."""

    def __init__(self, toolkit: Toolkit, device: DeviceInfo, engine_sha256: str) -> None:
        about = (engine_sha256, device.name, device.compute_capability, readable_version(toolkit.version))
        self.path = cache_dir() / "tensorrt-rtx" / f"{sha256_bytes(repr(about).encode())[:32]}.cache"
        self._cache: Any = None
        self._found = b""

    def attach(self, configuration: Any) -> None:
        """Let contexts of a configuration use the cache, and add to it."""
        if self._cache is None:
            self._cache = configuration.create_runtime_cache()
            with suppress(OSError):
                self._found = self.path.read_bytes()
            if self._found and not self._cache.deserialize(self._found):
                self._found = b""
        configuration.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what is new; where the cache cannot be written it is compiled again next time."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        self._cache = None
        if data == self._found:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
            draft.write_bytes(data)
            draft.replace(self.path)
