"""Optimization profiles from the manifest's axes: which shapes each engine takes, and is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgevqa.export.engine.options import BuildOptions
from edgevqa.runtime.axes import (
    USUAL_QUESTION,
    Range,
    encoder_keys,
    own_axes,
    picture_tokens,
    question_words,
    reads_prompts,
    words_by_reader,
)
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import InputError
from edgevqa.runtime.manifest import GraphSpec, Manifest, TensorSpec
from edgevqa.runtime.preprocessing.idefics3 import expansion, settings_of
from edgevqa.runtime.text import PLAIN

Axes = Mapping[str, Range]
_TOKEN: Axes = {"length": (1, 1, 1), "slots": (1, 1, 1)}
_MARGIN = 8  # tokens by which a template may grow with a question in it


def axis_ranges(
    manifest: Manifest, graphs: Mapping[str, GraphSpec], options: BuildOptions, *, template: int | None = None
) -> list[dict[str, Range]]:
    """Least, usual and most of every axis, one dictionary a profile: one row first, then the batches.

    Decoders that read prompts in chunks (the axis `length`) have these two for single tokens, then one for the part of a
    prompt with the picture, where it is a part of it, and one for batches of questions. `template` is the number of tokens
    around picture and question; where it is None, room is made for the most that there can be. The cache's `capacity` has one
    size: its slots are written in place. Tokenizers beside the language model's have words of their own (`own_axes`).
    Further axes are those of `manifest.image.axes` and of the options. Raises `InputError` where an option is beyond what
    the model takes.
    """
    words = _words(manifest, graphs, options)
    prompt = _prompt(manifest, graphs, options, words, template)
    if not prompt.picture:  # an encoder reads the template with the question
        around = _around(manifest, template)
        words = words[0], words[1] + around, words[2] + around
    others = {} if "words" in options.axes else words_by_reader(manifest, options.max_question)
    shared: dict[str, Range] = {"words": words, **others}
    keys = encoder_keys(manifest, graphs, words)
    if keys is not None:
        shared["keys"] = keys
    slots = prompt.most + prompt.new_tokens
    shared["capacity"] = (slots, slots, slots)
    given = {**({} if manifest.image is None else manifest.image.axes), **options.axes}
    profiles: list[dict[str, Range]] = []
    sizes = sorted(set(options.batch))
    one, many = _rows(1, 1), _rows(sizes[len(sizes) // 2], sizes[-1])
    if 1 in sizes:
        profiles.append({**shared, **_TOKEN, **one, **given})
    if sizes[-1] > 1:
        profiles.append({**shared, **_TOKEN, **many, **given})
    if prompt.picture:
        first: Axes = {"length": (1, prompt.first, prompt.most), "slots": (1, prompt.picture, prompt.slots)}
        profiles.append({**shared, **one, **first, **given})
    if prompt.rest and (sizes[-1] > 1 or not prompt.picture):
        rest: Axes = {"length": (1, min(USUAL_QUESTION, prompt.rest), prompt.rest)}
        profiles.append({**shared, **_TOKEN, **many, **rest, **given})
    return profiles


class _Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a decoder reads before it answers: in all, usually up to the picture's end, and at most after it.

    `picture` are the most that a picture takes, and `slots` all pictures; 0 where no picture stands in the prompt, and `rest`
    is 0 as well where the decoder reads single tokens alone.
    """

    most: int
    new_tokens: int
    first: int = 0
    rest: int = 0
    picture: int = 0
    slots: int = 0


def _prompt(
    manifest: Manifest,
    graphs: Mapping[str, GraphSpec],
    options: BuildOptions,
    words: Range,
    template: int | None,
) -> _Prompt:
    generation = manifest.generation
    if options.max_new_tokens and generation is None:
        raise InputError(
            f"--max-new-tokens {options.max_new_tokens}: this model generates nothing, so there is no answer to bound. Leave "
            "the option out."
        )
    new_tokens = options.max_new_tokens or (generation.max_new_tokens if generation else 1)
    if not any("slots" in tensor.shape for graph in graphs.values() for tensor in graph.inputs):
        if options.max_prompt:
            raise InputError(
                "--max-prompt is for models whose decoder reads pictures and prompts; this one's does not."
            )
        begun = words[2] if reads_prompts(graphs) else 0
        if options.max_new_tokens:
            _refuse_longer(manifest, options, begun, new_tokens)
        return _Prompt(most=begun, new_tokens=new_tokens, rest=begun and begun + 1)  # the start token is read with it
    picture = picture_tokens(manifest, graphs)
    if picture is None:
        raise InputError(
            "The manifest tells no 'image.tokens', the most that a picture takes. Export the bundle again."
        )
    around = _template_tokens(manifest) if template is None else template + _MARGIN
    most = options.max_prompt or picture + around + words[2]
    least = least_picture(manifest, picture)
    if most <= least:
        some = "" if least == picture else "at least "
        raise InputError(f"--max-prompt {most}: a picture alone takes {some}{least} tokens of a prompt.")
    longest = generation.max_context if generation else None
    if longest is not None and most + new_tokens > longest:
        if options.max_prompt or longest - new_tokens <= least:
            _refuse_longer(manifest, options, most, new_tokens)
        most = longest - new_tokens
    picture = min(picture, most)
    slots = most if options.max_prompt else picture  # a longer prompt may have several pictures
    rest = min(around + words[2], most)
    return _Prompt(
        most=most, new_tokens=new_tokens, first=min(picture + around, most), rest=rest, picture=picture, slots=slots
    )


