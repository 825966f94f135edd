"""The trtexec lines that build a bundle's opset-17 graphs with TensorRT 8.5 and 8.6 (JetPack 5 and 6.0)."""

from __future__ import annotations

from collections.abc import Iterator

from edgevqa.export.engine.axes import check_axes
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles, widest
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import Profile
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import GraphSpec, Manifest
from edgevqa.runtime.questions import Questions
from edgevqa.runtime.targets import target

TARGET = "jetson-orin-legacy"
OPSET = 17
FLOAT = "fp32"
STAND_IN = "jetson-orin-jp6"  # a target that is built for: profiles do not depend on it
FLOAT_REASON = (
    "Graphs of language models go without --fp16: TensorRT 8 would cast all of them, and what T5's feed-forward layers add up "
    "to is above FP16's 65,504."
)


def trtexec_lines(bundle: Bundle, variant: str = FLOAT, options: BuildOptions | None = None) -> Iterator[str]:
    """One command a graph, to be run in the bundle's folder; shapes as `edgevqa build` would choose them.

    `options` are those of a build for a newer JetPack, whose shapes are the same. Without --fp16 are the graphs of
    language (`FLOAT_REASON`).
    """
    manifest, graphs = bundle.manifest, bundle.variant(variant).graphs
    options = options or BuildOptions(target=STAND_IN)
    main = Questions.of(bundle).main
    template = None if main is None else main.template_tokens
    check_axes(manifest, graphs, options, template=template)
    ranges = axis_ranges(manifest, graphs, options, template=template)
    for name, graph in graphs.items():
        profile = widest(graph_profiles(name, graph, ranges))
        shapes = [f"--{side}Shapes={_shapes(profile, side)}" for side in ("min", "opt", "max") if _moves(graph)]
        half = [] if reads_language(name, graph) else ["--fp16"]
        yield " ".join(["trtexec", f"--onnx={graph.file.path}", f"--saveEngine={name}.engine", *half, *shapes])


def reads_language(name: str, graph: GraphSpec) -> bool:
    """Whether a graph computes a language model: it reads tokens, or is named so."""
    reads = any(tensor.name.endswith("input_ids") for tensor in graph.inputs)
    return reads or name.startswith("language_") or name == "question_encoder"


def line_options(options: BuildOptions) -> BuildOptions:
    """The part of a build's options that these lines take."""
    return BuildOptions(
        target=STAND_IN,
        precision=options.precision,
        batch=options.batch,
        max_question=options.max_question,
        max_prompt=options.max_prompt,
        max_new_tokens=options.max_new_tokens,
        axes=options.axes,
    )


def check_legacy(manifest: Manifest, where: str, options: BuildOptions) -> None:
    """Raise `InputError` for graphs that TensorRT 8 does not read, and for other precisions."""
    if options.precision not in (None, FLOAT):
        reason = target(TARGET).cannot.get(options.precision or "", "its lines are for the float32 graphs")
        raise InputError(f"Target '{TARGET}' cannot run {options.precision}: {reason}.")
    if FLOAT not in manifest.variants:
        raise InputError(
            f"{where} has no {FLOAT} variant; it has {', '.join(manifest.variants)}. Export the bundle again."
        )
    for name, graph in manifest.variants[FLOAT].graphs.items():
        if graph.opset > OPSET:
            raise InputError(
                f"Graph '{name}' of {where} has opset {graph.opset}; TensorRT 8 reads {OPSET}. Export again for the board: "
                "edgevqa export SOURCE --target jetson-orin-legacy -o BUNDLE"
            )


def _moves(graph: GraphSpec) -> bool:
    """Whether a graph leaves sizes open; trtexec takes 1 for those that it is not told, also where only one would do."""
    return any(isinstance(axis, str) for tensor in graph.inputs for axis in tensor.shape)


def _shapes(profile: Profile, side: str) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, getattr(each, side)))}" for name, each in profile.items())
