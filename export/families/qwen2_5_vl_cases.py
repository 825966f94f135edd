"""What eager Qwen2.5-VL gives for pictures of several sizes, one or two at once: the cases of its graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from edgevqa.export.components.causal_cases import Prompt, decoder_cases, make_prompt
from edgevqa.export.samples import arrays, questions_by_picture
from edgevqa.export.spec import Case, Loaded, Samples
from edgevqa.runtime.preprocessing.qwen2_vl import Grid, layout, prepare_all, settings_of

WORDS = 7  # of text around a picture


@torch.no_grad()
def qwen_cases(loaded: Loaded) -> Iterator[Case]:
    """Two random pictures in one run, then real ones alone and together; the decoder reads one a row."""
    torch.manual_seed(0)
    spec = loaded.required_image
    settings = settings_of(spec)
    step = settings.merge
    grids = [(5 * step, 3 * step), (2 * step, 4 * step)]
    width = loaded.model.model.visual.patch_embed.proj.weight[0].numel()
    pixels = torch.randn(sum(high * wide for high, wide in grids), width)
    yield from _cases(loaded, pixels, grids, "random")
    rgb, other = (picture for picture, _ in questions_by_picture()[:2])
    for pictures in ([rgb], [rgb, other[: other.shape[0] // 2]]):
        inputs, grids = prepare_all(pictures, spec)
        yield from _cases(loaded, torch.from_numpy(inputs["pixel_values"]), grids, "real")


def _cases(loaded: Loaded, pixels: Tensor, grids: Sequence[Grid], samples: Samples) -> Iterator[Case]:
    model, settings = loaded.model, settings_of(loaded.required_image)
    sizes = torch.tensor([[1, high, wide] for high, wide in grids])
    found = model.model.visual(pixels, grid_thw=sizes)
    states = _unwindowed(found.last_hidden_state, sizes, model.config.vision_config)[None]
    inputs = {name: torch.from_numpy(value) for name, value in layout(grids, settings).items()}
    yield _case("vision", samples, {"pixel_values": pixels, **inputs}, {"image_states": states})
    yield _case("projector", samples, {"image_states": states}, {"image_embeds": found.pooler_output[None]})
    embeds = model.get_image_features(pixels, sizes).pooler_output
    prompt = _prompt(model, embeds, sizes)
    yield from decoder_cases(lambda given: model(**given), model.get_input_embeddings(), prompt, samples)


def _case(graph: str, samples: Samples, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> Case:
    return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))


def _unwindowed(states: Tensor, sizes: Tensor, vision: Any) -> Tensor:
    """The eager model's last states, which lie window by window, in the order of the patches."""
    merge = vision.spatial_merge_size
    index, _ = get_vision_window_index(sizes, merge, vision.window_size, vision.patch_size)
    return states.reshape(len(index), merge**2, -1)[torch.argsort(index)].flatten(0, 1)


def _prompt(model: Any, embeds: Sequence[Tensor], sizes: Tensor) -> Prompt:
    """Two rows of random text around a picture each, the second padded on the left, with the eager model's positions."""
    token = model.config.image_token_id
    embeds, sizes = (list(embeds) * 2)[:2], sizes.repeat(2, 1)[:2]
    slots = [len(each) for each in embeds]
    length = max(slots) + WORDS
    ids = torch.randint(3, token, (2, length))
    mask = torch.ones_like(ids)
    for row, (count, first) in enumerate(zip(slots, (2, 4), strict=True)):
        ids[row, first : first + count] = token
    mask[1, :2] = 0
    positions, _ = model.model.get_rope_index(ids, (ids == token).int(), image_grid_thw=sizes, attention_mask=mask)
    padded = [torch.nn.functional.pad(each, (0, 0, 0, max(slots) - len(each))) for each in embeds]
    return dataclasses.replace(make_prompt(ids, mask, torch.stack(padded), token), position_ids=positions)
