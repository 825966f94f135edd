"""What is compared: a model, inputs of any batch and length, what eager PyTorch gives for them, and what our graphs give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.exporters import bundles
from benchmarks.exporters.bundles import Array, Prompted
from benchmarks.exporters.checkpoints import PATCH, QUERIES, SIZE
from edgevqa.runtime.graphs import Graphs
from edgevqa.runtime.pipelines.values import Value
from edgevqa.runtime.preprocessing import Prepared, collate
from edgevqa.runtime.preprocessing.qwen2_vl import PatchSettings, layout
from edgevqa.runtime.preprocessing.vilt import cut

Tensors: TypeAlias = dict[str, Tensor]
Values: TypeAlias = Mapping[str, Any]
GRIDS = {1: (16, 16), 2: (12, 12)}  # patches of Qwen2.5-VL's one picture, by what is otherwise the batch
PROMPT = (1, 4)  # timed with a caption's first words, of which the start token is one


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model.

    `inputs` gives the keywords of the model's forward for a batch and a number of words, `expected` what is compared of
    the eager forward (logits: those of the next token), and `ours` the same by our graphs. `task` is optimum's name of it.
    """

    name: str
    kind: str
    task: str
    inputs: Callable[[Any, int, int], Tensors]
    expected: Callable[[Any, Tensors], Tensors]
    ours: Callable[[Graphs, Any, Values], Mapping[str, Value]]
    generates: bool = False
    checkpoint: str = ""
    timed: tuple[int, int] = (1, 12)

    @property
    def folder(self) -> str:
        """What the checkpoint is called, of which there may be several subjects."""
        return self.checkpoint or self.name

    def load(self, folder: Any, **settings: Any) -> Any:
        """The model in float32 and eval mode."""
        model_class: Any = getattr(transformers, self.kind)
        return model_class.from_pretrained(folder, **settings).eval()


