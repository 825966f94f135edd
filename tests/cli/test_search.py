"""`edgevqa search`, and `edgevqa ask` on the same bundles, with a toy dual encoder."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.embedding_store import EmbeddingStore
from edgevqa.runtime.errors import ConfigError, ImageError
from edgevqa.runtime.manifest import MatchingSpec
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.search import search
from edgevqa.runtime.similarity import cosines
from tests.runtime.pipelines.matching_toy import write_matching

Invoke = Callable[..., tuple[int, str, str]]
DUAL: dict[str, dict[str, Any]] = {"image_encoder": {}, "text_encoder": {}}
SOFTMAX = MatchingSpec(scale=20.0, bias=0.0, activation="softmax")
SIGMOID = MatchingSpec(scale=6.0, bias=-3.0, activation="sigmoid")
TEXT, OTHER = "a red ball", "how many dogs"
NAMES = ["beach.png", "below/deeper/street.jpg", "below/house.webp", "dog.PNG", "zebra.bmp"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_matching(tmp_path_factory.mktemp("clip") / "toy", DUAL, SOFTMAX)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_matching(tmp_path_factory.mktemp("siglip") / "toy", DUAL, SIGMOID)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, two of them further down, beside files that are none or hidden."""
    random = np.random.default_rng(3)
    for number, name in enumerate(NAMES):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12 + number, 15, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    shutil.copy(tmp_path / "pictures" / "beach.png", tmp_path / "pictures" / ".hidden.png")
    return tmp_path / "pictures"


def expected(bundle: Path, folder: Path, text: str) -> list[tuple[str, float]]:
    """The pictures with their cosines, the best first."""
    with Pipeline.load(bundle) as pipeline:
        images = pipeline.embed_images([folder / name for name in NAMES])
        similarity = cosines(images, pipeline.embed_texts([text]))[:, 0]
    return sorted(zip(NAMES, similarity.tolist(), strict=True), key=lambda pair: -pair[1])


def found(invoke: Invoke, *args: object) -> Any:
    code, out, _ = invoke("search", *args, "--json")
    assert code == 0
    return json.loads(out)


def test_the_best_pictures_come_first(invoke: Invoke, clip: Path, folder: Path) -> None:
    code, out, err = invoke("search", clip, folder, TEXT, "--top", "3")
    best = expected(clip, folder, TEXT)[:3]
    assert code == 0
    assert out.splitlines() == [f"{name}  (cosine {cosine:.3f})" for name, cosine in best]
    assert "note" not in err


def test_several_texts_are_named(invoke: Invoke, clip: Path, folder: Path) -> None:
    out = invoke("search", clip, folder, TEXT, OTHER, "--top", "1")[1]
    (first, _), (second, _) = expected(clip, folder, TEXT)[0], expected(clip, folder, OTHER)[0]
    lines = [line.partition("  (")[0] for line in out.splitlines()]
    assert lines == [f"{TEXT}:", f"  {first}", f"{OTHER}:", f"  {second}"]


