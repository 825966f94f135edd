"""`edgevqa features`: an encoder's arrays for a picture, and the picture restored from a part of its patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from edgevqa.cli.output import note, print_json, print_table, print_text, progress_bar
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.graph_run import check_output, write_arrays
from edgevqa.runtime.images import Rgb, load_image
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.features import SEED, Reconstruction


def features(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .npz file to write the arrays to.")
    ] = None,
    reconstruct: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The .png file to write: what the model saw, what it made of that, the picture."
        ),
    ] = None,
    mask_ratio: Annotated[
        float | None, typer.Option(metavar="R", help="Share of the patches left out. Default: that of training.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Which patches are drawn.")] = SEED,
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="A precision or variant of the bundle. Default: fp32.")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="B", help="What runs the graphs; auto: the fastest.")] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", help="0: as many as the backend likes.")] = 0,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not check the bundle's hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write shapes and the loss as JSON.")] = False,
) -> None:
    """Write an encoder's features of a picture, or the picture restored from a part of its patches.

    Example:
      edgevqa features bundle photo.jpg -o features.npz
      edgevqa features bundle photo.jpg --reconstruct restored.png --mask-ratio 0.5 --seed 3
    """
    if output is None and reconstruct is None:
        raise ConfigError("There is nothing to write: give -o FILE for the features, --reconstruct FILE, or both.")
    if reconstruct is None and mask_ratio is not None:
        raise ConfigError("--mask-ratio goes with --reconstruct: features are of every patch.")
    if output is not None:
        check_output(output)
    if reconstruct is not None and (reconstruct.suffix.lower() != ".png" or not reconstruct.resolve().parent.is_dir()):
        raise InputError(f"--reconstruct {reconstruct} cannot be written: give a .png file in a folder that exists.")
    rgb = load_image(image)
    with progress_bar("Checking") as progress:
        pipeline = Pipeline.load(
            bundle,
            progress=progress,
            note=note,
            precision=precision,
            backend=backend,
            threads=threads,
            check=not no_verify,
        )
    with pipeline:
        found = {} if output is None else pipeline.features(rgb)
        restored = None if reconstruct is None else pipeline.reconstruct(rgb, mask_ratio=mask_ratio, seed=seed)
    if output is not None:
        write_arrays(output, found)
    if reconstruct is not None and restored is not None:
        Image.fromarray(side_by_side(restored)).save(reconstruct)
    _report(output, found, reconstruct, restored, as_json=as_json)


def side_by_side(restored: Reconstruction) -> Rgb:
    """What the model saw, what it made of that, and the whole picture, beside each other."""
    found: Rgb = np.concatenate([restored.seen, restored.picture, restored.original], axis=1)
    return found


def _report(
    arrays: Path | None,
    found: dict[str, NDArray[np.float32]],
    picture: Path | None,
    restored: Reconstruction | None,
    *,
    as_json: bool,
) -> None:
    share = 0.0 if restored is None else float(restored.masked.mean())
    if as_json:
        rows = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in found.items()]
        features = None if arrays is None else {"file": str(arrays), "outputs": rows}
        reconstruction = None if restored is None else {"file": str(picture), "loss": restored.loss, "masked": share}
        print_json({"features": features, "reconstruction": reconstruction})
        return
    if arrays is not None:
        table = [(name, str(array.dtype), " x ".join(map(str, array.shape))) for name, array in found.items()]
        print_table(("features", "dtype", "shape"), table, title=str(arrays))
    if restored is not None:
        print_text(
            f"{picture}: {share:.0%} of the patches left out and predicted; mean squared error {restored.loss:.4f}"
        )
