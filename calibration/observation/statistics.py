"""What calibration observed of every tensor, and the file in the bundle that keeps it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import calibrate_line
from edgevqa.runtime.errors import BundleError, InputError
from edgevqa.runtime.manifest import CALIBRATION_KEY

FORMAT = 1
VARIANT = "fp32"
HALF_EXPONENT = 15  # rows are scaled so that the largest value lies in (2 ** 14, 2 ** 15]: in reach of float16
META = "meta"


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorStatistics:
    """Of one tensor that feeds a Linear or is a residual stream, over all rows (tokens) of all samples.

    Padding was never among them. `low`, `high`: the smallest and the largest value. `counts` int64 (bins,), an even
    number of them, divide [-limit, limit] evenly. `channel_absmax` and `channel_mean` float32 (channels,). `rows` float32
    (at most 128, channels) is a uniform sample of the rows, drawn with the calibration's seed; `row_count` rows were seen.
    """

    low: float
    high: float
    limit: float
    counts: NDArray[np.int64]
    channel_absmax: NDArray[np.float32]
    channel_mean: NDArray[np.float32]
    rows: NDArray[np.float32]
    row_count: int

    @property
    def absmax(self) -> float:
        """The largest |x|."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphStatistics:
    """Of one graph: `inputs` of its Linear layers and its residual streams by ONNX value name.

    `absmax` is the largest |x| of every float tensor. Outputs of Softmax and Sigmoid are given as 1, their bound. What
    masks are made of counts too: where attention is masked, the scores are as low as the mask.
    """

    inputs: dict[str, TensorStatistics]
    absmax: dict[str, float]


class _TensorMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of a tensor; its arrays are the members `KEY.counts`, `KEY.absmax`, `KEY.mean` and `KEY.rows`."""

    key: str
    low: float
    high: float
    limit: float
    row_count: int
    rows_exponent: int


class _GraphMeta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inputs: dict[str, _TensorMeta]
    absmax: dict[str, float]


class _Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`fingerprint` is that of the float32 graphs that were observed."""

    format: int
    fingerprint: str
    graphs: dict[str, _GraphMeta]


def save_statistics(path: Path, graphs: Mapping[str, GraphStatistics], *, fingerprint: str) -> None:
    """Write a .npz that `load_statistics` reads; rows as float16 with a power of two for every tensor."""
    arrays: dict[str, NDArray[Any]] = {}
    metas: dict[str, _GraphMeta] = {}
    for graph, statistics in graphs.items():
        inputs: dict[str, _TensorMeta] = {}
        for number, (name, tensor) in enumerate(statistics.inputs.items()):
            inputs[name] = _pack(tensor, f"{graph}/{number}", arrays)
        metas[graph] = _GraphMeta(inputs=inputs, absmax=statistics.absmax)
    meta = msgspec.json.encode(_Meta(format=FORMAT, fingerprint=fingerprint, graphs=metas))
    np.savez_compressed(path, allow_pickle=False, **{META: np.frombuffer(meta, dtype=np.uint8)}, **arrays)


def load_statistics(bundle: Bundle) -> dict[str, GraphStatistics]:
    """What the bundle's calibration observed, by graph name.

    Raises `InputError` naming `edgevqa calibrate` where the bundle has no calibration, or one of other float32 graphs,
    and `BundleError` where the file is damaged.
    """
    _, path = bundle.calibration_paths()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            meta = msgspec.json.decode(file[META].tobytes(), type=_Meta)
            _check(meta, bundle)
            return {graph: _unpack_graph(spec, file) for graph, spec in meta.graphs.items()}
    except (msgspec.MsgspecError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise BundleError(f"{path} is damaged: {error}. {_again(bundle)}") from error


def origin(bundle: Bundle, statistics: Mapping[str, GraphStatistics]) -> dict[str, str]:
    """What the recipe of a variant says of where its numbers come from, which a later calibration does not change."""
    calibration = bundle.manifest.calibration if statistics else None
    return {"source": VARIANT, **({CALIBRATION_KEY: calibration.sha256} if calibration else {})}


def _check(meta: _Meta, bundle: Bundle) -> None:
    if meta.format != FORMAT:
        raise InputError(f"The calibration of {bundle.root} is of format {meta.format}, not {FORMAT}. {_again(bundle)}")
    if meta.fingerprint != bundle.fingerprint(VARIANT):
        raise InputError(f"The calibration of {bundle.root} was made for other float32 graphs. {_again(bundle)}")


def _again(bundle: Bundle) -> str:
    return f"Calibrate again: {calibrate_line(bundle.root)}"


def _pack(tensor: TensorStatistics, key: str, arrays: dict[str, NDArray[Any]]) -> _TensorMeta:
    largest = float(np.abs(tensor.rows).max(initial=0.0))
    exponent = HALF_EXPONENT - math.frexp(largest)[1] if largest else 0
    arrays[f"{key}.counts"] = tensor.counts
    arrays[f"{key}.absmax"] = tensor.channel_absmax
    arrays[f"{key}.mean"] = tensor.channel_mean
    arrays[f"{key}.rows"] = np.ldexp(tensor.rows, exponent).astype(np.float16)
    return _TensorMeta(
        key=key,
        low=tensor.low,
        high=tensor.high,
        limit=tensor.limit,
        row_count=tensor.row_count,
        rows_exponent=exponent,
    )


def _unpack_graph(spec: _GraphMeta, file: Mapping[str, NDArray[Any]]) -> GraphStatistics:
    return GraphStatistics(
        inputs={name: _unpack(tensor, file) for name, tensor in spec.inputs.items()}, absmax=dict(spec.absmax)
    )


def _unpack(spec: _TensorMeta, file: Mapping[str, NDArray[Any]]) -> TensorStatistics:
    return TensorStatistics(
        low=spec.low,
        high=spec.high,
        limit=spec.limit,
        counts=file[f"{spec.key}.counts"],
        channel_absmax=file[f"{spec.key}.absmax"],
        channel_mean=file[f"{spec.key}.mean"],
        rows=np.ldexp(file[f"{spec.key}.rows"].astype(np.float32), -spec.rows_exponent),
        row_count=spec.row_count,
    )
