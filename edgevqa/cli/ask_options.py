"""What the options of `edgevqa ask` mean for a model: refused where they are for others, noted where they have no say."""

from __future__ import annotations

from edgevqa.cli.output import note
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.manifest import Manifest
from edgevqa.runtime.pipeline import Pipeline
from edgevqa.runtime.pipelines import flow_entry
from edgevqa.runtime.pipelines.base import AnswerOptions

_OF_GENERATORS = {"max_new_tokens": "--max-new-tokens", "num_beams": "--num-beams"}


def refuse_options(manifest: Manifest, options: AnswerOptions) -> None:
    """Raise `ConfigError` for a model that gives no answers, and for an option that is for other models."""
    entry = flow_entry(manifest)
    if not entry.answers:
        raise ConfigError(
            f"The model ({manifest.family}) gives arrays, no answers: edgevqa features BUNDLE IMAGE -o features.npz"
        )
    if options.get("top_k") is not None and not manifest.labels:
        raise ConfigError(
            f"--top-k is for models that choose from labels; this one ({manifest.family}) has none. Give --choices A,B,..., "
            "which are all scored."
        )
    given = _given_to_generators(options)
    if given and entry.codec != "text":
        raise ConfigError(
            f"{given[0]} is for models that generate their answers word by word; this one ({manifest.family}) does not. "
            "Leave the option out."
        )


def note_ignored(pipeline: Pipeline, questions: list[str], options: AnswerOptions) -> None:
    """Tell of a question, options and ends of choices that have no say in the answer."""
    manifest, choices = pipeline.manifest, options.get("choices")
    if questions and manifest.text is None:
        note(f"note: the model ({manifest.family}) takes no words: the question has no say in the answer.")
    if choices is None:
        return
    if manifest.pipeline == "matching":
        if questions:
            note("note: with --choices these are the texts compared with the picture: the question has no say.")
        _note_cut(pipeline, list(choices))
    options_given = [*_given_to_generators(options), *(["--top-k"] if options.get("top_k") is not None else [])]
    if options_given:
        verb = "have" if len(options_given) > 1 else "has"
        note(f"note: with --choices every one of them is scored: {' and '.join(options_given)} {verb} no say.")


def needs_no_words(manifest: Manifest, options: AnswerOptions) -> bool:
    """Whether there is an answer without a question. What matches texts to pictures needs one of the two: it or choices."""
    if manifest.pipeline == "matching":
        return options.get("choices") is not None
    return manifest.text is None or not manifest.text.required


def _note_cut(pipeline: Pipeline, choices: list[str]) -> None:
    for choice in filter(str.strip, choices):
        if pipeline.questions.question(choice.strip()).truncated:
            note(f"note: the end of a choice of {len(choice.strip()):,} characters was cut; the model takes no more.")


def _given_to_generators(options: AnswerOptions) -> list[str]:
    return [name for key, name in _OF_GENERATORS.items() if options.get(key) is not None]
