"""`edgevqa build`: TensorRT engines of a bundle's variant, added to the bundle."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.engine_tables import high_text
from edgevqa.cli.hints import ask_line
from edgevqa.cli.output import note, print_json, print_table, print_text, step_bar
from edgevqa.cli.trtexec import other_options, print_lines
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.machine import Machine, nvidia_driver, read_machine
from edgevqa.runtime.staging import readable_bytes

if TYPE_CHECKING:
    from edgevqa.export.engine.build import BuiltEngines


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder; the engines are added to it.")],
    target: Annotated[str, typer.Option(metavar="T", help="Where the engines will run: 'edgevqa targets'.")],
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="A precision or variant. Default: the first that the bundle has for T of mixed, fp8 (where all its GPUs have "
            "it), int8, fp8, fp16, bf16, fp32.",
        ),
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes that the engines take.")] = "1,4,8",
    max_question: Annotated[int, typer.Option(metavar="N", help="Longest question in tokens. 0: the model's.")] = 0,
    max_prompt: Annotated[
        int, typer.Option(metavar="N", help="Longest prompt, with picture and question. 0: the model's.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer in tokens. 0: the bundle's.")] = 0,
    axis: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MIN:OPT:MAX", help="Sizes of another axis; may be repeated.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(metavar="SIZE", help="TensorRT's own memory pool: 2GB.")] = None,
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What building may take in all: 6GB.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read and written; a file that is none is refused. Default: in the cache directory."
        ),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0..5", help="More is slower to build. Default: TensorRT's.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines also load in newer TensorRT versions.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engines run on every GPU from compute capability 8.0.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Engines without weights, to be refitted from the graphs.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights can be replaced later.")] = False,
    dla_core: Annotated[
        int | None, typer.Option(metavar="N", help="Prefer this DLA for graphs of one shape, with the GPU behind it.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(metavar="X.Y", help="For target rtx, may be repeated. Default: 8.0 and up; FP8: 8.9 and up."),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Also build what an equal build has finished: in the bundle, or before it was stopped."
        ),
    ] = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Build TensorRT engines of a bundle, and add them to it. Needs TensorRT, no torch and no checkpoint.

    Each graph is built in a process of its own. A build that was stopped goes on where it was, and engines that the bundle
    has from an equal build are kept. For target jetson-orin-legacy, whose TensorRT builds by itself, the trtexec lines to
    run on the board are printed instead.

    Example:
      edgevqa build bundle --target rtx --precision fp16 --batch 1,8
    """
    from edgevqa.export.engine.build import build as build_engines
    from edgevqa.export.engine.options import BuildOptions, parse_axes, parse_size
    from edgevqa.export.trtexec import STAND_IN, TARGET

    if target == TARGET and compute_capability:  # the stand-in would be named
        raise other_options()
    options = BuildOptions(
        target=STAND_IN if target == TARGET else target,
        precision=precision,
        batch=_sizes(batch),
        max_question=max_question,
        max_prompt=max_prompt,
        max_new_tokens=max_new_tokens,
        axes=parse_axes(axis or []),
        workspace_bytes=None if workspace is None else parse_size(workspace, "--workspace"),
        memory_budget_bytes=None if memory_budget is None else parse_size(memory_budget, "--memory-budget"),
        timing_cache=None if timing_cache is None else str(timing_cache),
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        refit=refit,
        dla_core=dla_core,
        compute_capabilities=tuple(compute_capability or ()),
        rebuild=rebuild,
    )
    if target == TARGET:
        print_lines(bundle, options, as_json=as_json)
        return
    unkept: list[str] = []
    with telling_what_is_kept(unkept, rebuild=rebuild), step_bar("Building") as report:
        built = build_engines(bundle, options, report=report, unkept=unkept)
    if as_json:
        print_json(built)
    else:
        print_built(built)
        note(next_line(built, read_machine()))


def print_built(built: BuiltEngines) -> None:
    """A table of the engines, TensorRT's warnings, and where they are."""
    for graph, lines in built.warnings.items():
        note(f"{graph}: {lines[0]}" + (f" (and {len(lines) - 1} more warnings)" if len(lines) > 1 else ""))
    rows = [
        (
            name,
            readable_bytes(engine.size_bytes),
            "reused" if name in built.reused else f"{engine.seconds:.1f}",
            f"{engine.peak_memory_mb:,.0f}",
            str(len(engine.profiles)),
            high_text(engine),
        )
        for name, engine in built.record.graphs.items()
    ]
    print_table(("graph", ">size", ">s", ">peak MB", ">profiles", "in FP32"), rows, title=built.key)
    version = ".".join(map(str, built.record.tensorrt_version))
    print_text(f"\n{built.bundle}/engines/{built.key}: {built.record.flavour} {version}, in {built.seconds:.0f} s")


@contextlib.contextmanager
def telling_what_is_kept(unkept: Sequence[str], *, rebuild: bool) -> Generator[None, None, None]:
    """Say on Ctrl-C and `kill` what becomes of a build that is stopped; `unkept`: why the cache took no engine, if so."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if rebuild:
            kept = "With --rebuild no finished engine is kept; run again without --rebuild to keep them."
        elif unkept:
            kept = unkept[0]
        else:
            kept = "Engines that were finished are kept: the same command goes on with the others."
        note(f"\nThe bundle is as it was. {kept}")
        raise


def next_line(built: BuiltEngines, machine: Machine) -> str:
    """How the engines are run, and why not on this machine where that is known."""
    from edgevqa.runtime.bundle import Bundle
    from edgevqa.runtime.engines import capability_fits, here
    from edgevqa.runtime.targets import target

    record, root = built.record, Path(built.bundle)
    backend = target(record.target).backend
    line = f"{ask_line(root, Bundle.open(root).manifest, precision=record.variant)} --backend {backend}"
    capability = here(machine).compute_capability
    pack = f"edgevqa bundle pack {shlex.quote(built.bundle)}"
    if not machine.gpus and machine.jetson is None and not nvidia_driver():  # nvidia-smi alone may be missing
        return f"{line}\nThis machine has no NVIDIA GPU that could run them. Take the bundle to one that has: {pack}"
    if capability is not None and not capability_fits(record, capability):
        return (
            f"{line}\nThis machine's GPU has compute capability {capability}; the engines are for "
            f"{', '.join(record.compute_capabilities)}. Take the bundle to such a GPU: {pack}"
        )
    return line


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--batch {text}: expected numbers with commas between, such as 1,4,8.") from error
