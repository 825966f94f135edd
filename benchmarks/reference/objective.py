"""What training minimises: the answer's cross-entropy, and in the beginning what patches show and are asked about.

The small heads for the patches exist while training only; the shipped model answers without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.reference.grounding import COLOR_CLASSES, FIRST, IGNORED, PATCH, SECOND, SHAPE_CLASSES
from edgevqa.evaluation.datasets.scenes.layout import PICTURE_SIZE
from edgevqa.models.qavit import QAViTForVQA

BACKGROUND_WEIGHT = 0.2  # most patches show nothing
ROLES = 3  # none, first, second
COUNTS = 6  # none to five objects
PLACE_WEIGHT = 2.0  # places are in shares of the picture: their errors are small numbers


class Objective(nn.Module):
    """The model with heads for training: what each trunk patch shows, and each fused patch's part in the question."""

    def __init__(self, model: QAViTForVQA) -> None:
        super().__init__()
        width = model.config.vision_config.hidden_size
        self.model = model
        self.color_head = nn.Linear(width, len(COLOR_CLASSES) + 1)
        self.shape_head = nn.Linear(width, len(SHAPE_CLASSES) + 1)
        self.asked_head = nn.Linear(width, ROLES)
        self.summary_head = nn.Linear(width, 4 + 2 * COUNTS)
        nn.init.zeros_(self.summary_head.weight)
        self.place_head = nn.Linear(width, 2)
        nn.init.zeros_(self.place_head.weight)
        self.token_head = nn.Linear(model.config.text_config.d_model, ROLES + len(COLOR_CLASSES) + 1)

    def forward(
        self, pixel_values: Tensor, batch: dict[str, Tensor], weights: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the answers' part of it.

        `batch` holds the arrays of `Batch` as tensors, `weights` the weights of the patches' and the summary's losses.
        """
        model = self.model
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        trunk = model.vision.trunk(pixel_values)
        question_states = model.encode_question(input_ids, mask)
        states = model.vision.fuse(trunk[batch["image_index"]], question_states, mask)
        hidden, joined_mask = model.encode(states, input_ids, mask)
        encoded = BaseModelOutput(last_hidden_state=hidden)
        answer = model.language_model(encoder_outputs=encoded, attention_mask=joined_mask, labels=batch["labels"]).loss
        patches = (
            _patch_loss(self.color_head(trunk[:, 1:]), batch["patch_colors"])
            + _patch_loss(self.shape_head(trunk[:, 1:]), batch["patch_shapes"])
            + _patch_loss(self.asked_head(states[:, 1:]), batch["patch_asked"])
        )
        patches = patches + (self.place_head(states[:, 1:]).float() - _places()).abs().mean()
        tokens = self.token_head(question_states)
        patches = patches + _patch_loss(tokens[..., :ROLES], batch["token_roles"])
        patches = patches + _patch_loss(tokens[..., ROLES:], batch["token_colors"])
        summary = _summary_loss(self.summary_head(states[:, 0]).float(), batch["patch_asked"], batch["asked_counts"])
        return answer + weights[0] * patches + weights[1] * summary, answer


def _patch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    weights = torch.ones(logits.shape[-1])
    weights[0] = BACKGROUND_WEIGHT
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight=weights, ignore_index=IGNORED)


def _summary_loss(predicted: Tensor, patch_asked: Tensor, counts: Tensor) -> Tensor:
    """Where the asked and the compared objects' patches lie in the mean, and how many objects they are."""
    places = _places()
    loss = torch.zeros(())
    for number, role in enumerate((FIRST, SECOND)):
        member = (patch_asked == role).float()  # (batch, patches)
        size = member.sum(1, keepdim=True)
        error = (predicted[:, 2 * number : 2 * number + 2] - member @ places / size.clamp(min=1)).abs().sum(1)
        there = (size[:, 0] > 0).float()
        loss = loss + PLACE_WEIGHT * (error * there).sum() / there.sum().clamp(min=1)
        logits = predicted[:, 4 + COUNTS * number : 4 + COUNTS * (number + 1)]
        loss = loss + cross_entropy(logits, counts[:, number], ignore_index=IGNORED)
    return loss


def _places() -> Tensor:
    """Middles of the patches, x and y in shares of the picture: (patches, 2)."""
    side = PICTURE_SIZE // PATCH
    steps = (torch.arange(side) + 0.5) / side
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)
