"""Train a small dual encoder to tell which caption belongs to a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.matching.captions import CAPTIONS, LONGER, Captioned
from edgevqa.models.dual_encoder import DualEncoder, DualEncoderConfig, FusionConfig

MEAN, STD = 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, on what, and how large; `size` is the pictures' side in pixels."""

    steps: int
    batch: int = 32
    rate: float = 2e-3
    size: int = 64
    width: int = 64
    layers: int = 2
    vision: str = "resnet"
    seed: int = 0


def make_model(mechanism: str, training: Training, *, vocab_size: int) -> DualEncoder:
    """A random model of two small towers and the mechanism."""
    torch.manual_seed(training.seed)
    width, heads = training.width, 4
    vit = {
        "model_type": "vit",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": training.layers,
        "num_attention_heads": heads,
        "image_size": training.size,
        "patch_size": training.size // 8,
        "hidden_dropout_prob": 0.0,
    }
    resnet = {
        "model_type": "resnet",
        "embedding_size": width // 4,
        "hidden_sizes": [width // 4, width // 2, width],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }
    text = {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": training.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    fusion = FusionConfig(mechanism=mechanism, image_width=width, text_width=width, width=width, heads=heads)
    vision: dict[str, Any] = {"vit": vit, "resnet": resnet}[training.vision]
    return DualEncoder(
        DualEncoderConfig(vision_config=vision, text_config=text, fusion=fusion, image_size=training.size)
    )


def train(
    model: DualEncoder,
    data: Captioned,
    tokenizer: PreTrainedTokenizerFast,
    training: Training,
    *,
    aligned: DualEncoder | None = None,
) -> float:
    """Train `model` and leave it in eval mode; the mean loss of the last tenth of the steps.

    A coordinated model is trained whole. Others take their towers from `aligned`, a coordinated model that has been
    trained, and only what comes after the towers is trained: the towers' states are computed once.
    """
    rng = np.random.default_rng(training.seed)
    texts = [encode(tokenizer, [template.format(caption) for caption in CAPTIONS]) for template in LONGER]
    if aligned is None:
        seen, read = pixels(data.pictures), [(ids, mask) for ids, mask in texts]
        trained = list(model.parameters())
        model.train()
    else:
        seen, read = _take_towers(model, aligned, pixels(data.pictures), texts)
        trained = [value for name, value in model.named_parameters() if name.startswith(("fusion.", "head."))]
    optimizer = torch.optim.AdamW(trained, lr=training.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=training.rate, total_steps=training.steps)
    losses: list[float] = []
    for _ in range(training.steps):
        chosen = rng.permutation(len(data))[: training.batch]
        right = torch.from_numpy(data.captions[chosen])
        images, (words, mask) = seen[torch.from_numpy(chosen)], read[int(rng.integers(len(read)))]
        compare = _coordinated_loss if aligned is None else _matching_loss
        loss = compare(model, images, (words, mask), right)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return float(np.mean(losses[-max(1, training.steps // 10) :]))


@torch.no_grad()
def _take_towers(
    model: DualEncoder, aligned: DualEncoder, images: Tensor, texts: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Copy the towers, and give their states of all pictures, and of all captions with their masks."""
    model.vision.load_state_dict(aligned.vision.state_dict())
    model.text.load_state_dict(aligned.text.state_dict())
    model.eval()
    seen = torch.cat([model.vision(part) for part in images.split(64)])
    return seen, [(model.text(ids, mask), mask) for ids, mask in texts]


def _coordinated_loss(model: DualEncoder, images: Tensor, texts: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    """Cross-entropy over captions for every picture, and over the batch's pictures for its captions."""
    similarity: Any = model(images, *texts).similarity
    there = right.unique()  # each caption once; any of the pictures that it belongs to is right
    shares = functional.log_softmax(similarity.T[there], dim=1)
    belongs = right[None] == there[:, None]
    backward = -shares.masked_fill(~belongs, -torch.inf).logsumexp(dim=1).mean()
    return functional.cross_entropy(similarity, right) + backward


def _matching_loss(model: DualEncoder, states: Tensor, texts: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    """Cross-entropy over captions of the odds of yes, and of every verdict; `texts` are states and mask."""
    pictures, captions = len(right), len(CAPTIONS)
    image = model.mixing.project_image(states).repeat_interleave(captions, dim=0)
    text, mask = model.mixing.project_text(texts[0]).repeat(pictures, 1, 1), texts[1].repeat(pictures, 1)
    image, text = model.mixing.mix(image, text, None, mask)
    head: Any = model.head
    logits = head(image, text, None, mask)
    odds = (logits[:, 1] - logits[:, 0]).unflatten(0, (pictures, captions))
    truth = functional.one_hot(right, captions)
    return functional.cross_entropy(odds, right) + functional.cross_entropy(logits, truth.flatten())


@torch.no_grad()
def scores(model: DualEncoder, pictures: NDArray[np.uint8], tokenizer: PreTrainedTokenizerFast) -> NDArray[np.float32]:
    """How well every caption fits every picture, (pictures, captions), from the eager model."""
    ids, mask = encode(tokenizer, CAPTIONS)
    found: list[NDArray[np.float32]] = []
    for picture in pictures:
        out = model(pixels(picture[None]), ids, mask)
        if out.match_logits is None:
            found.append(out.similarity[0].numpy())
        else:
            found.append((out.match_logits[:, 1] - out.match_logits[:, 0]).numpy())
    return np.stack(found)


def pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures of the model's size, (pictures, 3, height, width), as its processor makes them."""
    scaled = (torch.from_numpy(pictures).float() / 255 - MEAN) / STD
    return scaled.permute(0, 3, 1, 2).contiguous()


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts, padded to the longest."""
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def save(model: DualEncoder, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that `edgevqa export` takes."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    ViTImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)
