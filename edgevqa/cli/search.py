"""`edgevqa search`: the pictures of a folder that fit a text best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgevqa.cli import shared
from edgevqa.cli.loading import load_pipeline
from edgevqa.cli.output import note, print_json, print_text, sample_bar
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines.base import no_embeddings
from edgevqa.runtime.pipelines.matching import has_embeddings
from edgevqa.runtime.search import Found, Hit, find_pictures
from edgevqa.runtime.search import search as run

NOTED = 5
SHOWN = 60


def search(
    bundle: shared.BundleArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, also in folders below it.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="What the picture shows, in words.")],
    top: Annotated[int, typer.Option("--top", metavar="N", help="Pictures to show for each text.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Write what was found as JSON.")] = False,
    precision: shared.PrecisionOption = None,
    backend: shared.FastestOption = "auto",
    threads: shared.ThreadsOption = 0,
    no_verify: shared.NoVerifyOption = False,
) -> None:
    """Find the pictures of a folder that fit a text best, with a dual encoder such as CLIP or SigLIP.

    Every picture is looked at once: what the model saw is kept in the user's cache directory, by the bundle's weights and
    the content of the file, so that the next search is quick. Files that cannot be read are noted and passed over.

    Example:
      edgevqa search clip.bundle holiday "a dog on the beach" "sunset" --top 3
      edgevqa search siglip.bundle holiday "a dog on the beach" --json
    """
    find_pictures(folder)  # what is wrong with the folder is said before a model is loaded
    settings: dict[str, Any] = {"precision": precision, "backend": backend, "threads": threads, "check": not no_verify}
    start = time.perf_counter()
    pipeline = load_pipeline(bundle, _refuse_others, trunk_cache_mb=0, **settings)
    load_ms = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    with pipeline, sample_bar("Searching") as advance:
        found = run(pipeline, folder, texts, top=top, advance=advance)
    spent = {"load_bundle": load_ms, "search": (time.perf_counter() - start) * 1e3}
    _note_texts(found)
    _note_unreadable(found)
    if as_json:
        print_json(
            {
                "results": found.results,
                "pictures": found.pictures,
                "remembered": found.remembered,
                "unreadable": found.unreadable,
                "timing_ms": spent,
            }
        )
        return
    for result in found.results:
        named = len(found.results) > 1
        if named:
            print_text(f"{result.text}:")
        for hit in result.hits:
            print_text(f"{'  ' if named else ''}{_line(hit)}")


def _refuse_others(manifest: Manifest) -> None:
    if not has_embeddings(manifest):
        raise no_embeddings()


def _line(hit: Hit) -> str:
    if hit.probability is None:
        return f"{hit.image}  (cosine {hit.cosine:.3f})"
    return f"{hit.image}  (probability {hit.probability:.3f}, cosine {hit.cosine:.3f})"


def _note_texts(found: Found) -> None:
    for result in found.results:
        if result.truncated_text:
            note(f"note: the end of a text of {len(result.text):,} characters was cut; the model takes no more.")
        if result.unknown_tokens:
            note(f"note: the model does not know {result.unknown_tokens} of the tokens of {_short(result.text)}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")


def _note_unreadable(found: Found) -> None:
    for each in found.unreadable[:NOTED]:
        note(f"note: {each.image} was passed over: {each.error}")
    if len(found.unreadable) > NOTED:
        note(f"note: {len(found.unreadable) - NOTED:,} more files were passed over; --json lists all.")
