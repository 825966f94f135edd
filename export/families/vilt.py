"""ViLT: one transformer that reads a question and a picture's patches, to answer or to tell how well they fit.

Source: ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (ICML 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor, nn

from edgevqa.export import assets
from edgevqa.export.components.attention import key_bias
from edgevqa.export.families import vilt_cases
from edgevqa.export.pretrained import architecture, label_names, load_pretrained, model_info, source_spec
from edgevqa.export.processors import RESAMPLES, load_image_processor, values
from edgevqa.export.sources import Source
from edgevqa.export.spec import AnswerCase, Case, GraphPlan, Loaded, Plans, Tokenized
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.preprocessing.vilt import PatchSettings

ANSWERING, RANKING = "ViltForQuestionAnswering", "ViltForImageAndTextRetrieval"
LONGEST_SHARE = 1333 / 800  # of the shorter side: what the processor of transformers allows, whatever the size


class Reader(nn.Module):
    """Question and patches to the head's `logits` (batch, labels), or (batch, 1) of the head that ranks.

    The eager model looks its positions up with loops over the batch, draws the order of the patches and fills short rows
    with patches that are masked. Attention does not see an order, so the patches are taken here as they come; the
    positions are means of four rows of the table, whose places and weights (batch, patches, 4) are given.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vilt = model.vilt
        self.head = model.classifier if hasattr(model, "classifier") else model.rank_output
        embeddings = model.vilt.embeddings
        self.positions = nn.Parameter(embeddings.position_embeddings[0].detach().clone())  # (1 + table, width)
        first = embeddings.cls_token[0] + embeddings.position_embeddings[0, :1]
        self.first = nn.Parameter((first + embeddings.token_type_embeddings.weight[1]).detach()[None])  # (1, 1, width)
        self.kinds = nn.Parameter(embeddings.token_type_embeddings.weight.detach().clone())  # text, picture

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        patch_mask: Tensor,
        position_index: Tensor,
        position_weight: Tensor,
    ) -> Tensor:
        text = self.vilt.embeddings.text_embeddings(input_ids=input_ids) + self.kinds[0]
        picture = self._picture(pixel_values, position_index, position_weight)
        batch = picture.shape[0]
        states = torch.cat([text, self.first.expand(batch, -1, -1), picture], dim=1)
        mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1]), patch_mask], dim=1)
        states = self.vilt.encoder(states, attention_mask=key_bias(mask)).last_hidden_state
        logits: Tensor = self.head(self.vilt.pooler(self.vilt.layernorm(states[:, :1])))
        return logits

    def _picture(self, pixel_values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Embeddings of the patches (batch, patches, width)."""
        batch, patches = pixel_values.shape[:2]
        projected = self.vilt.embeddings.patch_embeddings.projection(pixel_values.flatten(0, 1))
        corners = nn.functional.embedding(index, self.positions)  # (batch, patches, 4, width)
        places = (corners * weight[..., None]).sum(dim=2)
        found: Tensor = projected.reshape(batch, patches, -1) + places + self.kinds[1]
        return found


class ViLT:
    """The family `vilt`: one graph, `classifier` or `matcher`."""

    tolerance = 1e-4

    def load(self, source: Source) -> Loaded:
        name = architecture(source.path, (ANSWERING, RANKING))
        answers = name == ANSWERING
        model = load_pretrained(getattr(transformers, name), source.path)
        return Loaded(
            model=model,
            task="visual-question-answering" if answers else "image-text-matching",
            pipeline="classification" if answers else "matching",
            source=source_spec(source, model),
            model_info=model_info(model),
            image=patch_spec(source.path, model.config),
            text=text(source.path, model.config, required=answers),
            labels=label_names(model.config, source.path) if answers else (),
        )

    def plans(self, loaded: Loaded) -> Plans:
        graph = vilt_cases.graph_of(loaded)
        return {graph: lambda: _plan(graph, loaded)}

    def cases(self, loaded: Loaded) -> Iterator[Case]:
        return vilt_cases.cases(loaded)

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        return vilt_cases.answer_cases(loaded)


def patch_spec(folder: Path, config: Any) -> ImageSpec:
    """The folder's processor as the row `vilt`. Raises `CheckpointError` for one that the model cannot follow."""
    processor = load_image_processor(folder)
    shortest = dict(processor.size).get("shortest_edge")
    divisor = int(getattr(processor, "size_divisor", 0) or 0)
    if not processor.do_resize or not shortest or not divisor or divisor % config.patch_size:
        raise CheckpointError(
            f"The image processor of {folder} resizes to {dict(processor.size)} and multiples of {divisor}; expected a "
            f"shortest_edge and multiples of the model's patches of {config.patch_size} pixels."
        )
    longest = int(LONGEST_SHARE * shortest)
    most = (int(shortest) // config.patch_size) * (longest // config.patch_size)
    if 0 <= config.max_image_length < most:
        raise CheckpointError(
            f"{folder / 'config.json'} has max_image_length {config.max_image_length}: of up to {most} patches the model "
            "would read so many drawn at random, and no two answers be the same. Set it to -1 to read all."
        )
    settings = PatchSettings(
        shortest=int(shortest),
        longest=longest,
        divisor=divisor,
        patch=config.patch_size,
        table_side=config.image_size // config.patch_size,
        patches=most,
    )
    return ImageSpec(
        height=int(shortest),
        width=int(shortest),
        resize={"shortest_edge": int(shortest)},
        crop=None,
        resample=RESAMPLES[int(processor.resample)],
        processor="vilt",
        settings=msgspec.to_builtins(settings),
        axes={"patches": (1, most, most)},
        **values(processor),
    )


def text(folder: Path, config: Any, *, required: bool) -> Tokenized:
    """The folder's BERT tokenizer, for texts as long as the model's table of positions; see `TextSpec` for `required`."""
    data = assets.tokenizer_bytes(folder)
    tokenizer = assets.load_tokenizer(folder)
    spec = assets.text_spec(
        data,
        cleaning="none",
        max_tokens=config.max_position_embeddings,
        pad_token_id=tokenizer.pad_token_id or 0,
        eos_token_id=tokenizer.sep_token_id,
        vocab_size=config.vocab_size,
        required=required,
    )
    return Tokenized(spec=spec, data=data)


def _plan(graph: str, loaded: Loaded) -> GraphPlan:
    inputs = vilt_cases.random_inputs(loaded, [(2, 3), (3, 2)])
    axes = {"input_ids": "words", "attention_mask": "words"}
    return GraphPlan(
        name=graph,
        module=Reader(loaded.model),
        args=tuple(inputs.values()),
        dynamic_shapes=tuple({0: "batch", 1: axes.get(name, "patches")} for name in inputs),
        input_names=list(inputs),
        output_names=[vilt_cases.OUTPUTS[graph]],
    )
