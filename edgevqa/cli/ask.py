"""`edgevqa ask`: questions about a picture, answered by a bundle; or its label or caption, where no words are needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer

from edgevqa.cli import shared
from edgevqa.cli.ask_options import needs_no_words, note_ignored, refuse_options
from edgevqa.cli.loading import load_pipeline
from edgevqa.cli.output import note, print_json, print_table, print_text
from edgevqa.runtime.errors import ConfigError, QuestionError
from edgevqa.runtime.images import load_image
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines.base import Answer, AnswerOptions
from edgevqa.runtime.pipelines.pictures import Images

PROMPT = "question> "


class _Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A question read from standard input that could not be asked, and why."""

    question: str
    error: str


def ask(
    bundle: shared.BundleArgument,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture file.")],
    questions: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="Without one, they are read line by line, if the model needs words."),
    ] = None,
    more_images: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="IMAGE", help="A further picture that the questions are about; may be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write answers and timing as JSON.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Write each answer as it is generated.")] = False,
    timing: Annotated[bool, typer.Option("--timing", help="Show the milliseconds of every stage.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest answer in tokens. Default: the bundle's.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(metavar="N", help="1 is greedy. Default: the bundle's.")] = None,
    choices: Annotated[
        str | None, typer.Option(metavar="A,B", help="Answer with one of these, and score each.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Of a classifier: how many labels to score. Default: 5.")
    ] = None,
    precision: shared.PrecisionOption = None,
    backend: shared.FastestOption = "auto",
    threads: shared.ThreadsOption = 0,
    no_verify: shared.NoVerifyOption = False,
) -> None:
    """Answer questions about a picture.

    Classifiers of pictures and captioning models need no words: they answer at once. Otherwise, without a question, they are
    read from standard input, one a line, until a blank line or the end.

    Example:
      edgevqa ask bundle photo.jpg "what color is the ball?" "how many dogs are there?"
      edgevqa ask bundle photo.jpg "is there a dog?" --choices yes,no --json
      edgevqa ask bundle before.jpg --image after.jpg "what has changed?"
      edgevqa ask classifier.bundle photo.jpg --top-k 3
      edgevqa ask captioner.bundle photo.jpg
      edgevqa ask captioner.bundle photo.jpg "a photo of"
      edgevqa ask clip.bundle photo.jpg --choices "a cat,a dog,a car"
    """
    if stream and as_json:
        raise ConfigError("--stream writes text as it comes, --json one document at the end: give one of them.")
    start = time.perf_counter()
    picture: Images = [load_image(each) for each in (image, *(more_images or []))]
    image_ms = (time.perf_counter() - start) * 1e3
    settings: dict[str, Any] = {"precision": precision, "backend": backend, "threads": threads, "check": not no_verify}
    start = time.perf_counter()
    options: AnswerOptions = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "top_k": top_k}
    if choices is not None:
        options["choices"] = choices.split(",")
    pipeline = load_pipeline(bundle, lambda manifest: refuse_options(manifest, options), **settings)
    bundle_ms = (time.perf_counter() - start) * 1e3
    with pipeline:
        note_ignored(pipeline, questions or [], options)
        given = questions or ([""] if needs_no_words(pipeline.manifest, options) else [])
        asked = _answer_all(pipeline, picture, given, options, stream=stream, quiet=as_json)
        spent = {"load_image": image_ms, "load_bundle": bundle_ms, **_stages(pipeline)}
    answers = [answer for answer in asked if isinstance(answer, Answer)]
    spent["total"] = image_ms + bundle_ms + sum({id(a.timing_ms): a.timing_ms["total"] for a in answers}.values())
    if as_json:
        print_json({"answers": [_as_json(answer) for answer in asked], "timing_ms": spent})
    elif timing:
        print_table(("stage", ">ms"), [(stage, f"{value:.1f}") for stage, value in spent.items()])
    if len(answers) < len(asked):
        raise typer.Exit(QuestionError.exit_code)


