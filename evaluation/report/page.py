"""Writes a comparison as one HTML page that needs no network and no other file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgevqa import __version__
from edgevqa.evaluation.comparing import Comparison
from edgevqa.evaluation.report.cells import Name, judgement, number, p_value, row_names, signed, summary
from edgevqa.evaluation.report.changed import make_cards
from edgevqa.evaluation.rows import Row
from edgevqa.runtime.errors import ConfigError, require
from edgevqa.runtime.staging import Staging, clear_write_errors

_PACKAGE = "edgevqa.evaluation.report"
_PURPOSE = "The HTML report"


def check_report(path: str | os.PathLike[str]) -> None:
    """Raise what `write_report` would raise before anything is measured: `MissingExtraError`, `ConfigError`."""
    for package in ("jinja2", "matplotlib"):
        require(package, extra="report", purpose=_PURPOSE)
    if Path(path).is_dir():
        raise ConfigError(f"The report {path} is a folder; expected the name of a file, such as report.html.")


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises `MissingExtraError` without the extra `report`, and `InputError`."""
    check_report(path)
    target = Path(path)
    page = render(comparison)
    with clear_write_errors(target), Staging(target) as staging:
        staging.partial.write_text(page, encoding="utf-8")
        staging.commit()


def render(comparison: Comparison) -> str:
    """The page's HTML."""
    jinja2: Any = require("jinja2", extra="report", purpose=_PURPOSE)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, signed=signed, p_value=p_value, judgement=judgement)
    template = environment.from_string(_resource("page.html.jinja"))
    return str(template.render(_context(comparison, jinja2)))


def _context(comparison: Comparison, jinja2: Any) -> dict[str, Any]:
    rows = comparison.rows
    names = row_names(rows)
    columns, cells = summary(rows)
    return {
        "version": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "style": jinja2.utils.markupsafe.Markup(_resource("style.css")),
        "comparison": comparison,
        "options": comparison.options,
        "machine": comparison.machine,
        "pictures": len({sample.image_id for sample in comparison.samples}),
        "variants": len({(row.bundle, row.variant) for row in rows}),
        "backends": list(dict.fromkeys(row.backend for row in rows)),
        "named_rows": list(zip(names, rows, strict=True)),
        "columns": columns,
        "cells": list(zip(names, rows, cells, strict=True)),
        "tested": [
            (name, row) for name, row in zip(names, rows, strict=True) if row.mcnemar and row.precision != "fp32"
        ],
        "types": _types(rows),
        "figures": {name: jinja2.utils.markupsafe.Markup(svg) for name, svg in _figures(comparison, names).items()},
        "layers": _layers(comparison, names, jinja2),
        "cards": make_cards(comparison, [name.full for name in names]),
    }


def _types(rows: Sequence[Row]) -> list[tuple[str, int, list[Any]]]:
    """Each question type with its number of questions and every row's figures; nothing where there is one type."""
    types = list(dict.fromkeys(name for row in rows for name in row.by_type))
    if len(types) < 2:
        return []
    return [
        (name, max(row.by_type[name].n for row in rows if name in row.by_type), [row.by_type.get(name) for row in rows])
        for name in types
    ]


def _figures(comparison: Comparison, names: Sequence[Name]) -> dict[str, str]:
    """The drawings that the measurements suffice for."""
    from edgevqa.evaluation.report.figures import Point, latency_bars, pareto

    timed = [(name, row) for name, row in zip(names, comparison.rows, strict=True) if row.latency_ms]
    if not timed:
        return {}
    several = len({row.backend for _, row in timed}) > 1  # then the colour tells the backend
    judged = all(row.accuracy is not None for _, row in timed)
    points = [
        Point(
            name=" · ".join([name.variant, *name.place.split(" · ")[1:]]) if several else name.full,
            group=row.backend,
            latency_ms=row.latency_ms["next"].p50,
            accuracy=value,
            interval=row.ci95 if judged else None,
        )
        for name, row in timed
        if (value := row.accuracy if judged else row.agreement) is not None
    ]
    shares = {name.full: {graph: spread.p50 for graph, spread in row.per_graph_ms.items()} for name, row in timed}
    drawn = {"latency": latency_bars(shares)}
    if points:
        drawn["pareto"] = pareto(points, accuracy_label="accuracy (%)" if judged else "same answers as float (%)")
    return drawn


def _layers(comparison: Comparison, names: Sequence[Name], jinja2: Any) -> list[dict[str, Any]]:
    """Per variant that has a report of its layers: the drawing, and those kept high with the reason."""
    from edgevqa.evaluation.report.figures import MOST_LAYERS, layer_bars

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, each in zip(names, comparison.compared, strict=True):
        measured = [layer for layer in each.layers if layer.local_error is not None]
        high = [layer for layer in each.layers if layer.high]
        if measured or high:
            found.setdefault(
                (each.row.bundle, each.row.variant),
                {
                    "name": name.full if len({row.bundle for row in comparison.rows}) > 1 else each.row.variant,
                    "figure": jinja2.utils.markupsafe.Markup(layer_bars(measured)) if measured else None,
                    "shown": min(len(measured), MOST_LAYERS),
                    "total": len(each.layers),
                    "high": high,
                },
            )
    return list(found.values())


def _resource(name: str) -> str:
    return files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")
