"""Every fusion mechanism against a plain formulation of its own in numpy, and what masks must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgevqa.models.fusion import COORDINATED, CROSS_ATTENDED, FUSIONS, Fusion, FusionConfig, MatchingHead, build_fusion
from edgevqa.models.fusion.coordinated import Coordinated
from edgevqa.models.fusion.hierarchical import neighbourhood_mean
from edgevqa.models.fusion.multi_head import MultiHead
from edgevqa.runtime.errors import ConfigError

Array = NDArray[np.float64]
IMAGE, TEXT, WIDTH, HEADS = 12, 20, 16, 4
TOKENS, WORDS = 7, 5
TOLERANCE = 1e-5
MIXING = [name for name in FUSIONS if name != COORDINATED]


def build(mechanism: str, *, image_width: int = IMAGE, text_width: int = TEXT) -> Fusion | Coordinated:
    """A mechanism with weights that make attention far from flat."""
    torch.manual_seed(0)
    config = FusionConfig(mechanism=mechanism, image_width=image_width, text_width=text_width, width=WIDTH, heads=HEADS)
    module = build_fusion(config)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    return module.eval()


def mixing(mechanism: str, *, image_width: int = IMAGE, text_width: int = TEXT) -> Fusion:
    module = build(mechanism, image_width=image_width, text_width=text_width)
    assert isinstance(module, Fusion)
    return module


def states(batch: int, length: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


class Plain:
    """The mechanisms of one row, a query and a head at a time, from the weights of a module."""

    def __init__(self, module: Fusion, image_seen: Array, text_seen: Array) -> None:
        self.weights: dict[str, Array] = {
            name: value.detach().double().numpy() for name, value in module.state_dict().items()
        }
        self.seen = {"image": image_seen.astype(bool), "text": text_seen.astype(bool)}

    def linear(self, name: str, x: Array) -> Array:
        bias = self.weights.get(f"{name}.bias")
        out: Array = x @ self.weights[f"{name}.weight"].T
        return out if bias is None else out + bias

    def norm(self, name: str, x: Array) -> Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        out: Array = (x - mean) / np.sqrt(variance + 1e-5) * self.weights[f"{name}.weight"]
        return out + self.weights[f"{name}.bias"]

    def entry(self, modality: str, x: Array) -> Array:
        name = f"{modality}_in"
        if f"{name}.0.weight" in self.weights:
            return self.norm(f"{name}.1", self.linear(f"{name}.0", x))
        return self.linear(name, x) if f"{name}.weight" in self.weights else x

    def weigh(self, scores: Array, values: Array, key: str) -> Array:
        """Softmax over the seen keys alone."""
        rows = []
        for row in scores[:, self.seen[key]]:
            share = np.exp(row - row.max())
            rows.append((share / share.sum()) @ values[self.seen[key]])
        return np.stack(rows)

    def bilinear(self, name: str, query: Array, other: Array, key: str) -> Array:
        return self.weigh(self.linear(f"{name}.scores", query) @ other.T / math.sqrt(WIDTH), other, key)

    def dot(self, name: str, query: Array, other: Array, key: str) -> Array:
        return self.weigh(query @ other.T / math.sqrt(WIDTH), other, key)

    def single(self, name: str, query: Array, other: Array, key: str) -> Array:
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p, x in (("q", query), ("k", other), ("v", other)))
        return self.weigh(q @ k.T / math.sqrt(WIDTH), v, key)

    def heads(self, name: str, query: Array, other: Array, key: str) -> Array:
        q, k, v = (self.linear(f"{name}.{p}_proj", x) for p, x in (("q", query), ("k", other), ("v", other)))
        size = WIDTH // HEADS
        found = []
        for head in range(HEADS):
            mine = slice(head * size, (head + 1) * size)
            theirs = slice(0, size) if k.shape[1] == size else mine
            found.append(self.weigh(q[:, mine] @ k[:, theirs].T / math.sqrt(size), v[:, theirs], key))
        return self.linear(f"{name}.out_proj", np.concatenate(found, axis=1))

    def gated(self, name: str, query: Array, other: Array, key: str) -> Array:
        attended = self.heads(
            f"{name}.attention", self.norm(f"{name}.norm", query), self.norm(f"{name}.other_norm", other), key
        )
        x = self.norm(f"{name}.feed_forward_norm", query + attended)
        gate = self.linear(f"{name}.feed_forward.gate", x)
        gate = gate * 0.5 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2)))
        return attended + self.linear(f"{name}.feed_forward.down", gate * self.linear(f"{name}.feed_forward.up", x))

    def levels(self, name: str, query: Array, other: Array, key: str) -> Array:
        seen = self.seen["text" if key == "image" else "image"]
        near, length = [], len(query)
        for place in range(length):
            around = [x for x in (place - 1, place, place + 1) if 0 <= x < length and seen[x]]
            near.append(query[around].mean(0) if around else np.zeros(WIDTH))
        whole = np.repeat(query[seen].mean(0)[None], length, axis=0)
        queries = {"place": query, "neighbourhood": np.stack(near), "whole": whole}
        found = [self.heads(f"{name}.levels.{level}", x, other, key) for level, x in queries.items()]
        return self.linear(f"{name}.merge", np.concatenate(found, axis=1))

    def run(self, mechanism: str, image: Array, text: Array) -> tuple[Array, Array]:
        image, text = self.entry("image", image), self.entry("text", text)
        if mechanism == "joint":
            return image, text
        if mechanism == "shared_matrix":
            scores = self.linear("affinity", text) @ image.T / math.sqrt(WIDTH)
            return image + self.weigh(scores.T, text, "text"), text + self.weigh(scores, image, "image")
        reading = {
            "two_way": self.bilinear,
            "normalized": self.bilinear,
            "projected": self.dot,
            "query_key_value": self.single,
            "multi_head": self.heads,
            "gated_feed_forward": self.gated,
            "multi_query": self.heads,
            "hierarchical": self.levels,
            "multi_query_hierarchical": self.levels,
            "cross_attention": self.heads,
        }[mechanism]
        new_image = image + reading("image_reads_text", image, text, "text")
        new_text = text + reading("text_reads_image", text, image, "image")
        if mechanism in ("two_way", "gated_feed_forward"):
            return new_image, new_text
        return self.norm("image_norm", new_image), self.norm("text_norm", new_text)


@pytest.mark.parametrize("mechanism", MIXING)
def test_a_mechanism_is_what_it_says(mechanism: str) -> None:
    """A batch of two with padding in both modalities, against each row computed plainly."""
    module = mixing(mechanism)
    image, text = states(2, TOKENS, IMAGE, 1), states(2, WORDS, TEXT, 2)
    image_mask, text_mask = torch.ones(2, TOKENS, dtype=torch.int64), torch.ones(2, WORDS, dtype=torch.int64)
    image_mask[0, 4:] = 0
    text_mask[1, 3:] = 0
    with torch.no_grad():
        found_image, found_text = module(image, text, text_mask, image_mask)
    for row in range(2):
        plain = Plain(module, image_mask[row].numpy(), text_mask[row].numpy())
        expected = plain.run(mechanism, image[row].double().numpy(), text[row].double().numpy())
        for found, wanted, mask in ((found_image, expected[0], image_mask), (found_text, expected[1], text_mask)):
            seen = mask[row].bool().numpy()
            np.testing.assert_allclose(found[row].numpy()[seen], wanted[seen], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mechanism", MIXING)
def test_a_padded_row_is_what_it_is_alone(mechanism: str) -> None:
    """Padding full of large numbers changes nothing, in the states that count nor in the head's logits."""
    module = mixing(mechanism)
    torch.manual_seed(1)
    head = MatchingHead(WIDTH).eval()
    image, text = states(1, TOKENS, IMAGE, 1), states(1, WORDS, TEXT, 2)
    padded_image = torch.cat([image, 50 * states(1, 3, IMAGE, 3)], dim=1)
    padded_text = torch.cat([text, 50 * states(1, 4, TEXT, 4)], dim=1)
    image_mask = torch.tensor([[1] * TOKENS + [0] * 3])
    text_mask = torch.tensor([[1] * WORDS + [0] * 4])
    with torch.no_grad():
        alone = module(image, text)
        padded = module(padded_image, padded_text, text_mask, image_mask)
        logits, padded_logits = head(*alone, None, None), head(*padded, image_mask, text_mask)
        blind = module(padded_image, padded_text)
    torch.testing.assert_close(padded[0][:, :TOKENS], alone[0], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(padded[1][:, :WORDS], alone[1], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(padded_logits, logits, rtol=0, atol=TOLERANCE)
    if mechanism != "joint":  # the only one in which nothing is read before the head
        assert (blind[1][:, :WORDS] - alone[1]).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("mechanism", CROSS_ATTENDED)
def test_each_modality_learns_of_the_other(mechanism: str) -> None:
    module = mixing(mechanism)
    image, text = states(1, TOKENS, IMAGE, 1), states(1, WORDS, TEXT, 2)
    with torch.no_grad():
        first = module(image, text)
        other_text, other_image = module(image, text + 1), module(image + 1, text)
    assert (other_text[0] - first[0]).abs().max() > 1e-3
    assert (other_image[1] - first[1]).abs().max() > 1e-3


def test_the_two_directions_share_a_matrix_or_do_not() -> None:
    """The affinities of the shared matrix, softmaxed both ways, come from one W; the others have one for each direction."""
    shared = [name for name, _ in mixing("shared_matrix").named_parameters() if "weight" in name and "_in" not in name]
    assert shared == ["affinity.weight"]
    own = {name for name, _ in mixing("two_way").named_parameters() if "_in" not in name}
    assert own == {"text_reads_image.scores.weight", "image_reads_text.scores.weight"}


def test_multi_query_heads_share_keys_and_values() -> None:
    shapes = {name: tuple(value.shape) for name, value in mixing("multi_query").named_parameters()}
    assert shapes["text_reads_image.k_proj.weight"] == (WIDTH // HEADS, WIDTH)
    assert shapes["text_reads_image.q_proj.weight"] == (WIDTH, WIDTH)
    deep = {name: tuple(value.shape) for name, value in mixing("multi_query_hierarchical").named_parameters()}
    levels = {name.split(".")[2] for name in deep if name.endswith("v_proj.weight")}
    assert levels == {"place", "neighbourhood", "whole"}
    assert all(shape == (WIDTH // HEADS, WIDTH) for name, shape in deep.items() if name.endswith("v_proj.weight"))


def test_multi_head_attention_is_torchs() -> None:
    """Against torch's own multi-head attention, with the same weights and a mask."""
    module = mixing("multi_head", image_width=WIDTH, text_width=WIDTH)
    assert isinstance(module, MultiHead)
    ours: nn.Module = module.text_reads_image
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    names = ("q_proj", "k_proj", "v_proj")
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.get_parameter(f"{name}.weight") for name in names]))
        theirs.in_proj_bias.copy_(torch.cat([ours.get_parameter(f"{name}.bias") for name in names]))
        theirs.out_proj.load_state_dict(ours.get_submodule("out_proj").state_dict())
        image, text = states(2, TOKENS, WIDTH, 1), states(2, WORDS, WIDTH, 2)
        mask = torch.tensor([[1] * TOKENS, [1] * 4 + [0] * 3])
        expected, _ = theirs(text, image, image, key_padding_mask=mask == 0)
        found = module(image, text, None, mask)[1]
        torch.testing.assert_close(found, module.text_norm(text + expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_neighbourhoods_at_the_edges(length: int) -> None:
    values = torch.arange(1.0, length + 1)[None, :, None]
    found = neighbourhood_mean(values, None, 2)[0, :, 0].tolist()
    expected = [np.mean([x + 1 for x in range(p - 2, p + 3) if 0 <= x < length]) for p in range(length)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_coordinated_embeddings_are_apart_and_of_length_one() -> None:
    module = build("coordinated")
    assert isinstance(module, Coordinated)
    text = states(2, WORDS, TEXT, 2)
    mask = torch.tensor([[1] * WORDS, [1, 1, 0, 0, 0]])
    with torch.no_grad():
        found = module.embed_text(text, mask).double().numpy()
        images = module.embed_image(states(3, TOKENS, IMAGE, 1))
    weight = module.text_projection.weight.detach().double().numpy()
    for row, words in enumerate((WORDS, 2)):
        projected = text[row, :words].double().numpy().mean(0) @ weight.T
        np.testing.assert_allclose(found[row], projected / np.linalg.norm(projected), atol=TOLERANCE)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    fresh = build_fusion(FusionConfig(mechanism=COORDINATED, image_width=1, text_width=1, width=4))
    assert isinstance(fresh, Coordinated)
    assert float(fresh.scale().detach()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_states_of_the_right_width_come_in_as_they_are() -> None:
    """Only joint, projected and cross_attention project a modality whose width already fits."""
    projecting = {
        name for name in MIXING if any("image_in" in each for each in mixing(name, image_width=WIDTH).state_dict())
    }
    assert projecting == {"joint", "projected", "cross_attention"}


def test_wrong_configurations_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="mechanism 'gated' is unknown; use one of coordinated, joint, two_way"):
        build_fusion(FusionConfig(mechanism="gated", image_width=1, text_width=1, width=4))
    with pytest.raises(ConfigError, match="width 10 is not a multiple of 4 heads"):
        FusionConfig(mechanism="joint", image_width=1, text_width=1, width=10)
    with pytest.raises(ConfigError, match="temperature is 0"):
        FusionConfig(mechanism="joint", image_width=1, text_width=1, width=4, temperature=0.0)
