"""Multi-query and hierarchical: three levels, in each of which the query heads share one head of keys and values."""

from __future__ import annotations

from edgevqa.models.fusion.hierarchical import Hierarchical


class MultiQueryHierarchical(Hierarchical):
    """As `Hierarchical`, with one key and value head a level."""

    key_heads = 1
