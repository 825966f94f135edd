"""Metrics against results of the public evaluation code, worked examples and hand-computed values."""

from __future__ import annotations

import pytest
from PIL import Image

from edgevqa.evaluation.datasets.base import Sample
from edgevqa.evaluation.metrics import agreement, anls, exact_match, right_or_wrong, score, vqa_accuracy
from edgevqa.evaluation.normalization import normalize_answer
from edgevqa.runtime.errors import InputError

# Results (percent) of the public evaluation code for VQA v2, GT-Vision-Lab/VQA at commit a013f00, run on these answers with
# its four print statements made functions for Python 3. By hand, for three of ten who said `net`: the seven others each
# leave three in, min(3/3, 1) = 1; the three leave two in, 2/3; (7 + 3 * 2/3) / 10 = 0.9.
OFFICIAL = [
    ("Two dogs.", {"2 dogs": 4, "dogs": 6}, 100.0),
    ("net", {"net": 3, "netting": 7}, 90.0),
    ("net", {"net": 2, "netting": 8}, 60.0),
    ("net", {"net": 1, "netting": 9}, 30.0),
    ("tennis net", {"net": 9, "netting": 1}, 0.0),
    ("Yes", {"yes": 10}, 0.0),  # all wrote the same: compared as written
    ("yes\n", {"yes": 10}, 100.0),
    ("Yes", {"yes": 9, "no": 1}, 100.0),
    ("dont walk", {"don't walk": 5, "don't": 5}, 100.0),
    ("1000", {"1,000": 2, "1000": 1, "1k": 7}, 90.0),
    ("red ish", {"red-ish": 3, "redish": 7}, 90.0),
    ("redish", {"red - ish": 3, "red": 7}, 0.0),
    ("none", {"0": 6, "zero": 2, "no": 2}, 100.0),
    ("the u.s.", {"us": 2, "u.s": 8}, 100.0),
    ("3.50", {"3.50": 3, "3.5.": 7}, 90.0),
    ("2:50", {"2:50 pm": 9, "2:50": 1}, 30.0),
    ("girls", {"girl's": 9, "girls": 1}, 30.0),
    ("somebodyd", {"somebody'd": 5, "nobody": 5}, 100.0),
    ("7/8", {"7 8": 2, "78": 8}, 60.0),
]


def sample(answers: list[str], *, type: str = "all", image: str = "0", question: str = "q?") -> Sample:
    def picture() -> Image.Image:
        raise AssertionError("scoring opens no picture")

    return Sample(
        question=question, answers=answers, question_type=type, image_id=image, question_id="7", open_image=picture
    )


