"""Trains the reference model on two CPU cores: `python -m benchmarks.reference.train --work FOLDER`.

Resumes by itself from the folder's checkpoint; Ctrl-C saves one. Losses and validation accuracies go to log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.reference.batches import Batch, stream
from benchmarks.reference.objective import Objective
from benchmarks.reference.pixels import to_pixel_values
from benchmarks.reference.recipe import VALIDATION_SCENES_SEED, Recipe, model_config
from benchmarks.reference.validation import validate, validation_sets
from benchmarks.reference.vocabulary import build_tokenizer
from edgevqa.evaluation.datasets.registry import open_dataset
from edgevqa.models.qavit import QAViTForVQA

CHECKPOINT_SECONDS, VALIDATION_STEPS, LOG_STEPS = 180, 250, 50
POSITION_SCALE = 0.6
PACE_STEPS = 60  # the pace is the median of so many steps: compiling and hiccups do not count
log = logging.getLogger("train_reference")


@dataclass
class Progress:
    """Where a run stands; `done` is the share of the schedule that lies behind (it outruns steps under `minutes`)."""

    step: int = 0
    done: float = 0.0
    seconds: float = 0.0


class Trainer:
    """One run: model, optimiser, progress, and the folder that keeps them."""

    def __init__(self, recipe: Recipe, work: Path, *, compiled: bool) -> None:
        self.recipe, self.work = recipe, work
        work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.tokenizer = _tokenizer(work)
        self.model = initialised(QAViTForVQA(model_config(self.tokenizer.get_vocab_size())))
        self.objective = Objective(self.model)
        self.forward = torch.compile(self.objective) if compiled else self.objective  # the same parameters
        self.optimizer = _optimizer(self.objective, recipe)
        self.progress = Progress()
        self.recent_seconds: deque[float] = deque(maxlen=PACE_STEPS)
        self._resume()

    def run(self) -> None:
        """Train to the end of the schedule; on Ctrl-C save a checkpoint and raise `KeyboardInterrupt`."""
        sets = validation_sets(self.tokenizer, VALIDATION_SCENES_SEED)
        batches = stream(self.recipe, self.tokenizer, self.progress.step)
        saved = time.monotonic()
        try:
            while self.progress.done < 1:
                self._step(next(batches))
                if self.progress.step % VALIDATION_STEPS == 0 or self.progress.done >= 1:
                    self._log({"validation": validate(self.model, sets)})
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        finally:
            batches.close()
            self.save()
        self.export()

    def _step(self, batch: Batch) -> None:
        started = time.monotonic()
        rate = learning_rate(self.progress, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, answer_loss = _losses(self.forward, batch, loss_weights(self.progress, self.recipe))
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self._advance(time.monotonic() - started)
        if self.progress.step % LOG_STEPS == 0:
            self._log(
                {
                    "loss": _rounded(loss),
                    "answer_loss": _rounded(answer_loss),
                    "norm": round(float(norm), 3),
                    "rate": rate,
                }
            )

    def _advance(self, seconds: float) -> None:
        progress, recipe = self.progress, self.recipe
        progress.step += 1
        progress.seconds += seconds
        share = 1 / recipe.steps
        self.recent_seconds.append(seconds)
        if recipe.minutes is not None and len(self.recent_seconds) >= PACE_STEPS // 2:
            left = max(recipe.minutes * 60 - progress.seconds, 1.0)
            share = max(share, (1 - progress.done) * statistics.median(self.recent_seconds) / left)
        progress.done = min(1.0, progress.done + share)
        if 1 - progress.done < share / 2:
            progress.done = 1.0

    def _log(self, record: dict[str, Any]) -> None:
        progress = self.progress
        left = progress.seconds / max(progress.done, 1e-9) * (1 - progress.done)
        record = {
            "step": progress.step,
            "done": round(progress.done, 4),
            "minutes": round(progress.seconds / 60, 2),
            **record,
        }
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        log.info("%s, %.0f minutes left", json.dumps(record), left / 60)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "recipe": asdict(self.recipe),
            "torch_rng": torch.get_rng_state(),
        }
        temporary = self.work / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.work / "checkpoint.pt")

    def export(self) -> None:
        """Write the trained model and its tokenizer to `model/` in the work folder."""
        self.model.eval().save_pretrained(self.work / "model")
        self.tokenizer.save(str(self.work / "model" / "tokenizer.json"))

    def _resume(self) -> None:
        path = self.work / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["torch_rng"])
        log.info("resumed at step %d", self.progress.step)


def learning_rate(progress: Progress, recipe: Recipe) -> float:
    """Linear warm-up in steps, then a cosine over the schedule's share that is done, down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress.done))
    return recipe.learning_rate * min(1.0, (progress.step + 1) / recipe.warmup_steps) * cosine


def loss_weights(progress: Progress, recipe: Recipe) -> tuple[float, float]:
    """Weights of the patches' losses and of the summary's, beside the answers' weight of 1."""
    weight = recipe.patch_weight * (1 - 0.9 * progress.done)
    return weight, weight if progress.step >= recipe.summary_from else 0.0


def patch_places(model: QAViTForVQA) -> Tensor:
    """Return x and y of each patch's middle, -1..1 over the picture: (patches, 2)."""
    side = math.isqrt(model.config.vision_config.tokens - 1)
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=1)


@torch.no_grad()
def initialised(model: QAViTForVQA) -> QAViTForVQA:
    """Let positions start smooth: neighbours alike, columns and rows along two directions, so that places can be read off."""
    positions = model.vision.embeddings.position_embedding.weight
    torch.nn.init.normal_(positions, std=0.3)
    positions[1:] += POSITION_SCALE * patch_places(model) @ torch.randn(2, positions.shape[1])
    model.copy_gated_projections()
    return model.train()


def _losses(objective: Callable[..., Any], batch: Batch, weights: tuple[float, float]) -> tuple[Tensor, Tensor]:
    tensors = {name: torch.from_numpy(array) for name, array in vars(batch).items()}
    pixel_values = to_pixel_values(tensors.pop("pictures"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, answer_loss = objective(pixel_values, tensors, (torch.tensor(weights[0]), torch.tensor(weights[1])))
    return loss, answer_loss


def _rounded(value: Tensor) -> float:
    return round(float(value.detach()), 4)


def _optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms, biases, gates and embeddings are not decayed."""
    decayed: list[torch.nn.Parameter] = []
    free: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or "embedding" in name or "shared" in name or "relative_attention_bias" in name
        (free if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _tokenizer(work: Path) -> Tokenizer:
    path = work / "tokenizer.json"
    if not path.is_file():
        datasets = (open_dataset("easy-vqa:train"), open_dataset(f"scenes:{VALIDATION_SCENES_SEED}:8000"))
        texts = [text for dataset in datasets for sample in dataset for text in (sample.question, *sample.answers)]
        build_tokenizer(texts).save(str(path))
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoint, log and finished model")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--minutes", type=float, default=None, help="compress the schedule to end within this time")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="compile the model: a third less time, needs a C++ compiler"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    for name in (signal.SIGINT, signal.SIGTERM):  # also where a background job would ignore them
        signal.signal(name, signal.default_int_handler)
    recipe = replace(
        Recipe(), steps=arguments.steps, minutes=arguments.minutes, seed=arguments.seed, learning_rate=arguments.rate
    )
    trainer = Trainer(recipe, arguments.work, compiled=arguments.compile)
    log.info("%d parameters", sum(parameter.numel() for parameter in trainer.model.parameters()))
    try:
        trainer.run()
    except KeyboardInterrupt:
        log.info("interrupted and saved at step %d; run the same command to go on", trainer.progress.step)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
