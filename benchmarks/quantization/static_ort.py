"""onnxruntime's `quantize_static`: its defaults, and the settings with which it does best on transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from benchmarks.quantization.captured import Feed
from benchmarks.quantization.task import Task

LINEAR_OPS = ["MatMul", "Gemm"]


class Feeds:
    """The captured inputs, each once, as onnxruntime's calibration reads them; `rewind` starts again."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self._left: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next inputs, None after the last."""
        return next(self._left, None)

    def get_first(self) -> Feed:
        """The first inputs, for tools that look at them beforehand."""
        return self._feeds[0]

    def rewind(self) -> None:
        """Start again."""
        self._left = iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)


def quantize(
    task: Task, feeds: Sequence[Feed], *, prepare: bool = False, linears: dict[str, Any] | None = None
) -> None:
    """Defaults (after `quant_pre_process` where `prepare`, as the documentation advises), or `linears` alone.

    `linears` has `unsigned` and `method`: per-channel weights, no Q/DQ on outputs, biases in float. Methods that count
    histograms need inputs of one shape (onnxruntime 1.31), so they get the runs of the most frequent one.
    """
    if linears is not None:
        _linears_only(task, feeds, **linears)
        return
    source = task.source
    if prepare:
        source = str(Path(task.scratch) / "prepared.onnx")
        quant_pre_process(task.source, source, skip_symbolic_shape=True)
    reader: Any = Feeds(feeds)
    quantize_static(source, task.target, reader)


def _linears_only(task: Task, feeds: Sequence[Feed], *, unsigned: bool, method: str) -> None:
    reader: Any = Feeds(feeds if method == "MinMax" else _of_one_shape(feeds))
    options: dict[str, Any] = {
        "ActivationSymmetric": not unsigned,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": LINEAR_OPS,
    }
    quantize_static(
        task.source,
        task.target,
        reader,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=LINEAR_OPS,
        nodes_to_quantize=task.linears,
        calibrate_method=CalibrationMethod[method],
        extra_options=options,
    )


def _of_one_shape(feeds: Sequence[Feed]) -> list[Feed]:
    """The runs whose inputs have the most frequent shapes."""
    shapes = [tuple(array.shape for array in feed.values()) for feed in feeds]
    common = Counter(shapes).most_common(1)[0][0]
    return [feed for feed, shape in zip(feeds, shapes, strict=True) if shape == common]
