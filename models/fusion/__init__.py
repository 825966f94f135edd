"""Fusion mechanisms by name: a family names one, and builds it from one configuration."""

from __future__ import annotations

from edgevqa.models.fusion.base import Fusion
from edgevqa.models.fusion.config import FusionConfig
from edgevqa.models.fusion.coordinated import Coordinated
from edgevqa.models.fusion.cross_attention import CrossAttention
from edgevqa.models.fusion.gated_feed_forward import GatedPreNorm
from edgevqa.models.fusion.hierarchical import Hierarchical
from edgevqa.models.fusion.joint import Joint
from edgevqa.models.fusion.matching import MatchingHead
from edgevqa.models.fusion.multi_head import MultiHead
from edgevqa.models.fusion.multi_query import MultiQuery
from edgevqa.models.fusion.multi_query_hierarchical import MultiQueryHierarchical
from edgevqa.models.fusion.normalized import Normalized
from edgevqa.models.fusion.projected import Projected
from edgevqa.models.fusion.query_key_value import QueryKeyValue
from edgevqa.models.fusion.shared_matrix import SharedMatrix
from edgevqa.models.fusion.two_way import TwoWay
from edgevqa.runtime.errors import ConfigError

__all__ = [
    "COORDINATED",
    "CROSS_ATTENDED",
    "FUSIONS",
    "Coordinated",
    "CrossAttention",
    "Fusion",
    "FusionConfig",
    "MatchingHead",
    "build_fusion",
    "check_mechanism",
]

COORDINATED = "coordinated"
CROSS_ATTENDED: dict[str, type[Fusion]] = {
    "two_way": TwoWay,
    "shared_matrix": SharedMatrix,
    "normalized": Normalized,
    "projected": Projected,
    "query_key_value": QueryKeyValue,
    "multi_head": MultiHead,
    "gated_feed_forward": GatedPreNorm,
    "multi_query": MultiQuery,
    "hierarchical": Hierarchical,
    "multi_query_hierarchical": MultiQueryHierarchical,
    "cross_attention": CrossAttention,
}
"""Mechanisms in which picture and text read each other."""

FUSIONS: dict[str, type[Fusion] | type[Coordinated]] = {COORDINATED: Coordinated, "joint": Joint, **CROSS_ATTENDED}
"""Every mechanism. All but `coordinated`, which embeds each modality by itself, are `Fusion`s."""


def check_mechanism(name: str) -> None:
    """Raises `ConfigError` that names the known mechanisms."""
    if name not in FUSIONS:
        raise ConfigError(f"The fusion mechanism '{name}' is unknown; use one of {', '.join(FUSIONS)}.")


def build_fusion(config: FusionConfig) -> Fusion | Coordinated:
    """The module of `config.mechanism`, with random weights. Raises `ConfigError` for one that is unknown."""
    check_mechanism(config.mechanism)
    return FUSIONS[config.mechanism](config)
