"""`edgevqa features`: an encoder's arrays for a picture, and the picture restored from a part of its patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from edgevqa.cli import shared
from edgevqa.cli.loading import load_pipeline
from edgevqa.cli.output import print_json, print_table, print_text
from edgevqa.runtime.errors import ConfigError, InputError
from edgevqa.runtime.graph_run import check_output, write_arrays
from edgevqa.runtime.images import Rgb, load_image
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.pipelines.features import SEED, Reconstruction, no_features
from edgevqa.runtime.staging import Staging, check_place, clear_write_errors


def features(
    bundle: shared.BundleArgument,
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
    precision: shared.PrecisionOption = None,
    backend: shared.FastestOption = "auto",
    threads: shared.ThreadsOption = 0,
    no_verify: shared.NoVerifyOption = False,
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
    if reconstruct is not None:
        if reconstruct.suffix.lower() != ".png" or reconstruct.is_dir():
            raise InputError(f"--reconstruct {reconstruct} cannot be written: give the name of a .png file.")
        check_place(reconstruct)
    rgb = load_image(image)
    settings: dict[str, Any] = {"precision": precision, "backend": backend, "threads": threads, "check": not no_verify}
    with load_pipeline(bundle, _refuse_answers, **settings) as pipeline:
        found = {} if output is None else pipeline.features(rgb)
        restored = None if reconstruct is None else pipeline.reconstruct(rgb, mask_ratio=mask_ratio, seed=seed)
    if output is not None:
        write_arrays(output, found)
    if reconstruct is not None and restored is not None:
        with clear_write_errors(reconstruct), Staging(reconstruct) as staging:
            Image.fromarray(side_by_side(restored)).save(staging.partial, format="PNG")
            staging.commit()
    _report(output, found, reconstruct, restored, as_json=as_json)


def _refuse_answers(manifest: Manifest) -> None:
    if flow_entry(manifest).answers:
        raise no_features()


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
