"""What a folder's own image processor does, as the specification that the runtime follows without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevqa.export.assets import refuse_custom_code
from edgevqa.export.passes import quiet
from edgevqa.export.sources import read_json, reason_of
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec, Resample

FILES = ("preprocessor_config.json", "processor_config.json")
CHANNELS = 3
RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


def load_image_processor(folder: Path) -> Any:
    """The image processor of transformers that the folder asks for. Raises `CheckpointError`."""
    from transformers import AutoImageProcessor

    path, settings = _settings(folder)
    try:
        with quiet("transformers"):  # newer ones call `use_fast` deprecated, older ones know nothing else
            processor = AutoImageProcessor.from_pretrained(
                folder, use_fast=False, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers' own, and whatever the file's values lead to
        refuse_custom_code(path, settings, "AutoImageProcessor")
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
        named = "no image processor" if kind is None else f"the image processor {kind!r}"
        why = "the installed transformers knows none" if "Unrecognized" in str(error) else reason_of(error)
        raise CheckpointError(
            f"{path}, which names {named}, cannot be used: {why}. Copy the file from the model's page."
        ) from error
    _check_values(processor, path)
    return processor


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says how pictures are prepared, and what it says."""
    for name in FILES:
        path = folder / name
        if path.is_file():
            found = read_json(path, what="it says how pictures are prepared")
            inner = found.get("image_processor")
            if name == FILES[0] or isinstance(inner, dict):
                return path, inner if isinstance(inner, dict) else found
    raise CheckpointError(
        f"{folder} does not say how pictures are prepared; expected {' or '.join(FILES)} with an image processor. "
        "Copy the file from the model's page."
    )


def _check_values(processor: Any, path: Path) -> None:
    """Raises `CheckpointError` for values that no processor can work with."""
    try:
        found = values(processor)
        if any(found[name] is not None and len(found[name]) != CHANNELS for name in ("mean", "std")):
            raise ValueError(
                f"image_mean and image_std are {found['mean']} and {found['std']}, expected {CHANNELS} numbers"
            )
        if found["std"] is not None and 0.0 in found["std"]:
            raise ValueError("image_std has a zero, by which pictures would be divided")
        if not 0 <= int(processor.resample) < len(RESAMPLES):
            raise ValueError(f"resample is {processor.resample}, expected 0 to {len(RESAMPLES) - 1}")
        for name in ("size", "crop_size"):
            if (size := getattr(processor, name, None)) is not None:
                _sides(size)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has values that cannot be used: {error}.") from error


def fixed_image_spec(folder: Path, *, size: int | tuple[int, int], tokens: int | None = None) -> ImageSpec:
    """The specification of a processor that resizes, crops, rescales and normalises to one size (height, width) in pixels.

    `tokens` are the places that a picture takes in a language model's input. Raises `CheckpointError` when the processor
    does not lead to `size`.
    """
    processor = load_image_processor(folder)
    height, width = (size, size) if isinstance(size, int) else size
    crop = _sides(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    resize = _sides(processor.size) if processor.do_resize else None
    if (crop or resize) != {"height": height, "width": width}:
        raise CheckpointError(
            f"The image processor of {folder} makes pictures of {crop or resize or 'any size'}; the model takes "
            f"{height} x {width} pixels (height x width)."
        )
    return ImageSpec(
        height=height,
        width=width,
        resize=resize,
        crop=crop,
        resample=RESAMPLES[int(processor.resample)],
        tokens=tokens,
        **values(processor),
    )


def values(processor: Any) -> dict[str, Any]:
    """`rescale_factor`, `mean` and `std` of a processor; None for a step that it leaves out."""
    normalize = processor.do_normalize
    return {
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else None,
        "mean": [float(value) for value in processor.image_mean] if normalize else None,
        "std": [float(value) for value in processor.image_std] if normalize else None,
    }


def _sides(size: Any) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {name: int(value) for name, value in dict(size).items() if value is not None}