def test_json_has_everything(invoke: Invoke, siglip: Path, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no picture")
    document = found(invoke, siglip, folder, TEXT)
    assert set(document) == {"results", "pictures", "remembered", "unreadable", "timing_ms"}
    assert (document["pictures"], document["remembered"]) == (5, 0)
    (result,) = document["results"]
    best = expected(siglip, folder, TEXT)
    assert result["text"] == TEXT
    assert [hit["image"] for hit in result["hits"]] == [name for name, _ in best]
    for hit, (_, cosine) in zip(result["hits"], best, strict=True):
        assert hit["cosine"] == pytest.approx(cosine, abs=1e-6)
        assert hit["probability"] == pytest.approx(1 / (1 + np.exp(3 - 6 * cosine)), abs=1e-6)
    assert [each["image"] for each in document["unreadable"]] == ["broken.jpg"]
    assert set(document["timing_ms"]) == {"load_bundle", "search"}


def test_a_model_with_probabilities_shows_them(invoke: Invoke, siglip: Path, folder: Path) -> None:
    name, cosine = expected(siglip, folder, TEXT)[0]
    line = invoke("search", siglip, folder, TEXT, "--top", "1")[1].strip()
    assert line == f"{name}  (probability {1 / (1 + np.exp(3 - 6 * cosine)):.3f}, cosine {cosine:.3f})"


def test_what_was_seen_is_remembered_by_content(invoke: Invoke, clip: Path, folder: Path) -> None:
    first = found(invoke, clip, folder, TEXT)
    (folder / "dog.PNG").rename(folder / "renamed.png")
    Image.new("RGB", (9, 9), (250, 3, 3)).save(folder / "zebra.bmp")
    shutil.copy(folder / "beach.png", folder / "twin.png")
    second = found(invoke, clip, folder, OTHER, "--top", "9")
    assert (first["remembered"], second["remembered"], second["pictures"]) == (0, 5, 6)
    cosines_of = {hit["image"]: hit["cosine"] for hit in second["results"][0]["hits"]}
    assert cosines_of["twin.png"] == cosines_of["beach.png"]
    assert cosines_of["beach.png"] == pytest.approx(
        dict(expected_of(clip, folder, ["beach.png"]))["beach.png"], abs=1e-6
    )


def expected_of(bundle: Path, folder: Path, names: list[str]) -> list[tuple[str, float]]:
    with Pipeline.load(bundle) as pipeline:
        images = pipeline.embed_images([folder / name for name in names])
        return list(zip(names, cosines(images, pipeline.embed_texts([OTHER]))[:, 0].tolist(), strict=True))


def test_every_model_remembers_for_itself(
    invoke: Invoke, clip: Path, folder: Path, tmp_path: Path, cache: Path
) -> None:
    found(invoke, clip, folder, TEXT)
    other = write_matching(tmp_path / "other", {"image_encoder": {"vectors": True}, "text_encoder": {}}, SOFTMAX)
    assert found(invoke, other, folder, TEXT)["remembered"] == 0
    assert found(invoke, other, folder, TEXT)["remembered"] == 5
    assert len(list((cache / "embeddings").iterdir())) == 2
    bundle = Bundle.open(other)
    assert bundle.manifest.image is not None
    image = msgspec.structs.replace(bundle.manifest.image, mean=[0.4, 0.5, 0.6])
    with BundleWriter.extend(bundle) as writer:
        writer.finish(msgspec.structs.replace(bundle.manifest, image=image))
    assert found(invoke, other, folder, TEXT)["remembered"] == 0


def test_a_spoiled_or_missing_cache_does_no_harm(
    invoke: Invoke, clip: Path, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(invoke, clip, folder, TEXT)["results"]
    (store,) = (cache / "embeddings").iterdir()
    for content in (b"", b"spoiled", store.read_bytes()[:200]):
        store.write_bytes(content)
        document = found(invoke, clip, folder, TEXT)
        assert (document["remembered"], document["results"]) == (0, whole)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGEVQA_CACHE_DIR", str(tmp_path / "file"))
    assert found(invoke, clip, folder, TEXT)["results"] == whole


def test_an_interrupted_search_keeps_what_it_saw(
    invoke: Invoke, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Pipeline.embed_images
    calls: list[int] = []

    def interrupted(self: Pipeline, images: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(self, images)

    with Pipeline.load(clip, max_batch=2) as pipeline, monkeypatch.context() as patch:
        patch.setattr(Pipeline, "embed_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(pipeline, folder, [TEXT])
    assert found(invoke, clip, folder, TEXT)["remembered"] == 2


def test_files_that_cannot_be_read_are_noted_and_passed_over(invoke: Invoke, clip: Path, folder: Path) -> None:
    best = [name for name, _ in expected(clip, folder, TEXT)]
    data = (folder / "beach.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.gif").write_bytes(b"")
    Image.new("RGB", (30_000, 1)).save(folder / "thin.png")  # it is decoded, and read as well
    (folder / "loop.jpg").symlink_to(folder / "nowhere.jpg")
    code, out, err = invoke("search", clip, folder, TEXT)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "thin.png" not in line] == [
        name for name in best if name in out
    ]
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert notes[0].startswith("note: cut.png was passed over: it")
    assert notes[1].startswith("note: empty.gif was passed over: there are 0 bytes in it")


def test_one_that_cannot_be_prepared_does_not_take_others_with_it(
    clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(rgb: Any, spec: Any) -> Any:
        if rgb.shape[0] == 14:
            raise ImageError("A picture is too thin.")
        return prepare(rgb, spec)

    monkeypatch.setattr("edgevqa.runtime.pipelines.matching.prepare", picky)
    with Pipeline.load(clip) as pipeline:
        result = search(pipeline, folder, [TEXT], top=9)
    assert result.pictures == 4
    assert [(each.image, each.error) for each in result.unreadable] == [("below/house.webp", "A picture is too thin.")]


@pytest.mark.parametrize(
    ("where", "args", "message"),
    [
        ("pictures/nowhere", (TEXT,), "nowhere does not exist. Check the path."),
        ("pictures/notes.txt", (TEXT,), "is a file; expected a folder of pictures"),
        ("nothing", (TEXT,), "has no picture; looked for .bmp, .gif,"),
        ("broken", (TEXT,), "None of the 1 pictures in"),
        ("pictures", (" ",), "A text to search for is empty."),
        ("pictures", (TEXT, "--top", "0"), "top is 0; expected a whole number of at least 1."),
        ("pictures", (TEXT, "--precision", "int8"), "has no variant 'int8'"),
        ("pictures", (), "Missing argument"),
    ],
)
def test_mistakes_are_2(
    invoke: Invoke, clip: Path, folder: Path, where: str, args: tuple[str, ...], message: str
) -> None:
    (folder.parent / "nothing").mkdir()
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "a.png").write_bytes(b"no picture")
    code, out, err = invoke("search", clip, folder.parent / where, *args)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_text_that_the_model_does_not_read_whole_is_told(invoke: Invoke, clip: Path, folder: Path) -> None:
    long = " ".join([TEXT] * 200)
    code, out, err = invoke("search", clip, folder, TEXT, long, f"{TEXT} xyzzy", "--json")
    assert code == 0
    assert "note: the end of a text of 2,199 characters was cut; the model takes no more.\n" in err
    assert f"note: the model does not know 1 of the tokens of '{TEXT} xyzzy'.\n" in err
    assert err.count("note:") == 2
    told = [(each["truncated_text"], each["unknown_tokens"]) for each in json.loads(out)["results"]]
    assert told == [(False, 0), (True, 0), (False, 1)]


def test_a_model_without_embeddings_is_2(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_matching(tmp_path / "matcher", {"vision": {}, "matcher": {}}, None)
    with Pipeline.load(bundle) as pipeline, pytest.raises(ConfigError, match="has no embeddings"):
        search(pipeline, folder, [TEXT])
    monkeypatch.setattr(Pipeline, "from_bundle", None)  # said before anything is measured or loaded
    code, out, err = invoke("search", bundle, folder, TEXT)
    assert (code, out) == (2, "")
    assert "has no embeddings of pictures and texts" in err


def test_the_store_forgets_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "store.npz"
    keys = [bytes([number]) * 32 for number in range(5)]
    for number, key in enumerate(keys):
        store = EmbeddingStore(path, most_bytes=3 * (32 + 16))
        store.add(key, np.full(4, number, dtype=np.float32))
        store.save()
    last = EmbeddingStore(path)
    assert [key in last for key in keys] == [False, False, True, True, True]
    assert last[keys[3]].tolist() == [3.0] * 4
    assert [file.name for file in tmp_path.iterdir()] == ["store.npz"]


def test_asking_ranks_choices_and_compares_texts(
    invoke: Invoke, clip: Path, siglip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = folder / "beach.png"
    with Pipeline.load(clip) as pipeline:
        ranked = pipeline.answer(picture, "", choices=[TEXT, OTHER])
        compared = pipeline.answer(picture, TEXT)
    code, out, err = invoke("ask", clip, picture, "--choices", f"{TEXT},{OTHER}")
    shares = ", ".join(f"{text} {share:.3f}" for text, share in (ranked.scores or {}).items())
    assert (code, out, err) == (0, f"{ranked.text}  ({shares})\n", "")
    assert invoke("ask", clip, picture, TEXT)[1].startswith(f"{compared.text}  (confidence ")
    assert invoke("ask", siglip, picture, TEXT)[1].partition("  (yes ")[0] in ("yes", "no")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXT}\n"))
    assert invoke("ask", clip, picture)[1].startswith(compared.text)
    code, _, err = invoke("ask", clip, picture, " ")
    assert code == 2
    assert "Give a text that is compared with the picture, or choices." in err
