"""What a build can be told: one configuration for the command line, the Python API and engine.json."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import msgspec

from edgevqa.runtime.errors import InputError
from edgevqa.runtime.targets import Target, target

_DECIMAL = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS = {**_DECIMAL, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
MAX_OPTIMIZATION_LEVEL = 5
MOST = 2**31 - 1  # of any size or count
_MOST_BYTES = 2**62


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines are built.

    `precision` is a precision or a variant of the bundle; None takes the best that the bundle has for the target.
    `batch` lists sizes: each engine gets a profile for one row, and one that spans them. `max_question`,
    `max_new_tokens` and, of models whose decoder reads the whole prompt, `max_prompt` (picture and question together) are
    counts of tokens, and the bundle's where 0. `axes` gives (least, usual, most) for axes
    by name. `workspace_bytes` is TensorRT's own pool, `memory_budget_bytes` what the building process may take in all.
    `compute_capabilities` ("8.9") are for TensorRT-RTX, which builds for GPUs that are not there.
    """

    target: str
    precision: str | None = None
    batch: tuple[int, ...] = (1, 4, 8)
    max_question: int = 0
    max_prompt: int = 0
    max_new_tokens: int = 0
    axes: dict[str, tuple[int, int, int]] = {}
    workspace_bytes: int | None = None
    memory_budget_bytes: int | None = None
    timing_cache: str | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    dla_core: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.timing_cache is not None:  # a Path from Python: the building process is told in JSON, which has none
            msgspec.structs.force_setattr(self, "timing_cache", os.fspath(self.timing_cache))
        row = self.row
        if not row.builds_engines:
            reason = row.cannot.get("build", f"it runs the ONNX graphs with {row.backend}, no engine is needed")
            raise InputError(f"Target '{self.target}' has no engines to build: {reason}.")
        self._check_sizes()
        level = self.optimization_level
        if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
            raise InputError(f"--optimization-level {level}: expected 0 (quick build) to {MAX_OPTIMIZATION_LEVEL}.")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                meant = f" Did you mean {capability}.0?" if re.fullmatch(r"\d\d?", capability) else ""
                raise InputError(f"--compute-capability {capability}: expected a number such as 8.9.{meant}")
        if self.compute_capabilities and row.flavour != "tensorrt-rtx":
            raise InputError(
                f"--compute-capability is for target 'rtx'; engines for '{self.target}' are built for the GPU at hand."
            )
        if self.dla_core is not None and not row.dla:
            raise InputError(f"--dla-core: {row.cannot.get('DLA', 'this target has no DLA')}.")
        if self.dla_core is not None and self.dla_core < 0:
            raise InputError(f"--dla-core {self.dla_core}: expected 0 or more.")

    def _check_sizes(self) -> None:
        if not self.batch or min(self.batch) < 1 or max(self.batch) > MOST:
            raise InputError(f"--batch {','.join(map(str, self.batch))}: expected sizes of 1 or more, such as 1,4,8.")
        counts = {
            "--max-question": self.max_question,
            "--max-prompt": self.max_prompt,
            "--max-new-tokens": self.max_new_tokens,
        }
        for name, count in counts.items():
            if not 0 <= count <= MOST:
                raise InputError(
                    f"{name} {count}: it is a count of tokens; expected 1 to {MOST:,}, or 0 for what the model takes."
                )
        for name, (low, usual, high) in self.axes.items():
            if not 1 <= low <= usual <= high <= MOST:
                raise InputError(f"--axis {name}={low}:{usual}:{high}: expected 1 <= least <= usual <= most.")

    @property
    def row(self) -> Target:
        """The target's facts."""
        return target(self.target)

    def recorded(self) -> dict[str, int | float | str | bool | None]:
        """What engine.json says of the builder's options: those that were given, and the batch sizes."""
        counts = {
            "max_question": self.max_question or None,
            "max_prompt": self.max_prompt or None,
            "max_new_tokens": self.max_new_tokens or None,
            "axes": " ".join(f"{name}={':'.join(map(str, sides))}" for name, sides in self.axes.items()) or None,
            "workspace_bytes": self.workspace_bytes,
            "optimization_level": self.optimization_level,
        }
        return {
            "batch": ",".join(map(str, self.batch)),
            **{name: each for name, each in counts.items() if each is not None},
        }


def capability_numbers(capability: str) -> tuple[int, ...]:
    """`(12, 0)` of "12.0", by which they are in order."""
    return tuple(int(part) for part in capability.split("."))


def parse_size(text: str, option: str) -> int:
    """Bytes of `2GB`, `512MiB` or a plain number. Raises `InputError` naming the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    unit = match.group(2) if match else ""
    size = 0 if match is None or unit not in _UNITS else float(match.group(1)) * _UNITS[unit]
    if not 1 <= size <= _MOST_BYTES:
        raise InputError(f"{option} {text}: expected a size such as 2GB or 512MiB.")
    return int(size)


def parse_axis(text: str) -> tuple[str, tuple[int, int, int]]:
    """`frames=1:4:8` as a name and its least, usual and most. Raises `InputError`."""
    match = re.fullmatch(r"(\w+)=(\d+):(\d+):(\d+)", text.strip())
    if match is None:
        raise InputError(f"--axis {text}: expected NAME=LEAST:USUAL:MOST, such as frames=1:4:8.")
    low, usual, high = (int(part) for part in match.groups()[1:])
    return match.group(1), (low, usual, high)


def parse_axes(texts: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """`--axis` as often as it was given. Raises `InputError` for a name that is given twice."""
    found: dict[str, tuple[int, int, int]] = {}
    for name, sides in map(parse_axis, texts):
        if name in found:
            raise InputError(f"--axis {name} is given twice; expected once for each axis.")
        found[name] = sides
    return found