def _refuse_longer(manifest: Manifest, options: BuildOptions, prompt: int, new_tokens: int) -> None:
    """Raise `InputError` where the model does not take a prompt and an answer of so many tokens together."""
    longest = manifest.generation.max_context if manifest.generation else None
    if longest is None or prompt + new_tokens <= longest:
        return
    given = " (--max-prompt)" if options.max_prompt else ""
    asked = " (--max-new-tokens)" if options.max_new_tokens else ""
    begun = f"An answer of {new_tokens} tokens{asked} is"
    if prompt:
        begun = f"A prompt of {prompt} tokens{given} and an answer of {new_tokens}{asked} are"
    less = f"--max-new-tokens {longest - prompt}" if prompt < longest else "a smaller --max-prompt or --max-new-tokens"
    raise InputError(
        f"{begun} more than the {longest} that the model takes{' together' if prompt else ''}. Give {less}."
    )


def _around(manifest: Manifest, template: int | None) -> int:
    """Tokens around a question for which a tokenizer's limit leaves no room: none, where there is no template."""
    if manifest.text is None or manifest.text.template == PLAIN:
        return 0
    return _template_tokens(manifest) if template is None else template + _MARGIN


def _template_tokens(manifest: Manifest) -> int:
    """The most tokens that there can be around picture and question: one for every byte."""
    text = "" if manifest.text is None else manifest.text.template
    return len(text.encode()) + _MARGIN


def _rows(usual: int, most: int) -> dict[str, Range]:
    rows = (1, usual, most)
    return {"batch": rows, "image": rows}


def graph_profiles(name: str, graph: GraphSpec, ranges: Sequence[Mapping[str, Range]]) -> list[Profile]:
    """One graph's profiles, each once. Raises `InputError` naming an axis without a range."""
    found: list[Profile] = []
    for axes in (own_axes(graph, each) for each in ranges):
        profile = {tensor.name: _shape_range(name, tensor, axes) for tensor in graph.inputs}
        if profile not in found:
            found.append(profile)
    return found


def _shape_range(graph: str, tensor: TensorSpec, axes: Mapping[str, Range]) -> ShapeRange:
    sides: list[Range] = []
    for axis in tensor.shape:
        if isinstance(axis, int):
            sides.append((axis, axis, axis))
        elif axis in axes:
            sides.append(axes[axis])
        else:
            raise InputError(
                f"Graph '{graph}' has the axis '{axis}' ({tensor.name}), whose sizes are not known. "
                f"Give them: --axis {axis}=LEAST:USUAL:MOST"
            )
    return ShapeRange(min=[a for a, _, _ in sides], opt=[b for _, b, _ in sides], max=[c for _, _, c in sides])


def widest(profiles: Sequence[Profile]) -> Profile:
    """One profile that holds all of them, tuned for what the last is tuned for."""
    joined: Profile = {}
    for name, last in profiles[-1].items():
        sides = [profile[name] for profile in profiles]
        least = [min(sizes) for sizes in zip(*(side.min for side in sides), strict=True)]
        most = [max(sizes) for sizes in zip(*(side.max for side in sides), strict=True)]
        joined[name] = ShapeRange(min=least, opt=last.opt, max=most)
    return joined


def _words(manifest: Manifest, graphs: Mapping[str, GraphSpec], options: BuildOptions) -> Range:
    """Tokens of a question that the language model reads, or of what else the graphs read where it reads none."""
    asked = options.max_question
    read = manifest if manifest.text is None else msgspec.structs.replace(manifest, texts={})
    if asked and not _reads_words(graphs):
        raise InputError(
            f"--max-question {asked}: this model's graphs take no questions of different lengths, so there is none to bound. "
            "Leave the option out."
        )
    most = question_words(read)[2]
    if asked > most:
        raise InputError(f"--max-question {asked}: the model takes questions of at most {most} tokens.")
    return question_words(read, asked)


def _reads_words(graphs: Mapping[str, GraphSpec]) -> bool:
    axes = {axis for graph in graphs.values() for tensor in graph.inputs for axis in tensor.shape}
    return bool(axes & {"words", "keys", "length"})


def least_picture(manifest: Manifest, most: int) -> int:
    """Of a picture that takes at most `most`: all of them where pictures have one size, else those of the smallest one.

    Pictures of several sizes have tokens for each tile or patch, so those of the fewest are a share of the most.
    """
    image = manifest.image
    if image is None:
        return 0
    if image.processor == "fixed" or not image.axes:
        return most if image.processor == "fixed" else 0
    if image.processor == "idefics3":
        return len(expansion(0, 0, settings_of(image).tokens))
    return min(most * least // highest for least, _, highest in image.axes.values())
