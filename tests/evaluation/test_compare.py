"""Comparing precisions: rows, McNemar, conditions, and rows that fail."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import msgspec
import pytest

from edgevqa.evaluation.comparing import CompareOptions, Comparison, changes, compare
from edgevqa.evaluation.metrics import right_or_wrong
from edgevqa.evaluation.rows import numbers_of, planned_numbers
from edgevqa.evaluation.significance import mcnemar
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.errors import EdgeVQAError, InputError

ORT = "onnxruntime"


def quick(**changes: object) -> CompareOptions:
    return CompareOptions(**{"data": "scenes:7:8", "backends": (ORT,), "latency_runs": 0, **changes})  # type: ignore[arg-type]


def test_rows_come_in_order_with_the_float_one_first(comparison: Comparison) -> None:
    assert [(row.precision, row.backend) for row in comparison.rows] == [("fp32", ORT), ("int8", ORT)]
    exact, noisy = comparison.rows
    assert (exact.agreement, exact.changed, exact.accuracy_drop) == (100.0, 0, 0.0)
    assert noisy.changed is not None
    assert noisy.changed > 0, "the noise changes no answer: the tests below show nothing"


def test_differences_are_tested_against_float(comparison: Comparison) -> None:
    exact, noisy = comparison.compared
    first, second = (right_or_wrong(comparison.samples, each.texts) for each in (exact, noisy))
    assert noisy.row.mcnemar == mcnemar(first, second)
    assert noisy.row.accuracy_drop is not None
    assert noisy.row.accuracy_drop == pytest.approx(100 * (sum(first) - sum(second)) / len(first))


def test_changes_are_the_questions_answered_otherwise(comparison: Comparison) -> None:
    exact, noisy = comparison.compared
    found = list(changes(comparison.compared, comparison.samples))
    expected = [place for place in range(64) if exact.texts[place] != noisy.texts[place]]
    assert [place for place, _ in found] == expected
    assert all(rows == [(noisy, exact.texts[place], noisy.texts[place])] for place, rows in found)


def test_conditions_are_checked_on_the_rows(comparison: Comparison) -> None:
    drop, always = comparison.gates
    assert not drop.holds
    assert always.holds
    assert drop.values == {
        "int8.accuracy": comparison.rows[1].accuracy,
        "fp32.accuracy": comparison.rows[0].accuracy,
    }
    assert comparison.gate_errors == []


def test_figures_are_known_by_name_before_they_are_measured(comparison: Comparison) -> None:
    """A condition that names one of them is accepted, and another one is refused, before the long work."""
    for row in comparison.rows:
        measured = {name for name, value in numbers_of(row).items() if value is not None}
        planned = planned_numbers(list(row.per_graph_ms), list(row.by_type), answers=True, latency=True)
        assert planned - measured <= {"energy_j"}
        assert measured <= planned


def test_the_json_has_the_fields_that_the_design_fixes(comparison: Comparison) -> None:
    told = msgspec.json.decode(msgspec.json.encode(comparison.as_json()))
    fixed = "bundle precision variant backend dataset n accuracy ci95 agreement latency_ms per_graph_ms"
    fixed += " throughput_per_s peak_memory_mb size_mb energy_j exact_match anls by_type numerics note"
    for row in told["rows"]:
        assert set(fixed.split()) <= set(row)
        assert {"p50", "p90", "p99"} <= set(row["latency_ms"]["first"]) & set(row["latency_ms"]["next"])
        assert len(row["ci95"]) == 2
    assert told["machine"]["cpu"]


def test_the_float_answers_are_found_once_when_float_is_no_row(two_precisions: Path) -> None:
    stages: list[str] = []

    def advance(what: str, done: int, total: int) -> None:
        if done == 0:
            stages.append(what)

    found = compare([two_precisions], quick(precisions=("int8",)), advance=advance)
    assert stages == [f"1/1 fp32 on {ORT} (answers), loading", f"1/1 int8-u8-fp32 on {ORT}, loading"]
    assert found.rows[0].agreement is not None


def test_all_precisions_of_a_bundle_are_the_default_and_none_twice(two_precisions: Path) -> None:
    asked: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        asked.append(what)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([two_precisions, str(two_precisions)], quick(), advance=stop)
    assert asked[0].startswith("1/2 fp32")


def test_a_row_whose_process_dies_does_not_end_the_comparison(two_precisions: Path) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if "int8" in what and "answering" in what:
            path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
            os.kill(int(path.read_text().split()[-1]), signal.SIGKILL)  # the newest

    options = quick(fail_if=("int8.accuracy < 0",))
    found = compare([two_precisions], options, advance=kill)
    assert [row.precision for row in found.rows] == ["fp32"]
    assert [row.variant for row in found.failed] == ["int8-u8-fp32"]
    assert "SIGKILL" in found.failed[0].error
    assert "int8.accuracy was not measured" in found.gate_errors[0]
    with pytest.raises(EdgeVQAError, match="No row could be measured"):
        compare([two_precisions], quick(precisions=("int8",)), advance=kill)


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"the long work started: {what}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precisions": ("fp32", "fp16")}, "has no variant 'fp16'.*edgevqa quantize .* --precision fp16"),
        ({"backends": ("tensorflow",)}, "Unknown backend 'tensorflow'"),
        ({"fail_if": ("mixed.accuracy < 1",)}, "names no row"),
        ({"fail_if": ("int8.latency_ms.next.p50 < 1",)}, "no figure 'latency_ms.next.p50'"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_found_before_the_long_work(two_precisions: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        compare([two_precisions], quick(**options), advance=never)


def test_nothing_to_compare(two_precisions: Path) -> None:
    with pytest.raises(InputError, match="Nothing to compare"):
        compare([], quick())


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("int8-s8-fp16", ""),
        ("int8-u8-fp32-decoder-w4", " --decoder weight-int4"),
        ("int8-u8-fp32-decoder-w8-encoder-w8", " --decoder weight-int8 --encoder weight-int8"),
        ("int8-u8-fp32-decoder-w4b64-encoder-high", " --decoder weight-int4 --encoder high --block-size 64"),
        ("int8-u8-fp32-decoder-w8c-residual", " --decoder weight-int8 --residual"),
    ],
)
def test_a_missing_variant_names_the_options_that_make_it(two_precisions: Path, precision: str, options: str) -> None:
    with pytest.raises(InputError) as caught:
        compare([two_precisions], quick(precisions=(precision,)))
    assert str(caught.value).endswith(f"--precision int8 --data DATA{options}")


def test_what_no_precision_stands_for_is_compared_by_name_and_otherwise_told(
    two_precisions: Path, tmp_path: Path
) -> None:
    """The same graphs once more, as if they had a weight-only decoder."""
    path, name = Path(shutil.copytree(two_precisions, tmp_path / "three.bundle")), "int8-u8-fp32-decoder-w4"
    bundle = Bundle.open(path)
    recipe = {"weight_only": {"language_decoder": "int4"}}
    special = msgspec.structs.replace(bundle.variant("int8-u8-fp32"), recipe=recipe)
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, variants={name: special, **bundle.manifest.variants}))
    heard: list[str] = []
    found = compare([path], quick(data="scenes:7:4"), note=heard.append)
    assert [row.variant for row in found.rows] == ["fp32", "int8-u8-fp32"]
    assert [line for line in heard if "not compared" in line] == [
        f"note: not compared: {name} of {path}; name what is to be compared with --precisions."
    ]
    heard.clear()
    named = quick(
        data="scenes:7:4",
        precisions=("int8", name),
        fail_if=(f"{name}.accuracy < int8.n - 999", f"{name.replace('-', '_')}.accuracy < int8_u8_fp32.n - 999"),
    )
    found = compare([path], named, note=heard.append)
    assert [row.variant for row in found.rows] == ["int8-u8-fp32", name]
    assert [gate.holds for gate in found.gates] == [False, False]
    assert heard == []
