"""Profiles of decoders that read prompts, of encoders that read no question, and of axes that pictures bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles, least_picture, widest
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import GraphSpec, ImageSpec, Manifest, TensorSpec, TextSpec
from edgevqa.runtime.preprocessing.idefics3 import TileSettings, TileTokens
from edgevqa.runtime.questions import Questions
from tests.runtime.pipelines.conftest import TOKENS, write_toy
from tests.runtime.pipelines.decoder_only_toy import TEMPLATE, write_decoder_only
from tests.runtime.pipelines.wordless_toys import write_captioner, write_classifier

TEMPLATE_TOKENS = 4  # `<s> user <image> answer`
WORDS, NEW = 12, 6
MASKED = ("input_ids", "attention_mask")
PROMPT = TOKENS + TEMPLATE_TOKENS + 8 + WORDS  # with a margin for what a question may add to the template


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_decoder_only(tmp_path_factory.mktemp("profiles") / "toy"))


def ranges(bundle: Bundle, manifest: Manifest | None = None, **changes: Any) -> list[dict[str, tuple[int, int, int]]]:
    given: dict[str, Any] = {"target": "rtx", **changes}
    graphs = bundle.variant("fp32").graphs
    return axis_ranges(manifest or bundle.manifest, graphs, BuildOptions(**given), template=TEMPLATE_TOKENS)


def test_the_template_is_counted(bundle: Bundle) -> None:
    main = Questions.of(bundle).main
    assert main is not None
    assert main.template_tokens == TEMPLATE_TOKENS


def test_single_tokens_prompts_and_questions_have_profiles_of_their_own(bundle: Bundle) -> None:
    one, many, first, rest = ranges(bundle)
    assert [(each["batch"], each["length"], each["slots"]) for each in (one, many)] == [
        ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((1, 4, 8), (1, 1, 1), (1, 1, 1)),
    ]
    usual = TOKENS + TEMPLATE_TOKENS + 8
    assert (first["batch"], first["length"], first["slots"]) == ((1, 1, 1), (1, usual, PROMPT), (1, TOKENS, TOKENS))
    assert (rest["batch"], rest["length"], rest["slots"]) == ((1, 4, 8), (1, 12, PROMPT - TOKENS), (1, 1, 1))
    assert {each["capacity"] for each in (one, many, first, rest)} == {(PROMPT + NEW,) * 3}


def test_each_graph_gets_only_the_profiles_that_differ_for_it(bundle: Bundle) -> None:
    graphs, found = bundle.variant("fp32").graphs, ranges(bundle)
    assert len(graph_profiles("vision", graphs["vision"], found)) == 2
    decoder = graph_profiles("language_decoder", graphs["language_decoder"], found)
    assert len(decoder) == 4
    assert [each["input_ids"].max for each in decoder] == [[1, 1], [8, 1], [1, PROMPT], [8, PROMPT - TOKENS]]
    assert decoder[2]["image_embeds"].max == [1, TOKENS, 8]
    assert {tuple(each["past_key.0"].max[1:3]) for each in decoder} == {(2, PROMPT + NEW)}


@pytest.mark.parametrize(("batch", "count"), [((1,), 2), ((8,), 3), ((1, 8), 4)])
def test_the_picture_is_read_by_one_row_whatever_the_batches(
    bundle: Bundle, batch: tuple[int, ...], count: int
) -> None:
    found = ranges(bundle, batch=batch)
    assert len(found) == count
    assert sum(each["batch"] == (1, 1, 1) and each["length"][2] == PROMPT for each in found) == 1


def test_without_the_tokenizer_there_is_room_for_a_token_a_byte(bundle: Bundle) -> None:
    graphs = bundle.variant("fp32").graphs
    found = axis_ranges(bundle.manifest, graphs, BuildOptions(target="rtx"))
    assert found[0]["capacity"][0] == TOKENS + len(TEMPLATE) + 8 + WORDS + NEW


def test_prompt_question_and_answer_can_be_bounded(bundle: Bundle) -> None:
    assert ranges(bundle, max_question=5)[2]["length"][2] == PROMPT - WORDS + 5
    assert ranges(bundle, max_new_tokens=40)[0]["capacity"][0] == PROMPT + 40
    shorter = ranges(bundle, max_prompt=10)
    assert (shorter[0]["capacity"][0], shorter[2]["length"], shorter[3]["length"]) == (16, (1, 10, 10), (1, 10, 10))


def test_a_longer_prompt_may_have_several_pictures(bundle: Bundle) -> None:
    found = ranges(bundle, max_prompt=200)
    assert (found[2]["length"], found[2]["slots"]) == ((1, TOKENS + TEMPLATE_TOKENS + 8, 200), (1, TOKENS, 200))


def context(manifest: Manifest, most: int) -> Manifest:
    assert manifest.generation is not None
    generation = msgspec.structs.replace(manifest.generation, max_context=most)
    return msgspec.structs.replace(manifest, generation=generation)


def test_the_models_longest_context_bounds_them(bundle: Bundle) -> None:
    found = ranges(bundle, context(bundle.manifest, 20))
    assert (found[0]["capacity"], found[2]["length"][2]) == ((20, 20, 20), 20 - NEW)
    assert ranges(bundle, context(bundle.manifest, 500))[0]["capacity"][0] == PROMPT + NEW


def image(manifest: Manifest, **changes: Any) -> Manifest:
    assert isinstance(manifest.image, ImageSpec)
    return msgspec.structs.replace(manifest, image=msgspec.structs.replace(manifest.image, **changes))


def test_pictures_of_many_sizes_bring_their_axes(bundle: Bundle) -> None:
    """What the processor cuts a picture into; the language model's share of it is `tokens`."""
    manifest = image(
        bundle.manifest, processor="tiles", tokens=100, axes={"image": (1, 5, 17), "patches": (4, 64, 400)}
    )
    graphs = {
        name: msgspec.structs.replace(graph, outputs=[]) if name == "vision" else graph
        for name, graph in bundle.variant("fp32").graphs.items()
    }
    found = axis_ranges(manifest, graphs, BuildOptions(target="rtx"), template=4)
    assert {(each["image"], each["patches"]) for each in found} == {((1, 5, 17), (4, 64, 400))}
    assert found[2]["slots"] == (1, 100, 100)
    assert found[2]["length"][2] == 100 + 4 + 8 + WORDS
    smaller = axis_ranges(manifest, graphs, BuildOptions(target="rtx", max_prompt=40, axes={"patches": (4, 8, 16)}))
    assert (smaller[2]["slots"], smaller[0]["patches"]) == ((1, 40, 40), (4, 8, 16))


