"""`edgevqa families` and `edgevqa targets`: the tables that exporting and building read."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from edgevqa.cli.output import print_json, print_table
from edgevqa.runtime.targets import TARGETS

JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]


def families(as_json: JsonOption = False) -> None:
    """List the model families that can be exported.

    Example:
      edgevqa families --json
    """
    from edgevqa.export.families import FAMILIES

    if as_json:
        rows = [
            {"name": name, "summary": entry.summary, "model_types": entry.model_types, "source": entry.source}
            for name, entry in FAMILIES.items()
        ]
        print_json({"families": rows})
    else:
        print_table(("family", "what it is", "from"), [(n, e.summary, e.source) for n, e in FAMILIES.items()])


def targets(as_json: JsonOption = False) -> None:
    """List the targets that bundles can be made for, and what each cannot do.

    Example:
      edgevqa targets
    """
    if as_json:
        print_json({"targets": [msgspec.to_builtins(row) for row in TARGETS.values()]})
        return
    rows = [
        (t.name, t.summary, ", ".join(t.tensorrt) or "-", f"{t.opset} (<= {t.max_opset})", " ".join(t.numerics))
        for t in TARGETS.values()
    ]
    print_table(("target", "where", "TensorRT", "opset", "precisions"), rows)
    limits = [(t.name, what, instead) for t in TARGETS.values() for what, instead in t.cannot.items()]
    print_table(("target", "not", "because, and instead"), limits)
