"""TensorRT and TensorRT-RTX behind one seam: what is installed, and what each version can be asked for."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import msgspec

from edgevqa.export.engine.options import BuildOptions, capability_numbers
from edgevqa.runtime.errors import InputError, MissingExtraError, UnavailableError
from edgevqa.runtime.plans import Version, parse_version, readable_version
from edgevqa.runtime.targets import Target

_ARM = ("aarch64", "arm64")
_MODULES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx")}
_SYSTEM_HINT = (
    "On a Jetson it comes with JetPack: make the environment with 'python3 -m venv --system-site-packages'. "
    "Elsewhere: pip install tensorrt, in the version of the machine that runs the engines."
)


class Toolkit(msgspec.Struct, frozen=True):
    """An imported TensorRT module and its version."""

    module: Any
    version: Version


def load_toolkit(row: Target) -> Toolkit:
    """Import the target's TensorRT.

    Raises `UnavailableError` where it is not installed (saying how), and `InputError` where its version is not one that
    the target comes with.
    """
    if row.flavour is None:
        raise InputError(f"Target '{row.name}' has no engines to build.")
    refuse_elsewhere(row, platform.machine())
    name, extra = _MODULES[row.flavour]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if row.flavour == "tensorrt-rtx":
            raise MissingExtraError(name, extra, "Building engines for RTX GPUs") from error
        raise UnavailableError(
            f"Building for '{row.name}' needs TensorRT, which is not installed. {_SYSTEM_HINT}"
        ) from error
    except (ImportError, OSError) as error:
        raise UnavailableError(f"TensorRT is installed but cannot be loaded: {error}.") from error
    version = parse_version(str(module.__version__))
    check_version(row, version)
    return Toolkit(module, version)


def refuse_elsewhere(row: Target, architecture: str) -> None:
    """Raise `UnavailableError` for a Jetson's engines on another kind of machine, whose plans no Jetson loads."""
    if row.name.startswith("jetson") and architecture.lower() not in _ARM:
        raise UnavailableError(
            f"Engines for '{row.name}' are built on the Jetson itself; this machine is {architecture}. Take the bundle there "
            "(edgevqa bundle pack here, edgevqa bundle unpack there) and run the same command on it."
        )


def check_version(row: Target, version: Version) -> None:
    """Raise `InputError` where the target does not come with this TensorRT: its engines would not load there."""
    if not any(version[: wanted.count(".") + 1] == tuple(map(int, wanted.split("."))) for wanted in row.tensorrt):
        raise InputError(
            f"Here is TensorRT {readable_version(version)}; target '{row.name}' runs {' or '.join(row.tensorrt)}, and an "
            "engine runs on the version that built it. Build on that machine, or choose another --target."
        )


def refuse_impossible(options: BuildOptions, toolkit: Toolkit) -> None:
    """Raise `InputError` that names every option which this TensorRT does not have, with the reason."""
    trt, problems = toolkit.module, []
    rtx = options.row.flavour == "tensorrt-rtx"
    if options.version_compatible and rtx:
        problems.append("--version-compatible: TensorRT-RTX engines never cross a release")
    if options.hardware_compatible and rtx:
        problems.append("--hardware-compatible: TensorRT-RTX takes --compute-capability, several if need be")
    if options.hardware_compatible and options.target.startswith("jetson"):
        problems.append(
            "--hardware-compatible: it covers desktop and server GPUs from compute capability 8.0, no Jetson"
        )
    if options.strip_weights and (rtx or not hasattr(trt.BuilderFlag, "STRIP_PLAN")):
        problems.append("--strip-weights: TensorRT-RTX needs a GPU driver for it, and TensorRT 10 or later has it")
    if options.timing_cache is not None and rtx:
        problems.append("--timing-cache: TensorRT-RTX has none, it tunes when it loads an engine")
    if options.refit and rtx:
        problems.append("--refit: TensorRT-RTX needs a GPU driver for it")
    if options.dla_core is not None and not getattr(trt.Builder, "num_DLA_cores", None):
        problems.append("--dla-core: this TensorRT drives no DLA")
    for capability in options.compute_capabilities:
        if rtx and capability_member(toolkit, capability) is None:
            known = ", ".join(readable_capabilities(toolkit))
            problems.append(f"--compute-capability {capability}: this TensorRT-RTX knows {known}")
    if problems:
        raise InputError("This build cannot be made: " + "; ".join(problems) + ".")


def capability_member(toolkit: Toolkit, capability: str) -> Any:
    """The enum member of "8.9", or None."""
    return getattr(toolkit.module.ComputeCapability, f"SM{capability.replace('.', '')}", None)


def readable_capabilities(toolkit: Toolkit) -> list[str]:
    """What the module's enum knows, in order: "8.0", "12.0"."""
    names = [name[2:] for name in toolkit.module.ComputeCapability.__members__ if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names), key=capability_numbers)


def network_flags(trt: Any) -> int:
    """Flags of a strongly typed network with an explicit batch, in the spelling of any version from 10.3 to 11."""
    names = ("STRONGLY_TYPED", "EXPLICIT_BATCH")  # 11 dropped the second, 10 ignores it
    members = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(members[name]) for name in names if name in members)
