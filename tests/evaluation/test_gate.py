"""Conditions of --fail-if: what they may say, which rows they mean, and that nothing else can be said."""

from __future__ import annotations

import pytest

from edgevqa.evaluation.gate import Gate, RowKey
from edgevqa.runtime.errors import InputError

ORT, OV = "onnxruntime", "openvino"
KEYS = [
    RowKey("a", precision, variant, backend)
    for backend in (ORT, OV)
    for precision, variant in (("fp32", "fp32"), ("int8", "int8-u8-fp32"))
]
KNOWN = {"accuracy", "energy_j", "latency_ms.next.p50", "by_type.yes_no.accuracy"}
FIELDS = dict.fromkeys(KEYS, KNOWN)
FIGURES: dict[RowKey, dict[str, float | None]] = {
    key: {
        "accuracy": 97.0 if key.precision == "int8" else 98.0,
        "latency_ms.next.p50": 3.0 if key.backend == OV else 5.0,
        "energy_j": None,
        "by_type.yes_no.accuracy": 90.0,
    }
    for key in KEYS
}


def holds(text: str) -> list[bool]:
    gate = Gate(text)
    return [gate.check(binding, FIGURES, "").holds for binding in gate.plan(KEYS, FIELDS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8.accuracy < fp32.accuracy - 0.5", [True, True]),
        ("int8.accuracy < fp32.accuracy - 1.5", [False, False]),
        ("int8_u8_fp32.latency_ms.next.p50 > 4", [True, False]),
        ("int8_openvino.latency_ms.next.p50 >= int8_onnxruntime.latency_ms.next.p50", [False]),
        (
            'row("int8", "openvino").latency_ms.next.p50 * 2 > row("fp32", backend="onnxruntime").latency_ms.next.p50',
            [True],
        ),
        ('row("int8-u8-fp32", "openvino", "a").accuracy == 97', [True]),
        ("97 <= int8.accuracy <= 98 <= fp32.accuracy", [True, True]),
        ("not int8.accuracy < 50 and (fp32.accuracy > 99 or -int8.accuracy / 2 < 0)", [True, True]),
        ("int8.by_type.yes_no.accuracy != 90", [False, False]),
    ],
)
def test_conditions(text: str, expected: list[bool]) -> None:
    assert holds(text) == expected


def test_a_message_gives_both_sides() -> None:
    gate = Gate("int8.accuracy < fp32.accuracy - 0.5")
    message = gate.check(gate.plan(KEYS, FIELDS)[0], FIGURES, " for a").message
    assert "97 < 97.5" in message
    assert "int8.accuracy = 97" in message
    assert "fp32.accuracy = 98" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int8.accuracy <", "cannot be read"),
        ("int8.accuracy", "is a number, not a condition"),
        ("3 < 4", "names no figure"),
        ("int8 < 4", "names no figure"),
        ("int8.accuracy < 'a'", "is no number"),
        ("int8.accuracy < True", "is no number"),
        ("int8.accuracy < 2 ** 9", "is not allowed"),
        ("int8.accuracy < [1][0]", "is not allowed"),
        ("(lambda: 1).x < 1", "is no row"),
        ("__import__('os').x < 1", "is no row"),
        ("row('int8', 'openvino', 'a', 'b').accuracy < 1", "wrong arguments"),
        ("row(int8).accuracy < 1", "no text in quotes"),
        ("int8.accuracy < " + "1+" * 600 + "1", "characters"),
        ("int8.accuracy in fp32.accuracy", "is not allowed"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Gate(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int4.accuracy < 1", "int4.accuracy names no row of this comparison. Rows: fp32, int8, int8-u8-fp32"),
        ("int8.acuracy < 1", "no figure 'acuracy'.*Known: accuracy"),
        ("int8.latency_ms < 1", "Known: latency_ms.next.p50"),
        ('row("int8", "tensorrt").accuracy < 1', "names no row"),
        ('row("int8", bundle="b").accuracy < 1', "names no row"),
    ],
)
def test_unknown_names_list_the_known_ones(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Gate(text).plan(KEYS, FIELDS)


def test_two_variants_of_a_precision_must_be_told_apart() -> None:
    keys = [*KEYS[:2], RowKey("a", "int8", "int8-s8-fp32", ORT)]
    fields = dict.fromkeys(keys, KNOWN)
    with pytest.raises(InputError, match="could be int8-u8-fp32, int8-s8-fp32: name the variant"):
        Gate("int8.accuracy < 1").plan(keys, fields)
    assert len(Gate("int8_s8_fp32.accuracy < 1").plan(keys, fields)) == 1


W4, W4B64 = "int8-u8-fp32-decoder-w4", "int8-u8-fp32-decoder-w4b64"
SEVERAL = [*KEYS[:2], *(RowKey("a", "int8", name, ORT, usual=False) for name in (W4, W4B64))]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (f"{W4}.accuracy < fp32.accuracy - 2", {W4, "fp32"}),
        (f"fp32.accuracy-{W4B64}.accuracy>0.5", {W4B64, "fp32"}),
        (f"fp32.accuracy-0.5>int8-u8-fp32.accuracy-{W4}.accuracy", {W4, "int8-u8-fp32", "fp32"}),
        (f"{W4.replace('-', '_')}.accuracy < 1", {W4}),
        (f"{W4}-onnxruntime.accuracy < {W4}_onnxruntime.accuracy", {W4}),
        (f'row("{W4}", bundle="a").accuracy < int8-u8-fp32.accuracy', {W4, "int8-u8-fp32"}),
        ("int8.accuracy - 1 < 1", {"int8-u8-fp32"}),
        ('row("int8", "onnxruntime").accuracy < 1', {"int8-u8-fp32"}),
    ],
)
def test_variants_are_called_as_they_are_printed(text: str, rows: set[str]) -> None:
    """And a precision with one usual variant means that one, whatever others are compared."""
    [binding] = Gate(text, SEVERAL).plan(SEVERAL, dict.fromkeys(SEVERAL, KNOWN))
    assert {key.variant for key in binding.values()} == rows