def _stages(pipeline: Pipeline) -> dict[str, float]:
    return {stage: value for stage, value in pipeline.statistics.stage_ms.items() if stage != "load_image"}


def _answer_all(
    pipeline: Pipeline, picture: Images, questions: list[str], options: AnswerOptions, *, stream: bool, quiet: bool
) -> list[Answer | _Refused]:
    """Answer the questions given, or those read from standard input; write each unless `quiet`."""
    if not questions:
        return _answer_input(pipeline, picture, options, stream=stream, quiet=quiet)
    named = len(questions) > 1
    if stream:
        return [_stream_one(pipeline, picture, question, options, named=named) for question in questions]
    found = pipeline.answer(picture, questions, **options)
    for answer in found:
        _print_answer(answer, named=named, quiet=quiet)
    return [*found]


def _answer_input(
    pipeline: Pipeline, picture: Images, options: AnswerOptions, *, stream: bool, quiet: bool
) -> list[Answer | _Refused]:
    """Answer the lines of standard input. At a terminal a wrong question is noted, and with `quiet` it is returned.

    Raises `QuestionError` where no question comes, and nobody at a terminal chose so.
    """
    asked: list[Answer | _Refused] = []
    for question in _read_questions():
        try:
            if stream:
                asked.append(_stream_one(pipeline, picture, question, options, named=False))
                continue
            answer = pipeline.answer(picture, question, **options)
            _print_answer(answer, named=False, quiet=quiet)
            asked.append(answer)
        except QuestionError as error:
            if not quiet and not sys.stdin.isatty():
                raise
            note(f"error: {error}")
            if quiet:
                asked.append(_Refused(question=question, error=str(error)))
    if not asked and not sys.stdin.isatty():
        instead = ", or --choices A,B" if pipeline.manifest.pipeline == "matching" else ""
        raise QuestionError(
            "No question was given, and none came from standard input. Give one after the picture, in quotes"
            f"{instead}; or pipe questions in, one a line."
        )
    return asked


def _stream_one(pipeline: Pipeline, picture: Images, question: str, options: AnswerOptions, *, named: bool) -> Answer:
    pieces = pipeline.stream(picture, question, **options)
    sys.stdout.write(f"{question}: " if named else "")
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    answer = pieces.answer
    print_text(_confidence(answer))
    _print_notes(answer)
    return answer


def _read_questions() -> Iterator[str]:
    """Lines of standard input up to a blank one or the end, with a prompt at a terminal."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _print_answer(answer: Answer, *, named: bool, quiet: bool) -> None:
    if not quiet:
        name = f"{answer.question}: " if named else ""
        print_text(f"{name}{answer.text}{_confidence(answer)}")
    _print_notes(answer)


def _confidence(answer: Answer) -> str:
    if answer.scores is None:
        return f"  (confidence {answer.confidence:.3f})"
    between = "; " if any("," in choice for choice in answer.scores) else ", "  # ImageNet's labels list synonyms
    return f"  ({between.join(f'{choice} {score:.3f}' for choice, score in answer.scores.items())})"


def _print_notes(answer: Answer) -> None:
    if answer.truncated_answer:
        note(f"note: the answer was cut after {len(answer.tokens)} tokens, as many as --max-new-tokens allows.")
    if answer.truncated_question:
        note(f"note: the end of a question of {len(answer.question):,} characters was cut; the model takes no more.")
    if answer.unknown_tokens:
        note(f"note: the model does not know {answer.unknown_tokens} of the question's tokens.")


def _as_json(answer: Answer | _Refused) -> dict[str, Any]:
    if isinstance(answer, _Refused):
        return {"question": answer.question, "error": answer.error}
    return {
        "question": answer.question,
        "answer": answer.text,
        "confidence": answer.confidence,
        "log_probability": answer.log_probability,
        "scores": answer.scores,
        "tokens": answer.tokens,
        "truncated_answer": answer.truncated_answer,
        "truncated_question": answer.truncated_question,
        "unknown_tokens": answer.unknown_tokens,
        "timing_ms": answer.timing_ms,
    }