@pytest.mark.parametrize(
    ("changes", "most", "message"),
    [
        ({"max_prompt": TOKENS}, None, rf"--max-prompt {TOKENS}: a picture alone takes {TOKENS} tokens"),
        ({"max_prompt": 30}, 32, r"prompt of 30 tokens .*answer of 6 .* the 32 that the model takes"),
        ({"max_new_tokens": 32}, 32, r"answer of 32 \(--max-new-tokens\) are more than the 32"),
        ({"max_question": 13}, None, "at most 12 tokens"),
        ({"max_prompt": -1}, None, "--max-prompt -1: it is a count of tokens"),
        ({"max_new_tokens": 15}, 16, r"prompt of \d+ tokens and an answer of 15 \(--max-new-tokens\)"),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    bundle: Bundle, changes: dict[str, Any], most: int | None, message: str
) -> None:
    manifest = bundle.manifest if most is None else context(bundle.manifest, most)
    with pytest.raises(InputError, match=message):
        ranges(bundle, manifest, **changes)


@pytest.mark.parametrize(("most", "refused"), [(1, True), (3, True), (4, True), (5, False)])
def test_a_prompt_has_room_for_the_smallest_of_pictures_of_many_sizes(bundle: Bundle, most: int, refused: bool) -> None:
    """The toy's 100 tokens are of 25 tiles at most, so one tile takes 4."""
    manifest = image(bundle.manifest, processor="tiles", tokens=100, axes={"tiles": (1, 5, 25)})
    graphs = {
        name: msgspec.structs.replace(graph, outputs=[]) if name == "vision" else graph
        for name, graph in bundle.variant("fp32").graphs.items()
    }
    options = BuildOptions(target="rtx", max_prompt=most)
    if not refused:
        assert axis_ranges(manifest, graphs, options)
        return
    with pytest.raises(InputError, match=rf"--max-prompt {most}: a picture alone takes at least 4 tokens"):
        axis_ranges(manifest, graphs, options)


def test_the_smallest_picture_of_tiles_is_told_by_its_names(bundle: Bundle) -> None:
    tokens = TileTokens(
        picture=7, places=4, opening=(1,), whole=(2,), tiles=(((3,), (4,)),), row_end=(5,), grid_end=(6,)
    )
    settings = TileSettings(tile=8, longest_side=16, split=True, tokens=tokens)
    manifest = image(
        bundle.manifest, processor="idefics3", settings=msgspec.to_builtins(settings), axes={"tiles": (1, 2, 3)}
    )
    assert least_picture(manifest, 21) == 4 + 3, "the whole picture with what opens and closes it"


def test_no_option_is_named_that_was_not_given(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"an answer of 32 \(--max-new-tokens\) are more than the 32") as caught:
        ranges(bundle, context(bundle.manifest, 32), max_new_tokens=32)
    assert "(--max-prompt)" not in str(caught.value)


def test_a_picture_of_unknown_share_is_asked_for(bundle: Bundle) -> None:
    graphs = {"language_decoder": bundle.variant("fp32").graphs["language_decoder"]}
    with pytest.raises(InputError, match=r"image\.tokens"):
        axis_ranges(image(bundle.manifest, tokens=None), graphs, BuildOptions(target="rtx"))


class TestEncoderDecoder:
    """The toy of QA-ViT, and what becomes of it where its encoder does not read the question."""

    @pytest.fixture(scope="class")
    @classmethod
    def toy(cls, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
        return Bundle.open(write_toy(tmp_path_factory.mktemp("profiles") / "toy", fused=False))

    def test_the_question_is_among_the_keys(self, toy: Bundle) -> None:
        found = ranges(toy)
        assert found[0]["keys"] == (TOKENS + 1, TOKENS + 12, TOKENS + WORDS)
        assert found[0]["capacity"] == (NEW, NEW, NEW)

    def test_a_prompt_is_among_the_slots_instead_and_read_at_once(self, tmp_path: Path) -> None:
        toy = Bundle.open(write_captioner(tmp_path / "toy"))
        graphs = toy.variant("fp32").graphs
        found = axis_ranges(toy.manifest, graphs, BuildOptions(target="rtx"))
        assert "keys" not in found[0]
        assert found[0]["capacity"] == (NEW + WORDS,) * 3
        assert [(each["batch"], each["length"]) for each in found] == [
            ((1, 1, 1), (1, 1, 1)),
            ((1, 4, 8), (1, 1, 1)),
            ((1, 4, 8), (1, 12, WORDS + 1)),  # the start token is read with it
        ]
        single = axis_ranges(toy.manifest, graphs, BuildOptions(target="rtx", batch=(1,)))
        assert [(each["batch"], each["length"][2]) for each in single] == [((1, 1, 1), 1), ((1, 1, 1), WORDS + 1)]

    def test_prompts_are_not_bounded_where_there_are_none(self, toy: Bundle) -> None:
        with pytest.raises(InputError, match="--max-prompt is for models whose decoder reads"):
            ranges(toy, max_prompt=10)

    def test_answers_are_as_long_as_the_model_takes(self, toy: Bundle) -> None:
        manifest = context(toy.manifest, 40)
        assert ranges(toy, manifest, max_new_tokens=40)[0]["capacity"] == (40, 40, 40)
        with pytest.raises(InputError, match=r"An answer of 41 tokens \(--max-new-tokens\) is more than the 40 that"):
            ranges(toy, manifest, max_new_tokens=41)

    def test_answers_are_not_bounded_where_nothing_is_generated(self, tmp_path: Path) -> None:
        toy = Bundle.open(write_classifier(tmp_path / "toy"))
        with pytest.raises(InputError, match="--max-new-tokens 5: this model generates nothing"):
            ranges(toy, max_new_tokens=5)

    @pytest.mark.parametrize("most", [5, 40])
    def test_a_second_reader_of_the_question_has_words_of_its_own(self, toy: Bundle, most: int) -> None:
        """Its tables may end before the language model's do, or go on behind them."""
        assert isinstance(toy.manifest.text, TextSpec)
        other = msgspec.structs.replace(toy.manifest.text, max_tokens=most)
        manifest = msgspec.structs.replace(toy.manifest, texts={"qformer": other, "fusion": other})
        graph = toy.variant("fp32").graphs["language_encoder"]
        ids = [TensorSpec(name=f"qformer_{each}", dtype="int64", shape=["batch", "words"]) for each in MASKED]
        states = TensorSpec(name="question_states", dtype="float32", shape=["batch", "words", 8])
        readers = {
            "qformer": msgspec.structs.replace(graph, inputs=ids),
            "question_encoder": msgspec.structs.replace(graph, outputs=[states]),
            "vision_fusion": msgspec.structs.replace(graph, inputs=[states]),
        }

        def longest(name: str, spec: GraphSpec, **changes: Any) -> set[int]:
            found = graph_profiles(name, spec, ranges(toy, manifest, **changes))
            return {shape.max[1] for each in found for tensor, shape in each.items() if tensor != "image_embeds"}

        assert longest("language_encoder", graph) == {WORDS}
        for name, reader in readers.items():
            assert longest(name, reader) == {most}
            assert longest(name, reader, max_question=3) == {3}
            assert longest(name, reader, axes={"words": (1, 4, 7)}) == {7}

    def test_a_template_is_read_with_the_question(self, toy: Bundle) -> None:
        assert isinstance(toy.manifest.text, TextSpec)
        templated = msgspec.structs.replace(toy.manifest.text, template="answer {question} now")
        found = ranges(toy, msgspec.structs.replace(toy.manifest, text=templated))
        around = TEMPLATE_TOKENS + 8
        assert found[0]["words"] == (1, 12 + around, WORDS + around)
        assert found[0]["keys"] == (TOKENS + 1, TOKENS + 12 + around, TOKENS + WORDS + around)

    def test_questions_of_one_length_have_no_bound(self, tmp_path: Path) -> None:
        toy = Bundle.open(write_classifier(tmp_path / "toy"))
        with pytest.raises(InputError, match="--max-question 5: this model's graphs take no questions of different"):
            ranges(toy, max_question=5)
        assert ranges(toy)


def test_an_axis_that_nobody_knows_is_asked_for(bundle: Bundle) -> None:
    graph: GraphSpec = msgspec.structs.replace(
        bundle.variant("fp32").graphs["vision"],
        inputs=[TensorSpec(name="audio", dtype="float32", shape=["seconds", 3])],
    )
    with pytest.raises(InputError, match="--axis seconds=LEAST:USUAL:MOST"):
        graph_profiles("vision", graph, ranges(bundle))


def test_one_profile_may_have_to_do_for_all() -> None:
    def profile(least: int, usual: int, most: int) -> Profile:
        return {"x": ShapeRange(min=[least, 3], opt=[usual, 3], max=[most, 3])}

    assert widest([profile(1, 1, 1), profile(2, 4, 8)]) == profile(1, 4, 8)
