"""Options that several commands have, declared once: the same name, value and help everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")]
PrecisionOption = Annotated[
    str | None, typer.Option(metavar="P", help="A precision or variant of the bundle. Default: fp32.")
]
FastestOption = Annotated[str, typer.Option(metavar="B", help="What runs the graphs; auto: the fastest.")]
BackendOption = Annotated[str, typer.Option(metavar="B", help="What runs the graphs.")]
ThreadsOption = Annotated[int, typer.Option(metavar="N", help="0: as many as the backend likes.")]
NoVerifyOption = Annotated[bool, typer.Option("--no-verify", help="Do not check the bundle's hashes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]

# Of what measures answers on a data set.
DataOption = Annotated[str, typer.Option(metavar="DATA", help="easy-vqa:test, scenes:7:5000, a file or a folder.")]
SamplesOption = Annotated[int | None, typer.Option(metavar="N", help="Questions to ask. Default: all.")]
SeedOption = Annotated[int, typer.Option(metavar="N", help="Chooses the samples, and the timed ones.")]
MaxBatchOption = Annotated[int, typer.Option(metavar="N", help="Questions answered at once for accuracy.")]
LatencyRunsOption = Annotated[int, typer.Option(metavar="N", help="Single questions to time. 0: none.")]
