"""What to do about a model whose numbers are none: which of weights and precision is to blame."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from edgevqa.runtime.errors import CheckFailed, NotFiniteError
from edgevqa.runtime.manifest import VariantSpec


@contextmanager
def explained(name: str, variant: VariantSpec) -> Generator[None, None, None]:
    """Add to a `NotFiniteError` what is the likeliest reason in the variant called `name`, and what to do."""
    try:
        yield
    except NotFiniteError as error:
        if variant.numerics == "fp32":
            advice = (
                "This is fp32, which hardly overflows: the checkpoint's weights are damaged (NaN, infinite or far too large). "
                "Check the checkpoint, or get it again, and export it again."
            )
        else:
            advice = (
                f"Something overflowed in this precision ({name}). Use another precision, such as fp32; if that fails too, "
                "check the checkpoint."
            )
        raise CheckFailed(f"{error} {advice}") from error
