"""`edgevqa inspect`: what is in a bundle, or what one engine is, for people or as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli.engine_tables import inspect_engine_file, print_engines
from edgevqa.cli.output import print_json, print_pairs, print_table, print_text
from edgevqa.cli.row_text import otherwise_quantised
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import load_record, stale_engines
from edgevqa.runtime.errors import BundleError
from edgevqa.runtime.manifest import (
    FileSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    ParitySpec,
    TensorSpec,
    TextSpec,
    VariantSpec,
)
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.staging import readable_bytes
from edgevqa.runtime.text import PLAIN

LABELS_SHOWN = 8


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A bundle's folder, an engine (.engine, .plan), or an engine.json.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Write the manifest and sizes as JSON.")] = False,
) -> None:
    """Show what is in a bundle, or what an engine was built for. TensorRT is not needed.

    Example:
      edgevqa inspect bundle
      edgevqa inspect bundle/engines/rtx/fp16/projector.engine

    Exit codes: 1 an engine is missing, not the one that its engine.json names, or of other weights than its bundle has
    now; 2 a file is cut off or no engine; 3 an engine or an engine.json was made for another machine. Of several, all are
    told, and 2 comes before 1 and 3. Of a bundle's engines it is only said.
    """
    if path.is_file():
        inspect_engine_file(path, as_json=as_json)
        return
    bundle = Bundle.open(path)
    size_bytes = _total(bundle.manifest.files())
    stale = stale_engines(bundle)
    if as_json:
        variants = {name: _variant_json(spec) for name, spec in bundle.manifest.variants.items()}
        found = {"bundle": str(path), "size_bytes": size_bytes, "variants": variants, "manifest": bundle.manifest}
        print_json({**found, "damaged_engines": bundle.damaged_engines, "stale_engines": stale})
        return
    print_pairs(_summary(path, bundle.manifest, size_bytes))
    columns = ("variant", "numerics", ">size", ">graphs", "opset", "quantised otherwise")
    print_table(columns, _variant_rows(bundle.manifest))
    for name, variant in bundle.manifest.variants.items():
        print_table(("graph", ">nodes", ">parameters", ">size", "inputs", "outputs"), _graph_rows(variant), title=name)
    for name, parity in bundle.manifest.parity.items():
        _print_parity(name, parity)
    for key in bundle.manifest.engines:
        with contextlib.suppress(BundleError):  # `stale` tells of a record that cannot be read
            print_engines(key, load_record(bundle, key), bundle.root)
        if key in stale:
            print_text(stale[key])
    for why in bundle.damaged_engines.values():
        print_text(why)


def _summary(path: Path, manifest: Manifest, size_bytes: int) -> Iterator[tuple[str, str]]:
    source = manifest.source
    yield "bundle", f"{path}, {readable_bytes(size_bytes)} in {len(manifest.files())} files"
    yield "family", f"{manifest.family} ({manifest.task}, pipeline {manifest.pipeline})"
    revision = f", revision {source.revision}" if source.revision else ""
    yield "source", f"{source.id} ({source.kind}{revision}), {source.parameters:,} parameters"
    yield "source hash", source.sha256
    yield "target", manifest.target
    yield "made", f"{manifest.created} by edgevqa {manifest.edgevqa_version}"
    if manifest.tools:
        yield "tools", ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items()))
    if manifest.image is not None:
        image = manifest.image
        yield "picture", _picture(image)
    if manifest.text is not None:
        yield "question", _question(manifest.text)
        if manifest.text.template != PLAIN:
            yield "template", repr(manifest.text.template)
    for name, text in manifest.texts.items():
        yield f"{name} text", _question(text)
    if manifest.generation is not None:
        generation = manifest.generation
        most = "" if generation.max_context is None else f"; prompt and answer at most {generation.max_context:,}"
        yield "answer", f"at most {generation.max_new_tokens} tokens, {generation.num_beams} beam(s){most}"
    if manifest.labels and flow_entry(manifest).answers:
        more = ", ..." if len(manifest.labels) > LABELS_SHOWN else ""
        yield "labels", f"{len(manifest.labels):,}: {', '.join(manifest.labels[:LABELS_SHOWN])}{more}"
    if manifest.matching is not None:
        matching = manifest.matching
        yield "matching", f"{matching.activation}({matching.scale:.6g} x cosine {matching.bias:+.6g})"


def _picture(image: ImageSpec) -> str:
    usual = "" if image.processor == "fixed" else "usually "
    parts = [f"{usual}{image.width} x {image.height} pixels, {image.resample} resize"]
    parts += [] if image.processor == "fixed" else [f"processor {image.processor}"]
    parts += [] if image.tokens is None else [f"at most {image.tokens:,} tokens of a prompt"]
    parts += [f"{axis} {least} to {most}" for axis, (least, _, most) in image.axes.items()]
    return ", ".join(parts)


def _question(text: TextSpec) -> str:
    optional = "" if text.required else ", may be left out"
    return f"at most {text.max_tokens} tokens, cleaning: {text.cleaning}{optional}"


def _variant_rows(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for name, variant in manifest.variants.items():
        opsets = sorted({graph.opset for graph in variant.graphs.values()})
        yield (
            name,
            variant.numerics,
            readable_bytes(variant.size_bytes),
            str(len(variant.graphs)),
            ", ".join(map(str, opsets)),
            otherwise_quantised(variant),
        )


def _variant_json(variant: VariantSpec) -> dict[str, object]:
    """What the manifest does not say outright."""
    return {
        "size_bytes": variant.size_bytes,
        "weight_only": variant.weight_only,
        "high_graphs": variant.high_graphs,
    }


def _graph_rows(variant: VariantSpec) -> Iterator[tuple[str, ...]]:
    for name, graph in variant.graphs.items():
        yield (
            name,
            str(sum(graph.nodes.values())),
            f"{graph.parameters:,}",
            readable_bytes(graph.file.size_bytes),
            *_tensors(graph),
        )
    if variant.weights is not None:
        yield "(weights, shared)", "", "", readable_bytes(variant.weights.size_bytes), variant.weights.path, ""


def _tensors(graph: GraphSpec) -> tuple[str, str]:
    return _join(graph.inputs), _join(graph.outputs)


def _join(tensors: list[TensorSpec]) -> str:
    """One tensor a line; numbered ones, such as `past_key.0` to `past_key.3`, share a line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        stem, dot, number = tensor.name.partition(".")
        shape = f"{tensor.dtype} ({', '.join(map(str, tensor.shape))})"
        lines.setdefault((stem + dot if number.isdecimal() else tensor.name, shape), []).append(number)
    return "\n".join(
        f"{stem}{numbers[0]}{f'..{numbers[-1]}' if len(numbers) > 1 else ''} {shape}"
        if stem.endswith(".")
        else f"{stem} {shape}"
        for (stem, shape), numbers in lines.items()
    )


def _print_parity(name: str, parity: ParitySpec) -> None:
    rows = [
        (
            row.graph,
            row.output,
            row.samples,
            f"{row.max_abs_diff:.2e}",
            f"{row.cosine:.7f}",
            f"{row.tolerance:.0e}",
            "ok" if row.passed else "FAILED",
        )
        for row in parity.rows
    ]
    columns = ("graph", "output", "samples", ">max abs diff", ">cosine", ">tolerance", "result")
    print_table(columns, rows, title=f"parity of {name} with eager PyTorch, on {parity.backend}")
    print_text(f"Generated answers that are identical: {parity.answers_identical} of {parity.answers_compared}")
    for what in parity.left_out:
        print_text(f"Not compared: {what}.")


def _total(files: list[FileSpec]) -> int:
    return sum({file.path: file.size_bytes for file in files}.values())
