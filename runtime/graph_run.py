"""Running one graph of a bundle on given arrays, to compare machines and backends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.graphs import choose_variant
from edgevqa.runtime.manifest import TensorSpec
from edgevqa.runtime.pipelines.base import PipelineOptions
from edgevqa.runtime.sessions import choose_backend, open_session, split_backend
from edgevqa.runtime.sessions.base import Array, SessionOptions
from edgevqa.runtime.sessions.checks import check_names, describe
from edgevqa.runtime.staging import Staging, check_place, clear_write_errors


def run_graph(
    path: str | os.PathLike[str], graph: str, arrays: Mapping[str, Array], options: PipelineOptions | None = None
) -> dict[str, Array]:
    """Run `graph` of the bundle in folder `path`; returns its outputs by name.

    Arrays are cast to the graph's dtypes, and an array of one element takes the rank that the graph declares. Of the
    options, those about precision, backend, threads and hashes count; "auto" is the first backend that is installed.

    Raises `InputError` that lists missing and unknown names, or tells which array does not fit, and `BundleError`.
    """
    chosen = options or PipelineOptions()
    bundle = Bundle.open(path, check=chosen.check)
    named = split_backend(chosen.backend)[1].get(graph, chosen.backend)
    backend = choose_backend(named).name
    variant = choose_variant(bundle.manifest, chosen.precision, backend)
    inputs = conform(graph, arrays, bundle.graph(variant, graph).inputs)
    session_options = SessionOptions(threads=chosen.threads, provider_options=chosen.provider_options)
    with open_session(bundle, variant, graph, backend=backend, options=session_options) as session:
        return {name: tensor.numpy() for name, tensor in session.run(inputs).items()}


def conform(graph: str, arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The arrays in the dtypes of `specs`; single elements are reshaped to the declared rank. Raises `InputError`."""
    check_names(graph, arrays, specs)
    return {spec.name: _conform(graph, arrays[spec.name], spec) for spec in specs}


def _conform(graph: str, array: Array, spec: TensorSpec) -> Array:
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf":
        raise InputError(f"Graph '{graph}' expects {describe(spec)}, but got dtype {array.dtype}. Give numbers.")
    with np.errstate(invalid="ignore", over="ignore"):  # NaN to an integer, too large for a float: told below
        cast = array.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(cast, array):
        raise InputError(f"Graph '{graph}' expects {describe(spec)}, but got values that are no such integers.")
    if wanted.kind == "f" and np.any(np.isinf(cast) & np.isfinite(array)):
        raise InputError(f"Graph '{graph}' expects {describe(spec)}, but got values too large for it. Scale them down.")
    if cast.size == 1 and cast.ndim != len(spec.shape):
        return cast.reshape((1,) * len(spec.shape))
    return cast


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of an .npz file. Nothing is unpickled. Raises `InputError` for a file that is none."""
    try:
        with path.open("rb") as stream:  # numpy leaves a file of its own open when it is no archive
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path} holds a single array; expected an .npz file of named ones (numpy.savez).")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Make it with numpy.savez.") from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Name an .npz file that you may read.") from error
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on foreign bytes, with advice to unpickle
        raise InputError(f"{path} is not an .npz file of plain arrays. Make it with numpy.savez.") from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file whole, or not at all; missing folders are made. Raises `InputError` where it cannot."""
    check_output(path)
    with clear_write_errors(path), Staging(path) as staging:
        with staging.partial.open("wb") as stream:
            save: Any = np.savez  # its types take no names beside its own
            save(stream, **arrays)
        staging.commit()


def check_output(path: Path, *, inputs: Path | None = None) -> None:
    """Raise `InputError` when `path` cannot be written, is a folder, or is the file of inputs."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected an .npz file to write. Name a file in it.")
    if inputs is not None and path.resolve() == inputs.resolve():
        raise InputError(f"{path} is given for both inputs and outputs, and would be overwritten. Name another output.")
    check_place(path)
