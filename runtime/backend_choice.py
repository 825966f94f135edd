"""`--backend auto`: what is installed is measured once for a bundle on this machine, and the choice is remembered."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import BundleError, EdgeVQAError
from edgevqa.runtime.graphs import choose_variant
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.machine import cpu_model
from edgevqa.runtime.paths import cache_dir
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import Backend, possible_backends, split_backend
from edgevqa.runtime.synthetic import FIRST_QUESTION, NEXT_QUESTION, noise_picture

if TYPE_CHECKING:
    from edgevqa.runtime.pipeline import Pipeline

Note: TypeAlias = Callable[[str], None]
"""Called with what the person at the terminal should know."""

WARM_UP_ROUNDS = 2
MOST_ROUNDS = 9
ENOUGH_S = 1.5
"""A backend is timed for so long, but at least one round and at most `MOST_ROUNDS`."""
_FAILURES = (EdgeVQAError, ImportError, OSError, MemoryError)  # what a broken installation may raise
MAX_NEW_TOKENS = 4
RECORD_LIMIT = 1024


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that could run the bundle, and the variant that it would run."""

    backend: str
    version: str
    variant: str
    fingerprint: str


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured: the median milliseconds of a first and a next answer together, or why a backend failed."""

    backend: str
    variant: str
    latency_ms: dict[str, float] = {}
    failed: dict[str, str] = {}


def choose_run(bundle: Bundle, options: PipelineOptions, note: Note | None = None) -> Choice:
    """The backend and the variant that run the bundle.

    Where `options.backend` is "auto" and several backends are installed, each is measured with the variant that it
    likes best, unless that was done before for the same graphs, machine, threads and versions. `note` hears of it.
    Backends that run engines take part where the bundle has some; those named for single graphs are kept. Raises
    `InputError` for a precision that the bundle lacks, `MissingExtraError`, and `BundleError` when no backend can run
    it.
    """
    main, others = split_backend(options.backend)
    if others:
        choice = choose_run(bundle, msgspec.structs.replace(options, backend=main), note)
        named = ",".join(f"{graph}={backend}" for graph, backend in others.items())
        return msgspec.structs.replace(choice, backend=f"{choice.backend},{named}")
    backends = possible_backends(options.backend)
    here = [backend for backend in backends if backend.can_run(bundle.manifest) and backend.has_device()]
    backends = here or backends
    if len(backends) == 1:
        name = backends[0].name
        return Choice(backend=name, variant=choose_variant(bundle.manifest, options.precision, name))
    candidates = [_candidate(bundle, options, backend) for backend in backends]
    record = cache_dir() / "backends" / f"{_key(candidates, options)}.json"
    known = _recall(record, candidates)
    if known is not None:
        return known
    tell = note or _silent
    tell(f"note: measuring {' and '.join(each.backend for each in candidates)} on this bundle, once for this machine.")
    found = measure_candidates(bundle, options, candidates)
    _remember(record, found)
    tell(_told(found))
    return found


def measure_candidates(bundle: Bundle, options: PipelineOptions, candidates: Sequence[Candidate]) -> Choice:
    """Time every candidate on a synthetic picture, one after another, and choose the fastest."""
    latency_ms: dict[str, float] = {}
    failed: dict[str, Exception] = {}
    for candidate in candidates:
        try:
            latency_ms[candidate.backend] = _latency_ms(bundle, options, candidate)
        except _FAILURES as error:
            failed[candidate.backend] = error
    told = {backend: str(error) for backend, error in failed.items()}
    if not latency_ms:
        if len(set(told.values())) == 1:
            raise next(iter(failed.values()))  # not the backends' fault
        reasons = " ".join(f"{backend}: {why}" for backend, why in told.items())
        raise BundleError(f"No installed backend can run {bundle.root}. {reasons}")
    best = min(latency_ms, key=latency_ms.__getitem__)
    variant = next(candidate.variant for candidate in candidates if candidate.backend == best)
    return Choice(backend=best, variant=variant, latency_ms=latency_ms, failed=told)


def _latency_ms(bundle: Bundle, options: PipelineOptions, candidate: Candidate) -> float:
    from edgevqa.runtime.pipeline import Pipeline  # it imports this module

    chosen = msgspec.structs.replace(
        options, backend=candidate.backend, precision=candidate.variant, question_cache_mb=0
    )
    with Pipeline.from_bundle(bundle, chosen) as pipeline:
        _timed_rounds(pipeline, WARM_UP_ROUNDS)
        return statistics.median(_timed_rounds(pipeline, MOST_ROUNDS))


def _timed_rounds(pipeline: Pipeline, most: int) -> list[float]:
    """The milliseconds of at least one round, and of others up to `most` while there is time."""
    start = time.perf_counter()
    rounds = [_round_ms(pipeline)]
    while len(rounds) < most and time.perf_counter() - start < ENOUGH_S:
        rounds.append(_round_ms(pipeline))
    return rounds


def _round_ms(pipeline: Pipeline) -> float:
    """A first and a next answer on one picture."""
    picture = noise_picture(pipeline.manifest.image)
    pipeline.clear_caches()
    start = time.perf_counter()
    for question in (FIRST_QUESTION, NEXT_QUESTION):
        pipeline.answer(picture, question, max_new_tokens=MAX_NEW_TOKENS)
    return (time.perf_counter() - start) * 1e3


def _candidate(bundle: Bundle, options: PipelineOptions, backend: Backend) -> Candidate:
    variant = choose_variant(bundle.manifest, options.precision, backend.name)
    return Candidate(
        backend=backend.name, version=backend.version(), variant=variant, fingerprint=bundle.fingerprint(variant)
    )


def _key(candidates: Sequence[Candidate], options: PipelineOptions) -> str:
    """A name for all that the choice depends on."""
    about = {
        "candidates": candidates,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": options.threads,
        "provider_options": sorted(options.provider_options.items()),
    }
    return sha256_bytes(msgspec.json.encode(about))[:32]


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    return cpu_model(told) or platform.processor() or platform.machine()


def _recall(record: Path, candidates: Sequence[Candidate]) -> Choice | None:
    """The remembered choice; None where there is none, or one that cannot be."""
    try:
        known = msgspec.json.decode(record.read_bytes(), type=Choice)
    except (OSError, msgspec.MsgspecError):
        return None
    possible = {(candidate.backend, candidate.variant) for candidate in candidates}
    return known if (known.backend, known.variant) in possible else None


def _remember(record: Path, choice: Choice) -> None:
    """Keep the choice; where the cache cannot be written it is measured again next time."""
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        older = sorted(record.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for file in older[: max(0, len(older) - RECORD_LIMIT)]:
            file.unlink(missing_ok=True)
        draft = record.with_name(f"{record.name}.{os.getpid()}.part")
        draft.write_bytes(msgspec.json.encode(choice))
        draft.replace(record)


def _silent(text: str) -> None:
    """Where nobody listens."""


def _told(choice: Choice) -> str:
    times = ", ".join(f"{backend} {value:.1f} ms" for backend, value in choice.latency_ms.items())
    failed = "".join(f" {backend} cannot run it: {why}" for backend, why in choice.failed.items())
    return (
        f"note: {choice.backend} ({choice.variant}) from now on; a first and a next answer took: {times}.{failed} "
        "Another: --backend NAME."
    )
