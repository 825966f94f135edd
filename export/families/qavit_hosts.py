"""QA-ViT on other hosts: the vision tower of LLaVA-1.5, BLIP-2 or InstructBLIP attends to the question.

Source: Question Aware Vision Transformer for Multimodal Reasoning (CVPR 2024). What comes after the vision tower is the
host's own family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from edgevqa.export.answers import Asked, asked_answers, decoder_only, open_tokenizer
from edgevqa.export.components import query_language
from edgevqa.export.components.eva import VisionEmbeddings
from edgevqa.export.components.host_fusion import QuestionEmbedding, fusion_plan, question_plan, trunk_plan
from edgevqa.export.components.t5 import QuestionEncoder
from edgevqa.export.families.blip2 import Blip2
from edgevqa.export.families.instructblip import QFORMER, InstructBlip
from edgevqa.export.families.llava import Llava, selected_states
from edgevqa.export.samples import arrays, questions_by_picture, random_pixels, random_questions
from edgevqa.export.sources import Source, hash_files, read_json
from edgevqa.export.spec import AnswerCase, Case, Family, Loaded, Plans, Samples, Tokenized
from edgevqa.export.weight_files import check_tensors
from edgevqa.models.hub import resolve_folder
from edgevqa.models.qavit.hosts import CONFIG_NAME, WEIGHTS_NAME, HostConfig, QuestionAware, Tower
from edgevqa.runtime.errors import CheckpointError
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.preprocessing import prepare
from edgevqa.runtime.text import PLAIN, pad_ids

FUSION = "fusion"  # the tokenizer of the question alone, beside that of the prompt
VISION = "vision"  # the host's graph that trunk, question encoder and fusion take the place of


class QAViTHost:
    """A family whose host is another family; `Loaded.model` is a `QuestionAware`. A subclass says where things lie."""

    tolerance = 1e-4
    host_type: ClassVar[str]
    host: ClassVar[Family]

    def tower(self, model: Any) -> Tower:
        """The host's vision layers and what the question is encoded with."""
        raise NotImplementedError

    def embed(self, model: Any) -> nn.Module:
        """Pixels to the first layer's states."""
        raise NotImplementedError

    def finish(self, model: Any) -> Callable[[Tensor], Tensor]:
        """The last layer's states to `image_states`."""
        raise NotImplementedError

    def image_states(self, model: Any, pixels: Tensor) -> Tensor:
        """What the eager host's vision tower gives."""
        raise NotImplementedError

    def generate(self, loaded: Loaded, asked: Asked) -> Tensor:
        """What the eager host answers; `loaded` is the host's."""
        raise NotImplementedError

    def load(self, source: Source) -> Loaded:
        config = HostConfig.read(source.path)
        check_tensors(source.path / WEIGHTS_NAME)
        folder = resolve_folder(config.host, root=source.path, weights=True)
        found = read_json(folder / CONFIG_NAME, what="it is the host of a QA-ViT").get("model_type")
        if found != self.host_type:
            raise CheckpointError(f"{source.path} names the host {folder}, a '{found}'; expected a '{self.host_type}'.")
        loaded = self.host.load(replace(source, family=self.host_type, path=folder))
        aware = QuestionAware(loaded.model, self.tower(loaded.model), config)
        aware.load_fusion(source.path)
        text = loaded.required_text
        question = msgspec.structs.replace(
            text.spec, template=PLAIN, image_token_id=None, max_tokens=config.max_question_tokens
        )
        own = hash_files([source.path / CONFIG_NAME, source.path / WEIGHTS_NAME])
        parameters = loaded.source.parameters + sum(each.numel() for each in aware.fusion.parameters())
        digest = sha256_bytes((own + loaded.source.sha256).encode())
        return replace(
            loaded,
            model=aware,
            source=msgspec.structs.replace(loaded.source, sha256=digest, parameters=parameters),
            model_info={
                **msgspec.to_builtins(config),
                "fused_layers": list(aware.fused),
                "trunk_layers": aware.trunk_layers,
                "host_config": dict(loaded.model_info),
            },
            texts={**loaded.texts, FUSION: Tokenized(spec=question, data=text.data)},
        )

    def plans(self, loaded: Loaded) -> Plans:
        aware: QuestionAware = loaded.model
        model = aware.model
        size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
        tokens = (size // model.config.vision_config.patch_size) ** 2 + 1
        encoder: nn.Module = QuestionEmbedding(aware.tower.embeddings)
        if aware.tower.encoder is not None:
            encoder = QuestionEncoder(model.language_model, None)
        rest = {name: plan for name, plan in self.host.plans(_host(loaded)).items() if name != VISION}
        return {
            "vision_trunk": lambda: trunk_plan(aware, self.embed(model), size=size),
            "question_encoder": lambda: question_plan(encoder, vocab_size=vocabulary),
            "vision_fusion": lambda: fusion_plan(aware, self.finish(model), tokens=tokens),
            **rest,
        }

    @torch.no_grad()
    def cases(self, loaded: Loaded) -> Iterator[Case]:
        torch.manual_seed(1)
        config, spec = loaded.model.model.config, loaded.texts[FUSION].spec
        size = config.vision_config.image_size
        ids, mask = random_questions(3, min(6, spec.max_tokens), vocab_size=config.text_config.vocab_size)
        yield from self._vision_cases(loaded.model, random_pixels(1, height=size, width=size), (ids, mask), "random")
        for rgb, questions in questions_by_picture()[:2]:
            pixels = torch.from_numpy(prepare(rgb, loaded.required_image).inputs["pixel_values"])
            yield from self._vision_cases(loaded.model, pixels, _tokenize(loaded, questions), "real")
        for case in self.host.cases(_host(loaded)):
            if case.graph != VISION:
                yield case

    def answer_cases(self, loaded: Loaded) -> list[AnswerCase]:
        aware: QuestionAware = loaded.model

        def generate(asked: Asked) -> Tensor:
            with aware.asking(*_tokenize(loaded, [asked.question])):
                return self.generate(_host(loaded), asked)

        return asked_answers(loaded, generate)

    def _vision_cases(
        self, aware: QuestionAware, pixels: Tensor, question: tuple[Tensor, Tensor], samples: Samples
    ) -> Iterator[Case]:
        """Cases of trunk, question encoder and fusion: one picture (1, ...) and several questions."""

        def case(graph: str, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> Case:
            return Case(graph=graph, samples=samples, inputs=arrays(inputs), expected=arrays(expected))

        ids, mask = question
        seen: list[Tensor] = []
        first = aware.tower.layers[aware.trunk_layers]
        hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            with aware.asking(ids, mask):
                states = self.image_states(aware.model, pixels.expand(len(ids), -1, -1, -1))
        finally:
            hook.remove()
        trunk, encoded = seen[0][:1], aware.encode_question(ids, mask)
        yield case("vision_trunk", {"pixel_values": pixels}, {"trunk_states": trunk})
        if aware.tower.encoder is None:
            encoded = encoded * mask[..., None]  # the graph gives zeros for padding, which nobody attends to
        yield case("question_encoder", {"input_ids": ids, "attention_mask": mask}, {"question_states": encoded})
        inputs = {"trunk_states": trunk, "question_states": encoded, "attention_mask": mask}
        yield case("vision_fusion", inputs, {"image_states": states})


class QAViTLlava(QAViTHost):
    """The family `qavit_llava`."""

    host_type = "llava"
    host = Llava()

    def tower(self, model: Any) -> Tower:
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise CheckpointError(f"vision_feature_layer is {layer}; fusion needs a host that selects one layer.")
        layers = model.model.vision_tower.encoder.layers
        return Tower(
            layers=layers,
            used=layer % (len(layers) + 1),
            vision=model.config.vision_config.hidden_size,
            text=model.config.text_config.hidden_size,
            embeddings=model.get_input_embeddings(),
        )

    def embed(self, model: Any) -> nn.Module:
        tower = model.model.vision_tower
        return nn.Sequential(tower.embeddings, tower.pre_layrnorm)

    def finish(self, model: Any) -> Callable[[Tensor], Tensor]:
        first = 1 if model.config.vision_feature_select_strategy == "default" else 0
        return partial(_drop_first, first)

    def image_states(self, model: Any, pixels: Tensor) -> Tensor:
        return selected_states(model, pixels)

    def generate(self, loaded: Loaded, asked: Asked) -> Tensor:
        return decoder_only(loaded, asked.prepared, asked.ids)


class QAViTBlip2(QAViTHost):
    """The family `qavit_blip2`."""

    host_type = "blip-2"
    host: ClassVar[Family] = Blip2()

    def tower(self, model: Any) -> Tower:
        layers, language = model.vision_model.encoder.layers, model.language_model
        return Tower(
            layers=layers,
            used=len(layers),
            vision=model.config.vision_config.hidden_size,
            text=language.get_input_embeddings().embedding_dim,
            embeddings=language.get_input_embeddings(),
            encoder=language.get_encoder() if language.config.is_encoder_decoder else None,
        )

    def embed(self, model: Any) -> nn.Module:
        return VisionEmbeddings(model.vision_model.embeddings)

    def finish(self, model: Any) -> Callable[[Tensor], Tensor]:
        last: Callable[[Tensor], Tensor] = model.vision_model.post_layernorm
        return last

    def image_states(self, model: Any, pixels: Tensor) -> Tensor:
        states: Tensor = model.vision_model(pixels).last_hidden_state
        return states

    def generate(self, loaded: Loaded, asked: Asked) -> Tensor:
        return query_language.generate(loaded, asked.prepared, asked.ids)


class QAViTInstructBlip(QAViTBlip2):
    """The family `qavit_instructblip`."""

    host_type = "instructblip"
    host = InstructBlip()

    def generate(self, loaded: Loaded, asked: Asked) -> Tensor:
        read = torch.tensor([open_tokenizer(loaded.texts[QFORMER]).question(asked.question).ids])
        return query_language.generate(loaded, asked.prepared, asked.ids, qformer_input_ids=read)


def _host(loaded: Loaded) -> Loaded:
    """What the host's family loaded."""
    return replace(loaded, model=loaded.model.model)


def _tokenize(loaded: Loaded, questions: list[str]) -> tuple[Tensor, Tensor]:
    text = loaded.texts[FUSION]
    tokenizer = open_tokenizer(text)
    ids, mask = pad_ids([tokenizer.question(question).ids for question in questions], text.spec.pad_token_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _drop_first(count: int, states: Tensor) -> Tensor:
    return states[:, count:]
