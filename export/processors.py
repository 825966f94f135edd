"""What a folder's own image processor does, as the specification that the runtime follows without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevqa.export.passes import quiet
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec, Resample

RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


def load_image_processor(folder: Path) -> Any:
    """The image processor of transformers that the folder asks for. Raises `CheckpointError`."""
    from transformers import AutoImageProcessor

    try:
        with quiet("transformers"):  # newer ones call `use_fast` deprecated, older ones know nothing else
            return AutoImageProcessor.from_pretrained(folder, use_fast=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{folder} has no image processor that can be used: {reason} It lies in preprocessor_config.json or "
            "processor_config.json; copy it from the model's page."
        ) from error


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