@pytest.mark.parametrize(("prediction", "counts", "percent"), OFFICIAL)
def test_vqa_accuracy_is_that_of_the_public_evaluation_code(
    prediction: str, counts: dict[str, int], percent: float
) -> None:
    answers = [text for text, count in counts.items() for _ in range(count)]
    assert len(answers) == 10
    assert vqa_accuracy(prediction, answers) == pytest.approx(percent / 100, abs=1e-9)
    assert vqa_accuracy(prediction, answers[::-1]) == pytest.approx(percent / 100, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The dogs, two.", "dogs 2"),
        ("An  apple\tand\na pear", "apple and pear"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("100,978 people", "100978 people"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("left/right", "left right"),
        ("it's 2:50", "it's 2:50"),
        ("0.5 m.", "0.5 m"),
        ("wouldnt", "wouldn't"),
        ("wouldntve", "wouldntve"),  # two apostrophes missing: left alone, as in the official table
        ("wouldn'tve", "wouldn't've"),
        ("yall'll", "y'all'll"),
        ("lets", "lets"),
        ("(Yes!)", "yes"),
        ("the", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal
    assert normalize_answer(normal) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        ("The Two.", ["2"], 1.0),
        ("3", ["2"], 0.0),
        ("crimson", ["red", "crimson"], 1.0),  # 1 / max(1, 0.6)
        ("crimson", ["red", "crimson", "rose"], 1.0),  # 1 / max(1, 0.9)
        ("crimson", ["red"] * 4 + ["crimson"], 2 / 3),  # 1 / 1.5
        ("red", ["red"] * 4 + ["crimson"], 1.0),
        ("a", ["the"], 0.0),  # both normalise to nothing
        ("", ["the"], 0.0),
        ("A", ["a"], 1.0),
    ],
)
def test_vqa_accuracy_with_fewer_than_ten_answers(prediction: str, answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(prediction, answers) == pytest.approx(accuracy)


def test_exact_match_takes_any_answer_normalised() -> None:
    assert exact_match("Two.", ["3", "2"]) == 1.0
    assert exact_match("Yes", ["yes"] * 10) == 1.0
    assert exact_match("twos", ["3", "2"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "similarity"),
    [
        # The example of the Robust Reading Competition's task page, with its figures.
        ("The Coca", 0.0),
        ("CocaCola", 8 / 9),
        ("Coca cola", 1.0),
        ("Cola", 0.0),
        ("Cat", 0.0),
        ("", 0.0),
    ],
)
def test_anls(prediction: str, similarity: float) -> None:
    assert anls(prediction, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(similarity)


def test_anls_counts_edits_and_stops_at_half() -> None:
    assert anls("kitten", ["sitting"]) == pytest.approx(1 - 3 / 7)  # two letters changed, one added
    assert anls("ab", ["ax"]) == 0.0  # exactly half is wrong: the threshold is not below 0.5
    assert anls("abc", ["abx"]) == pytest.approx(2 / 3)
    assert anls("", [""]) == 1.0


def test_score_over_all_and_by_type() -> None:
    samples = [
        sample(["yes"], type="yes/no", image="0"),
        sample(["2"], type="number", image="0"),
        sample(["red"] * 3 + ["blue"] * 7, type="other", image="1"),
        sample(["no"], type="yes/no", image="1"),
    ]
    scores = score(samples, ["Yes.", "3", "red", "no"])
    assert scores.n == 4
    assert scores.pictures == 2
    assert scores.accuracy == pytest.approx(100 * (1 + 0 + 0.9 + 1) / 4)
    assert scores.exact_match == pytest.approx(75.0)
    assert scores.anls == pytest.approx(100 * (0.75 + 0 + 1 + 1) / 4)  # the full stop is one of four letters
    assert list(scores.by_type) == ["number", "other", "yes/no"]


def test_score_by_type_has_the_same_figures() -> None:
    samples = [sample(["yes"], type="yes/no", image=str(i // 2)) for i in range(60)]
    samples += [sample(["1"], type="number", image=str(i // 2)) for i in range(60)]
    predictions = ["yes"] * 45 + ["no"] * 15 + ["1"] * 60
    scores = score(samples, predictions)
    assert scores.accuracy == pytest.approx(87.5)
    assert scores.ci_method == "bootstrap over pictures"
    assert 70 < scores.ci95[0] < 87.5 < scores.ci95[1] < 100
    assert scores.by_type["yes/no"].accuracy == 75.0
    assert scores.by_type["yes/no"].n == 60
    assert scores.by_type["yes/no"].pictures == 30
    number = scores.by_type["number"]
    assert (number.accuracy, number.ci_method) == (100.0, "wilson over pictures")  # all right: bootstrap degenerates
    assert number.ci95[0] == pytest.approx(100 * 30 / (30 + 1.959964**2), abs=1e-3)  # Wilson at 30 of 30
    assert number.ci95[1] == pytest.approx(100.0)
    assert score(samples, predictions) == scores  # seeded


def test_samples_without_answers_are_an_error_to_score_but_not_to_compare() -> None:
    samples = [sample(["a"]), sample([], question="what is this?")]
    with pytest.raises(InputError, match=r"1 of 2 questions have no answers.*what is this\?"):
        score(samples, ["a", "b"])
    with pytest.raises(InputError, match="no answers"):
        right_or_wrong(samples, ["a", "b"])
    for metric in (vqa_accuracy, exact_match, anls):
        with pytest.raises(InputError, match="at least one answer"):
            metric("a", [])
    assert agreement(["a", "b"], ["a", "c"]).percent == 50.0


@pytest.mark.parametrize("predictions", [[], ["a", "b"]])
def test_score_wants_one_prediction_a_sample(predictions: list[str]) -> None:
    with pytest.raises(InputError, match=f"1 samples and {len(predictions)} predictions"):
        score([sample(["a"])], predictions)
    with pytest.raises(InputError, match="0 samples and 0 predictions"):
        score([], [])


def test_right_or_wrong_asks_for_two_annotators_of_ten() -> None:
    samples = [sample(["net"] * count + ["netting"] * (10 - count)) for count in (1, 2, 3)]
    assert right_or_wrong(samples, ["net"] * 3) == [False, True, True]


def test_agreement_counts_identical_texts() -> None:
    result = agreement(["yes", "no", "2", "red"] * 25, ["yes", "no", "two", "red"] * 25)
    assert (result.n, result.same, result.percent) == (100, 75, 75.0)
    assert result.ci95 == pytest.approx((65.70, 82.45), abs=0.01)  # Wilson at 75 of 100
    with pytest.raises(InputError, match="2 and 1 answers"):
        agreement(["a", "b"], ["a"])
    with pytest.raises(InputError, match="0 and 0 answers"):
        agreement([], [])
