"""`edgevqa build` for JetPack 5 and 6.0, whose TensorRT 8 builds by itself: the trtexec lines to run on the board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgevqa.cli.output import note, print_json, print_text
from edgevqa.runtime.errors import InputError

if TYPE_CHECKING:
    from edgevqa.export.engine.options import BuildOptions


def print_lines(bundle_path: Path, options: BuildOptions, *, as_json: bool) -> None:
    """Print a line a graph. `options` are for the target that stands in (`export/trtexec.py`).

    Raises `InputError` for a bundle of another target and for options that these lines do not have.
    """
    from edgevqa.export.trtexec import FLOAT_REASON, TARGET, check_legacy, line_options, trtexec_lines
    from edgevqa.runtime.bundle import Bundle
    from edgevqa.runtime.targets import target

    if options != line_options(options):
        raise other_options()
    bundle = Bundle.open(bundle_path)
    check_legacy(bundle.manifest, str(bundle.root), options)
    lines = list(trtexec_lines(bundle, options=msgspec.structs.replace(options, precision=None)))
    if as_json:
        print_json({"bundle": str(bundle.root), "target": TARGET, "lines": lines})
        return
    for line in lines:
        print_text(line)
    note(
        f"\nNothing was built: {target(TARGET).cannot['build']}. Run these lines on the board, in the bundle's folder. "
        f"{FLOAT_REASON} Upgrading the board to JetPack 6.1 is the better way: edgevqa runs the engines there."
    )


def other_options() -> InputError:
    """The error for options that these lines do not have."""
    from edgevqa.export.trtexec import TARGET

    return InputError(
        f"Target '{TARGET}' is built by trtexec: --precision fp32, --batch, --axis, --max-question, --max-prompt and "
        "--max-new-tokens are all that its lines take. Leave the others out, or add trtexec's own to the lines."
    )