def _pixels(batch: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def _words(batch: int, words: int, most: int, *, left: bool = False, lead: Tensor | None = None) -> Tensors:
    """Random ids after `lead`, which every row begins with; the rows after the first are padded by a token each."""
    generator = torch.Generator().manual_seed(words)
    ids = torch.randint(5, most, (batch, words), generator=generator)
    if lead is not None:
        ids = torch.cat([lead.expand(batch, -1), ids], dim=1)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        if left:
            ids[row] = ids[row].roll(row)
            mask[row, :row] = 0
        else:
            mask[row, -row:] = 0
        ids[row] = torch.where(mask[row] > 0, ids[row], 0)
    return {"input_ids": ids, "attention_mask": mask}


def _picture(model: Any, batch: int, words: int) -> Tensors:
    size = getattr(model.config, "image_size", SIZE)
    return {"pixel_values": _pixels(batch, size, size)}


def _masked_picture(model: Any, batch: int, words: int) -> Tensors:
    noise = torch.rand(batch, (SIZE // PATCH) ** 2, generator=torch.Generator().manual_seed(batch))
    return {"pixel_values": _pixels(batch), "noise": noise}


def _clip_inputs(model: Any, batch: int, words: int) -> Tensors:
    end = model.config.text_config.eos_token_id
    texts = _words(batch, words - 1, 200)
    ids = torch.where(texts["attention_mask"] > 0, texts["input_ids"], end)
    ids = torch.cat([ids, torch.full((batch, 1), end)], dim=1)
    mask = torch.cat([torch.ones(batch, 1, dtype=torch.int64), texts["attention_mask"]], dim=1)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": _pixels(batch)}


def _vilt_inputs(model: Any, batch: int, words: int) -> Tensors:
    height, width = SIZE, SIZE - PATCH * (batch - 1)
    seen = {"pixel_values": _pixels(batch, height, width)}
    return {
        **_words(batch, words, model.config.vocab_size),
        **seen,
        "pixel_mask": torch.ones(batch, height, width, dtype=torch.int64),
    }


def _question(model: Any, batch: int, words: int) -> Tensors:
    start = torch.full((batch, 1), model.decoder_start_token_id)
    return {"pixel_values": _pixels(batch), **_words(batch, words, 60), "decoder_input_ids": start}


def _blip_prompt(model: Any, batch: int, words: int) -> Tensors:
    ids = _words(batch, words, 60)["input_ids"].clamp(min=5)
    ids[:, 0] = model.config.text_config.bos_token_id
    return {"pixel_values": _pixels(batch), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _started(model: Any, batch: int, words: int) -> Tensors:
    ids = _words(batch, words, 200)["input_ids"].clamp(min=5)
    ids[:, 0] = model.generation_config.decoder_start_token_id
    return {"pixel_values": _pixels(batch), "decoder_input_ids": ids}


def _queried(model: Any, batch: int, words: int) -> Tensors:
    lead = torch.full((1, QUERIES), model.config.image_token_id)
    if model.config.text_config.model_type == "opt":
        return {"pixel_values": _pixels(batch), **_words(batch, words, 250, left=True, lead=lead)}
    start = torch.zeros(batch, 1, dtype=torch.int64)
    return {"pixel_values": _pixels(batch), **_words(batch, words, 250, lead=lead), "decoder_input_ids": start}


def _instructed(model: Any, batch: int, words: int) -> Tensors:
    read = _words(batch, words + 1, model.config.qformer_config.vocab_size)
    renamed = {f"qformer_{name}": value for name, value in read.items()}
    return {**_queried(model, batch, words), **renamed}


def _llava_inputs(model: Any, batch: int, words: int) -> Tensors:
    lead = torch.full((1, 1 + (SIZE // PATCH) ** 2), model.config.image_token_index)
    lead[0, 0] = 1
    return {"pixel_values": _pixels(batch), **_words(batch, words, 250, left=True, lead=lead)}


def _qwen_inputs(model: Any, batch: int, words: int) -> Tensors:
    high, wide = GRIDS.get(batch, (20, 12))
    token = model.config.image_token_id
    lead = torch.full((1, 1 + high * wide // 4), token)
    lead[0, 0] = model.config.vision_start_token_id
    asked = _words(1, words, 250, lead=lead)
    values = torch.randn(high * wide, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(batch))
    types = (asked["input_ids"] == token).to(torch.int32)
    return {
        **asked,
        "pixel_values": values,
        "image_grid_thw": torch.tensor([[1, high, wide]]),
        "mm_token_type_ids": types,
    }


def _forward(*names: str) -> Callable[[Any, Tensors], Tensors]:
    """What the model's forward gives under these names; of the logits of several places the last."""

    def expected(model: Any, inputs: Tensors) -> Tensors:
        found = model(**inputs)
        return {name: last_place(name, found[name]) for name in names}

    return expected


def last_place(name: str, value: Any) -> Any:
    """Of logits (batch, places, vocabulary) the last place's."""
    return value[:, -1] if name == "logits" and value.ndim == 3 else value


def _first_answer(model: Any, inputs: Tensors) -> Tensors:
    """Row by row without padding: the eager decoder sees padded words whatever mask it is given (transformers 5.23)."""
    rows = []
    for row, mask in enumerate(inputs["attention_mask"]):
        one, words = slice(row, row + 1), int(mask.sum())
        embeds = model.vision_model(inputs["pixel_values"][one]).last_hidden_state
        ids = inputs["input_ids"][one, :words]
        states = model.text_encoder(ids, torch.ones_like(ids), encoder_hidden_states=embeds).last_hidden_state
        rows.append(model.text_decoder(inputs["decoder_input_ids"][one], encoder_hidden_states=states).logits[:, -1])
    return {"logits": torch.cat(rows)}


def _classify(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
    return bundles.run_one(graphs, "classifier", inputs)


def _both_towers(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
    seen = bundles.run_one(graphs, "image_encoder", inputs)
    return {**seen, **bundles.run_one(graphs, "text_encoder", inputs)}


def _patches(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
    rows = [cut(each[None], patch=PATCH, table_side=SIZE // PATCH) for each in inputs["pixel_values"]]
    batch = collate([Prepared(inputs=dict(row)) for row in rows])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return bundles.run_one(graphs, "classifier", {**words, **batch})


def _kept_patches(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
    order: Array = np.argsort(inputs["noise"], axis=1)
    keep = np.ascontiguousarray(order[:, : order.shape[1] // 4])
    names = [name for name in graphs.inputs("encoder") if name != "pixel_values"]
    return bundles.run_one(graphs, "encoder", {"pixel_values": inputs["pixel_values"], names[0]: keep})


def _after(tokens: str, *, places: int = 0) -> Callable[[Graphs, Any, Values], Mapping[str, Value]]:
    """An encoder-decoder that reads the first `tokens`. Our encoder reads words alone, without the picture's `places`."""

    def ours(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
        names = ("input_ids", "attention_mask") if places else ()
        words = {name: np.ascontiguousarray(inputs[name][:, places:]) for name in names}
        return bundles.encode_decode(graphs, {**inputs, **words}, inputs[tokens])

    return ours


def _read(graphs: Graphs, manifest: Any, inputs: Values) -> Mapping[str, Value]:
    prompted, grid, given = prompt(graphs, manifest, inputs)
    return {"logits": prompted.read(given, grid)}


def prompt(
    graphs: Graphs, manifest: Any, inputs: Values, capacity: int = 1
) -> tuple[Prompted, tuple[int, int, int] | None, Values]:
    """A decoder-only model, the picture's grid where it has one, and the inputs with what our vision takes of it."""
    prompted = Prompted(graphs, image_token=manifest.text.image_token_id, capacity=capacity)
    if "image_grid_thw" not in inputs:
        return prompted, None, inputs
    _, high, wide = inputs["image_grid_thw"][0].tolist()
    settings = PatchSettings(**manifest.image.settings)
    return prompted, (1, high // 2, wide // 2), {**inputs, **layout([(high, wide)], settings)}


_LOGITS = _forward("logits")
SUBJECTS = (
    Subject(
        name="vit",
        kind="ViTForImageClassification",
        task="image-classification",
        inputs=_picture,
        expected=_LOGITS,
        ours=_classify,
    ),
    Subject(
        name="clip",
        kind="CLIPModel",
        task="zero-shot-image-classification",
        inputs=_clip_inputs,
        expected=_forward("image_embeds", "text_embeds"),
        ours=_both_towers,
    ),
    Subject(
        name="vilt",
        kind="ViltForQuestionAnswering",
        task="visual-question-answering",
        inputs=_vilt_inputs,
        expected=_LOGITS,
        ours=_patches,
    ),
    Subject(
        name="perceiver",
        kind="PerceiverForImageClassificationLearned",
        task="image-classification",
        inputs=_picture,
        expected=_LOGITS,
        ours=_classify,
    ),
    Subject(
        name="vit_mae",
        kind="ViTMAEModel",
        task="feature-extraction",
        inputs=_masked_picture,
        expected=_forward("last_hidden_state"),
        ours=_kept_patches,
    ),
    Subject(
        name="blip_vqa",
        kind="BlipForQuestionAnswering",
        task="visual-question-answering",
        inputs=_question,
        expected=_first_answer,
        ours=_after("decoder_input_ids"),
    ),
    Subject(
        name="blip_caption",
        kind="BlipForConditionalGeneration",
        task="image-to-text",
        inputs=_blip_prompt,
        expected=_LOGITS,
        ours=_after("input_ids"),
        timed=(1, 1),
    ),
    Subject(
        name="blip_caption, prompt of 4",
        kind="BlipForConditionalGeneration",
        task="image-to-text",
        inputs=_blip_prompt,
        expected=_LOGITS,
        ours=_after("input_ids"),
        checkpoint="blip_caption",
        timed=PROMPT,
    ),
    Subject(
        name="blip2_opt",
        kind="Blip2ForConditionalGeneration",
        task="image-to-text",
        inputs=_queried,
        expected=_LOGITS,
        ours=_read,
    ),
    Subject(
        name="blip2_t5",
        kind="Blip2ForConditionalGeneration",
        task="image-to-text",
        inputs=_queried,
        expected=_LOGITS,
        ours=_after("decoder_input_ids", places=QUERIES),
    ),
    Subject(
        name="instructblip_t5",
        kind="InstructBlipForConditionalGeneration",
        task="image-to-text",
        inputs=_instructed,
        expected=_LOGITS,
        ours=_after("decoder_input_ids", places=QUERIES),
    ),
    Subject(
        name="llava",
        kind="LlavaForConditionalGeneration",
        task="image-text-to-text",
        inputs=_llava_inputs,
        expected=_LOGITS,
        ours=_read,
        generates=True,
    ),
    Subject(
        name="qwen2_5_vl",
        kind="Qwen2_5_VLForConditionalGeneration",
        task="image-text-to-text",
        inputs=_qwen_inputs,
        expected=_LOGITS,
        ours=_read,
        generates=True,
    ),
    Subject(
        name="vision_encoder_decoder",
        kind="VisionEncoderDecoderModel",
        task="image-to-text-with-past",
        inputs=_started,
        expected=_LOGITS,
        ours=_after("decoder_input_ids"),
        generates=True,
        timed=(1, 1),
    ),
    Subject(
        name="vision_encoder_decoder, prompt of 4",
        kind="VisionEncoderDecoderModel",
        task="image-to-text-with-past",
        inputs=_started,
        expected=_LOGITS,
        ours=_after("decoder_input_ids"),
        checkpoint="vision_encoder_decoder",
        timed=PROMPT,
    ),
)
