"""The manifest: what a bundle holds, typed and versioned; the one schema that export writes and the runtime reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from edgevqa.runtime.errors import BundleError

SCHEMA_VERSION = 1
CALIBRATION_KEY = "calibration_sha256"
"""Of a recipe, which takes new keys without a new schema: every edgevqa that knows this one reads them."""

Axis = int | str
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, keyword-only, and strict: an unknown key is an error."""


class FileSpec(_Record, frozen=True, kw_only=True):
    """One file of the bundle: path relative to the bundle's root (POSIX), hash and size in bytes."""

    path: str
    sha256: str
    size_bytes: int


class TensorSpec(_Record, frozen=True, kw_only=True):
    """One graph input or output: name, numpy dtype name, and axes (a number, or the name of a dynamic axis)."""

    name: str
    dtype: str
    shape: list[Axis]


class GraphSpec(_Record, frozen=True, kw_only=True):
    """One ONNX graph of a variant; its large tensors are in the variant's `weights`."""

    file: FileSpec
    opset: int
    ir_version: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    parameters: int
    nodes: dict[str, int]


Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "mixed"]
Numerics = Literal["fp32", "fp16", "bf16", "u8-fp32", "s8-fp32", "s8-fp16", "fp8-fp16"]


class VariantSpec(_Record, frozen=True, kw_only=True):
    """One numeric form of all graphs: `precision` is what the user asks for, `numerics` how it is written.

    `u8-fp32` is INT8 with unsigned activations inside float32, and so on. `recipe` says how the variant was made from
    which other; `report` is a JSON file with every layer's measured error, and why some stayed high.
    """

    precision: Precision
    numerics: Numerics
    weights: FileSpec | None
    graphs: dict[str, GraphSpec]
    recipe: dict[str, Any] = {}
    report: FileSpec | None = None

    @property
    def weight_only(self) -> dict[str, str]:
        """The graphs that have quantised weights alone, with their bits: `{"language_decoder": "int4"}`."""
        found = self.recipe.get("weight_only")
        return {str(graph): str(bits) for graph, bits in found.items()} if isinstance(found, dict) else {}

    @property
    def high_graphs(self) -> list[str]:
        """The graphs of a quantised variant that were left float on purpose."""
        found = self.recipe.get("high_graphs")
        return [str(graph) for graph in found] if isinstance(found, list) else []

    @property
    def calibration_sha256(self) -> str | None:
        """The calibration set that its numbers come from; None where there was none, or an older edgevqa made it."""
        found = self.recipe.get(CALIBRATION_KEY)
        return found if isinstance(found, str) else None

    @property
    def is_usual(self) -> bool:
        """Whether it is what its precision means: no graph with quantised weights alone, none left float on purpose."""
        return not self.weight_only and not self.high_graphs and self.recipe.get("residual") is not True

    @property
    def size_bytes(self) -> int:
        """Of its graphs and weights, each file once: what every command calls the size of a variant."""
        sizes = {file.path: file.size_bytes for file in self.files() if file is not self.report}
        return sum(sizes.values())

    def files(self) -> list[FileSpec]:
        """Every file of the variant."""
        others = [file for file in (self.weights, self.report) if file is not None]
        return [graph.file for graph in self.graphs.values()] + others


class ImageSpec(_Record, frozen=True, kw_only=True):
    """Preprocessing, in order: RGB, resize, centre crop, rescale, normalise. Sizes in pixels.

    `resize` is `{"shortest_edge": n}` or `{"height": h, "width": w}`, or None for no resize; `crop` and `height`/`width`
    likewise. `height` and `width` are what the graph takes (the usual size, where it takes several). `processor` names a
    row of `runtime/preprocessing`, and `settings` are what that row needs beyond the rest. `tokens` is the largest number
    of places that a picture takes in the language model's input, where it takes any. `axes` are least, usual and most of the
    axes that the processor gives its arrays, by the names that the graphs have for them, such as patches or tiles.
    `separator` are the ids between two pictures of one question in a prompt; None where a question is about one picture.
    """

    height: int
    width: int
    resize: dict[str, int] | None
    resample: Resample
    crop: dict[str, int] | None
    rescale_factor: float | None
    mean: list[float] | None
    std: list[float] | None
    processor: str = "fixed"
    settings: dict[str, Any] = {}
    tokens: int | None = None
    axes: dict[str, tuple[int, int, int]] = {}
    separator: list[int] | None = None


class TextSpec(_Record, frozen=True, kw_only=True):
    """Tokenizer file and how questions are turned into ids. `cleaning` names a rule in `runtime/text.py`.

    `template` is the prompt around the question, in which special tokens are recognised; `image_token_id` marks in its
    ids where the picture goes, which is before everything where the template does not say. `max_tokens` bounds the
    question, without the template. `required` is False where a picture can be asked about without words, which go
    without the template too. `answer_prefix` stands before an answer that is to be scored, such as a blank.
    `special_tokens` is False where questions go without the tokens that the tokenizer puts around a text, as a
    caption's prompt does; `tidied` drops the blanks that word pieces leave before punctuation from answers.
    """

    tokenizer: FileSpec
    cleaning: Literal["none", "qavit_question"]
    max_tokens: int
    pad_token_id: int
    eos_token_id: int | None
    special_token_ids: list[int]
    template: str = "{question}"
    image_token_id: int | None = None
    required: bool = True
    answer_prefix: str = ""
    special_tokens: bool = True
    tidied: bool = False


