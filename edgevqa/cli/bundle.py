"""`edgevqa bundle`: verify a bundle, pack it into one file, unpack it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgevqa.cli import shared
from edgevqa.cli.app import add_command, make_app
from edgevqa.cli.output import note, print_json, print_table, print_text, progress_bar
from edgevqa.runtime import archive
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_checks import COPY_AGAIN, FileReport, verify_bundle
from edgevqa.runtime.engines import stale_engines
from edgevqa.runtime.errors import CheckFailed
from edgevqa.runtime.staging import readable_bytes

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def verify(bundle: shared.BundleArgument, as_json: shared.JsonOption = False) -> None:
    """Check the hash of every file of a bundle.

    Every file is read anew. Exit code 1 when one is missing, changed or damaged.

    Example:
      edgevqa bundle verify bundle
    """
    with progress_bar("Checking") as progress:
        reports = verify_bundle(bundle, progress)
    failed = [report for report in reports if not report.passed]
    if as_json:
        print_json({"bundle": str(bundle), "passed": not failed, "files": reports})
    else:
        _print_reports(reports)
    if failed:
        raise CheckFailed(
            f"{bundle}: {len(failed)} of {len(reports)} files failed: {', '.join(report.path for report in failed)}. "
            f"{_cures(failed)}"
        )


def pack(
    bundle: shared.BundleArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: BUNDLE.edgevqa.tar, here.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Write a bundle into one file, to copy to a board.

    The same bundle always gives the same bytes. Engines that are damaged are left out, which is said, and so is which are of
    older graphs or weights.

    Example:
      edgevqa bundle pack bundle -o vqa.edgevqa.tar
    """
    opened = Bundle.open(bundle)
    target = output if output is not None else Path(bundle.resolve().name + archive.ARCHIVE_SUFFIX)
    with progress_bar("Packing") as progress:
        packed = archive.pack(opened, target, overwrite=overwrite, progress=progress)
    size_bytes, left_out = packed.stat().st_size, list(opened.left_out().values())
    stale = list(stale_engines(opened).values())
    for each in (*left_out, *stale):
        note(f"warning: {each}")
    if as_json:
        print_json({"file": str(packed), "size_bytes": size_bytes, "left_out": left_out, "stale": stale})
    else:
        print_text(f"{packed}: {readable_bytes(size_bytes)}")
        note(f"Unpack it with: edgevqa bundle unpack {shlex.quote(packed.name)}")


def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by `edgevqa bundle pack`.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="BUNDLE", help="Default: FILE without its ending, here.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Unpack a packed bundle, checking every hash.

    A damaged file leaves nothing behind.

    Example:
      edgevqa bundle unpack vqa.edgevqa.tar -o bundle
    """
    target = output if output is not None else _default_folder(file)
    with progress_bar("Unpacking") as progress:
        opened = archive.unpack(file, target, overwrite=overwrite, progress=progress)
    count = len(opened.manifest.files())
    if as_json:
        print_json({"bundle": str(target), "files": count})
    else:
        print_text(f"{target}: {count} files, every hash is right")


def _default_folder(file: Path) -> Path:
    name = file.name.removesuffix(archive.ARCHIVE_SUFFIX)
    return Path(name if name != file.name else f"{file.stem}.bundle")


def _cures(failed: list[FileReport]) -> str:
    """What to do about the files, each thing once; commands last, each on a line of its own."""
    return "\n".join(sorted({report.cure for report in failed}, key=lambda cure: (cure != COPY_AGAIN, cure)))


def _print_reports(reports: list[FileReport]) -> None:
    rows = [
        (report.path, readable_bytes(report.size_bytes), report.status if not report.detail else report.detail)
        for report in reports
    ]
    print_table(("file", ">size", "result"), rows)
    if all(report.passed for report in reports):
        print_text(f"All {sum(report.status == 'ok' for report in reports)} files are as the manifest says.")


app = make_app("Verify, pack and unpack bundles.")
for command in (verify, pack, unpack):
    add_command(app, command)
