"""`edgevqa families` and `edgevqa targets`: the tables that exporting and building read."""

from __future__ import annotations

import msgspec

from edgevqa.cli import shared
from edgevqa.cli.output import print_json, print_table
from edgevqa.runtime.targets import TARGETS


def families(as_json: shared.JsonOption = False) -> None:
    """List the model families that can be exported.

    What a folder holds is told by the `model_type`, and within a family by the `architectures`, of its config.json.

    Example:
      edgevqa families
      edgevqa families --json
    """
    from edgevqa.export.families import FAMILIES

    if as_json:
        rows = [
            {
                "name": name,
                "summary": entry.summary,
                "task": entry.tasks[0] if entry.tasks else None,
                "tasks": entry.tasks,
                "model_types": entry.model_types,
                "architectures": entry.architectures,
                "source": entry.source,
            }
            for name, entry in FAMILIES.items()
        ]
        print_json({"families": rows})
        return
    table = [
        (name, entry.summary, ", ".join(entry.tasks), ", ".join(entry.model_types)) for name, entry in FAMILIES.items()
    ]
    print_table(("family", "what it is", "tasks", "model_type"), table)


def targets(as_json: shared.JsonOption = False) -> None:
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