class GenerationSpec(_Record, frozen=True, kw_only=True):
    """Defaults of answer generation; `max_new_tokens` counts generated tokens, the end token included.

    `decoder_start_token_id` is what decoding begins with, where a prompt does not. An answer ends with `eos_token_id` or
    one of `more_eos_token_ids`. `repetition_penalty` is as in `runtime/penalty.py`. `max_context` is the longest prompt and
    answer together that a decoder takes; `max_positions` is how far its tables of positions go, where that is less.
    """

    decoder_start_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    more_eos_token_ids: list[int] = []
    max_context: int | None = None
    max_positions: int | None = None


class MatchingSpec(_Record, frozen=True, kw_only=True):
    """How a similarity of picture and text becomes a probability: `activation`(`scale` x cosine + `bias`)."""

    scale: float
    bias: float
    activation: Literal["softmax", "sigmoid"]


class SourceSpec(_Record, frozen=True, kw_only=True):
    """Where the weights came from. `id` is a name for people, never a path of the exporting machine."""

    kind: Literal["reference", "folder", "hub", "official"]
    id: str
    revision: str | None
    sha256: str
    parameters: int


class ParityRow(_Record, frozen=True, kw_only=True):
    """One comparison with eager PyTorch: worst absolute difference and cosine over `samples` samples."""

    graph: str
    output: str
    samples: str
    max_abs_diff: float
    cosine: float
    tolerance: float
    passed: bool


class ParitySpec(_Record, frozen=True, kw_only=True):
    """All comparisons made while exporting, and how many generated answers were identical; `left_out` was not compared."""

    backend: str
    rows: list[ParityRow]
    answers_compared: int
    answers_identical: int
    left_out: list[str] = []


class CalibrationSpec(_Record, frozen=True, kw_only=True):
    """What was observed on real samples: the set (spec, seed, hash of its samples, their ids) and the files.

    `summary` is JSON for people (ranges, warnings), `observations` a .npz of what quantising reads.
    """

    variant: str
    dataset: str
    seed: int
    samples: int
    sha256: str
    question_ids: list[str]
    warnings: list[str]
    summary: FileSpec
    observations: FileSpec


class EngineSet(_Record, frozen=True, kw_only=True):
    """TensorRT engines of one variant for one target, by graph; `record` is their engine.json."""

    target: str
    variant: str
    record: FileSpec
    engines: dict[str, FileSpec]

    def files(self) -> list[FileSpec]:
        """The record first."""
        return [self.record, *self.engines.values()]


class Manifest(_Record, frozen=True, kw_only=True):
    """The whole of `manifest.json`.

    `texts` are further tokenizers by what they serve, such as "qformer"; `labels` the names of a classifier's classes.
    """

    schema_version: int
    edgevqa_version: str
    created: str
    family: str
    task: str
    pipeline: str
    target: str
    image: ImageSpec | None
    text: TextSpec | None
    generation: GenerationSpec | None
    variants: dict[str, VariantSpec]
    source: SourceSpec
    model: dict[str, Any]
    parity: dict[str, ParitySpec] = {}
    texts: dict[str, TextSpec] = {}
    labels: list[str] = []
    matching: MatchingSpec | None = None
    calibration: CalibrationSpec | None = None
    engines: dict[str, EngineSet] = {}
    tools: dict[str, str] = {}

    def files(self) -> list[FileSpec]:
        """Every file that the manifest names, each once."""
        return list({spec.path: spec for spec in self.entries()}.values())

    def entries(self) -> Iterator[FileSpec]:
        """Every file entry, repeated ones too."""
        for text in (*([self.text] if self.text else []), *self.texts.values()):
            yield text.tokenizer
        for variant in self.variants.values():
            yield from variant.files()
        if self.calibration is not None:
            yield from (self.calibration.summary, self.calibration.observations)
        for engines in self.engines.values():
            yield from engines.files()


class _Version(msgspec.Struct):
    schema_version: int


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, *, where: str) -> Manifest:
    """Read a manifest; `where` names the file in errors.

    Raises `BundleError` when the JSON is broken, a key is unknown or missing, or the schema version is not ours.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except msgspec.MsgspecError as error:
        raise BundleError(f"{where} is not a bundle manifest: {error}. Export the bundle again.") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}; this edgevqa reads version {SCHEMA_VERSION}. "
            + ("Upgrade edgevqa." if version > SCHEMA_VERSION else "Export the bundle again with this edgevqa.")
        )
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"{where} does not follow schema version {SCHEMA_VERSION}: {error}.") from error
