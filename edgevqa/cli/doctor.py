"""`edgevqa doctor`: what this machine has, and what to install for what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from edgevqa.cli import shared
from edgevqa.cli.output import print_json, print_pairs, print_table, print_text
from edgevqa.runtime.doctor import Backend, Diagnosis, Extra, diagnose
from edgevqa.runtime.machine import Machine


def doctor(as_json: shared.JsonOption = False) -> None:
    """Show what this machine has, and what to install.

    Example:
      edgevqa doctor --json
    """
    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis)
        return
    print_pairs(_machine_rows(diagnosis))
    print_table(("backend", "version", "devices", "to install"), map(_backend_row, diagnosis.backends))
    print_table(("extra", "installed", "missing", "to install"), map(_extra_row, diagnosis.extras))
    print_text("")
    for line in diagnosis.advice:
        print_text(f"- {line}")


def _machine_rows(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    machine = diagnosis.machine
    yield "edgevqa", diagnosis.edgevqa
    yield "Python", f"{machine.python} on {machine.architecture}"
    yield "packages", ", ".join(f"{name} {version or 'missing'}" for name, version in diagnosis.packages.items())
    yield "system", machine.system
    yield "processor", f"{machine.cpu}, {machine.usable_cores} of {machine.cores} cores usable"
    yield "instructions", " ".join(machine.instruction_sets) or "unknown"
    yield "memory", _memory(machine)
    for gpu in machine.gpus:
        memory = "" if gpu.memory_mb is None else f", {gpu.memory_mb:,} MB"
        yield "GPU", f"{gpu.name}{memory}, compute capability {gpu.compute_capability}, driver {gpu.driver}"
    if not machine.gpus:
        yield "GPU", "none that nvidia-smi knows"
    if machine.jetson is not None:
        jetson = machine.jetson
        yield "Jetson", f"{jetson.model}, L4T {jetson.l4t or 'unknown'}, JetPack {jetson.jetpack or 'unknown'}"


def _memory(machine: Machine) -> str:
    if machine.memory_mb is None:
        return "unknown"
    limit = "" if machine.memory_limit_mb is None else f", this container may use {machine.memory_limit_mb:,} MB"
    free = "" if machine.memory_free_mb is None else f", {machine.memory_free_mb:,} MB free"
    return f"{machine.memory_mb:,} MB{free}{limit}"


def _backend_row(backend: Backend) -> tuple[str, str, str, str]:
    devices = ", ".join(backend.devices)
    if backend.version is not None and not backend.devices:
        devices = "none: builds only" if backend.extra == "tensorrt-rtx" else "none"
    return backend.name, backend.version or "missing", devices, backend.install or ""


def _extra_row(extra: Extra) -> tuple[str, str, str, str]:
    versions = ", ".join(f"{package} {version}" for package, version in extra.versions.items())
    return extra.name, versions, ", ".join(extra.missing), extra.install or ""
