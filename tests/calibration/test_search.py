"""The search's logic: which layers are raised, on problems whose answer is known; and what it can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import pytest

from edgevqa.calibration.quantization.quantizer import LayerCost
from edgevqa.calibration.search.measuring import shares_of_time
from edgevqa.calibration.search.raising import Holds, predict_harm, raise_until, raising_order
from edgevqa.calibration.search.search import SearchOptions
from edgevqa.runtime.errors import InputError

LAYERS = [f"layer{number}" for number in range(40)]
LAYERS_SET = frozenset(LAYERS)
SAVED = {name: 1.0 + (number % 5) for number, name in enumerate(LAYERS)}


class Problem:
    """A drop that adds up over the quantised layers, and a budget."""

    def __init__(self, harm: Mapping[str, float], budget: float) -> None:
        self.harm = harm
        self.budget = budget
        self.asked: list[frozenset[str]] = []

    def drop(self, high: frozenset[str]) -> float:
        return math.fsum(value for name, value in self.harm.items() if name not in high)

    def holds(self, high: frozenset[str]) -> bool:
        self.asked.append(high)
        return self.drop(high) <= self.budget


def solve(holds: Holds, harm: Mapping[str, float]) -> AbstractSet[str] | None:
    return raise_until(raising_order(harm, SAVED), SAVED, holds, in_time=lambda: True).high


def harm_of(**worst: float) -> dict[str, float]:
    return {name: worst.get(name, 0.001) for name in LAYERS}


def test_all_quantised_is_tried_first_and_is_enough() -> None:
    problem = Problem(harm_of(), budget=0.5)
    assert solve(problem.holds, problem.harm) == frozenset()
    assert problem.asked == [frozenset()]


def test_the_harmful_layers_alone_stay_high() -> None:
    problem = Problem(harm_of(layer3=2.0, layer17=5.0, layer30=1.0), budget=0.5)
    assert solve(problem.holds, problem.harm) == {"layer3", "layer17", "layer30"}
    assert len(problem.asked) < 12


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 15, 16, 31, 38, 39])
def test_any_number_of_harmful_layers_is_found(count: int) -> None:
    harm = {name: 1.0 if number < count else 0.0 for number, name in enumerate(LAYERS)}
    problem = Problem(harm, budget=0.5)
    assert solve(problem.holds, harm) == set(LAYERS[:count])


def test_no_set_is_given_where_none_holds() -> None:
    problem = Problem(dict.fromkeys(LAYERS, 1.0), budget=0.5)
    assert solve(problem.holds, problem.harm) is None
    alone = {LAYERS_SET - high for high in problem.asked if len(high) == len(LAYERS) - 1}
    assert len(alone) == len(LAYERS), "each layer was tried as the only one that is quantised"
    assert raise_until(["one"], {"one": 1.0}, lambda high: False, in_time=lambda: True).high is None


def test_a_wrong_order_costs_layers_that_are_lowered_again() -> None:
    harm = harm_of(layer3=2.0)
    problem = Problem(harm, budget=0.5)
    wrong = sorted(LAYERS, key=lambda name: harm[name])
    found = raise_until(wrong, SAVED, problem.holds, in_time=lambda: True)
    assert found.complete
    assert found.high == frozenset({"layer3"})


def test_without_time_a_set_that_holds_is_found_all_the_same() -> None:
    problem = Problem(harm_of(layer3=2.0, layer17=5.0, layer30=1.0), budget=0.5)
    found = raise_until(raising_order(problem.harm, SAVED), SAVED, problem.holds, in_time=lambda: False)
    assert not found.complete
    assert found.high is not None
    assert problem.drop(found.high) <= 0.5
    assert len(problem.asked) == 4, "none, one, two and four layers"


def test_a_start_is_kept_and_lowered() -> None:
    problem = Problem(harm_of(layer3=2.0, layer17=5.0), budget=0.5)
    order = raising_order(problem.harm, SAVED)
    start = frozenset({"layer3", "layer9"})
    assert raise_until(order, SAVED, problem.holds, in_time=lambda: True, start=start).high == frozenset(
        {"layer3", "layer17"}
    )


def test_what_is_returned_was_seen_to_hold_also_where_harm_does_not_add_up() -> None:
    asked: dict[frozenset[str], bool] = {}

    def holds(high: frozenset[str]) -> bool:
        """As it is in life: layers make up for each other, and noise."""
        asked[high] = len(high) % 3 == 1 and "layer5" in high
        return asked[high]

    found = solve(holds, harm_of(layer5=1.0))
    assert found is not None
    assert asked[frozenset(found)]


def test_the_order_is_harm_for_time_saved() -> None:
    harm = {"cheap": 1.0, "dear": 4.0, "useless": 0.1, "harmless": 0.0}
    saved = {"cheap": 1.0, "dear": 8.0, "useless": 0.0, "harmless": 3.0}
    assert raising_order(harm, saved) == ["useless", "cheap", "dear", "harmless"]


def test_harm_is_predicted_from_the_local_error() -> None:
    errors = {"a": 0.2, "b": 0.1, "c": 0.05, "d": 0.4, "e": 0.1}
    found = predict_harm(errors, {"a": 0.08, "d": 40.0, "e": 0.02})
    assert (found["a"], found["d"], found["e"]) == (0.08, 40.0, 0.02)
    assert found["b"] == pytest.approx(0.4 * 0.1), "the median of 0.4, 100 and 0.2 for one of error"
    assert found["b"] == pytest.approx(2 * found["c"])
    assert predict_harm(errors, {})["b"] == pytest.approx(0.1)


def layer(name: str, macs: float) -> LayerCost:
    return LayerCost(
        name=name,
        graph=name.partition("/")[0],
        parameters=1,
        macs=macs,
        head=False,
        local_error=0.01,
        method="max",
        alpha=None,
        reason=None,
        shared=(),
    )


def test_time_is_shared_out_by_graph_and_then_by_multiplications() -> None:
    layers = [layer("vision/a", 30.0), layer("vision/b", 10.0), layer("decoder/c", 1.0)]
    shares, source = shares_of_time(layers, {"vision": 6.0, "decoder": 2.0}, "onnxruntime")
    assert shares == pytest.approx({"vision/a": 0.5625, "vision/b": 0.1875, "decoder/c": 0.25})
    assert "onnxruntime" in source
    shares, source = shares_of_time(layers, {}, "onnxruntime")
    assert shares == pytest.approx({"vision/a": 30 / 41, "vision/b": 10 / 41, "decoder/c": 1 / 41})
    assert "nothing was timed" in source


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -0.1}, "--max-drop -0.1: expected points from 0 to under 100"),
        ({"max_drop": 100.0}, "--max-drop 100"),
        ({"samples": 3}, "samples is 3; expected at least 16"),
        ({"worst": 0}, "worst is 0"),
        ({"time_limit_s": 0.0}, "time limit is 0"),
    ],
)
def test_options_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchOptions(data="scenes:1:10", **settings)  # type: ignore[arg-type]