def test_other_hyphens_are_minus() -> None:
    gate = Gate("fp32.accuracy-0.5-int8.accuracy-int8-u8-fp32.n - 1 < 0", KEYS)
    row = {"accuracy": 10.0, "n": 4.0}
    [binding, _] = gate.plan(KEYS, {key: {"accuracy", "n"} for key in KEYS})
    assert gate.check(binding, dict.fromkeys(KEYS, row), "").comparisons == ["-5.5 < 0"]


def test_text_in_quotes_keeps_its_hyphens() -> None:
    keys = [RowKey("int8-u8-fp32.bundle", "int8", "int8-u8-fp32", ORT)]
    gate = Gate('row("int8", bundle="int8-u8-fp32.bundle").accuracy < 1', keys)
    assert len(gate.plan(keys, dict.fromkeys(keys, KNOWN))) == 1


def test_a_variant_that_is_not_compared_is_answered_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r'"int8" names no figure.* Rows here: fp32, int8, int8-u8-fp32\.'):
        Gate(f"{W4}.accuracy < 1", KEYS)


def test_without_a_usual_variant_one_must_be_named() -> None:
    keys = [SEVERAL[0], *SEVERAL[2:]]
    with pytest.raises(InputError, match=f"int8.accuracy could be {W4}, {W4B64}: name the variant"):
        Gate("int8.accuracy < 1", keys).plan(keys, dict.fromkeys(keys, KNOWN))


def test_rows_on_different_backends_meet_where_each_has_one() -> None:
    """As `--backends auto` may choose: another backend for each precision."""
    keys = [KEYS[0], KEYS[3]]
    plan = Gate("int8.accuracy < fp32.accuracy").plan(keys, dict.fromkeys(keys, KNOWN))
    assert [sorted(key.backend for key in binding.values()) for binding in plan] == [[ORT, OV]]


def test_a_figure_that_is_missing_does_not_pass() -> None:
    gate = Gate("int8.energy_j > 3")
    with pytest.raises(InputError, match=r"cannot be checked: int8.energy_j is not known"):
        gate.check(gate.plan(KEYS, FIELDS)[0], FIGURES, "")
    with pytest.raises(InputError, match=r"cannot be checked: int8.energy_j was not measured"):
        gate.check(gate.plan(KEYS, FIELDS)[0], {}, "")


def test_division_by_zero_is_told() -> None:
    gate = Gate("1 / (int8.accuracy - 97) > 3")
    with pytest.raises(InputError, match=r"cannot be checked: .*zero"):
        gate.check(gate.plan(KEYS, FIELDS)[0], FIGURES, "")
