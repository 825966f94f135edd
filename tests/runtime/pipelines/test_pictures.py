"""One picture, or several that a question is about together."""

from __future__ import annotations

import numpy as np
import pytest

from edgevqa.runtime.errors import ConfigError, ImageError
from edgevqa.runtime.manifest import ImageSpec
from edgevqa.runtime.pipelines.pictures import join_prepared, load_pictures
from edgevqa.runtime.pipelines.positions import place
from edgevqa.runtime.preprocessing import Prepared

IMAGE = 9
ONE = ImageSpec(height=4, width=4, resize=None, resample="bicubic", crop=None, rescale_factor=None, mean=None, std=None)
SEVERAL = ImageSpec(
    height=4,
    width=4,
    resize=None,
    resample="bicubic",
    crop=None,
    rescale_factor=None,
    mean=None,
    std=None,
    separator=[],
)
PIXELS = 1 << 20


def shade(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, dtype=np.uint8)


def test_several_pictures_are_one_with_a_key_of_its_own() -> None:
    both = load_pictures([shade(1), shade(2)], SEVERAL, max_pixels=PIXELS)
    turned = load_pictures((shade(2), shade(1)), SEVERAL, max_pixels=PIXELS)
    alone = load_pictures(shade(1), SEVERAL, max_pixels=PIXELS)
    assert [int(part.rgb[0, 0, 0]) for part in both.parts] == [1, 2]
    assert len({both.key, turned.key, alone.key}) == 3
    assert both.parts[0].key == alone.key
    assert not alone.parts


def test_a_list_of_one_is_that_picture() -> None:
    assert load_pictures([shade(1)], ONE, max_pixels=PIXELS).key == load_pictures(shade(1), ONE, max_pixels=PIXELS).key


@pytest.mark.parametrize("spec", [ONE, None])
def test_a_model_of_one_picture_refuses_several(spec: ImageSpec | None) -> None:
    with pytest.raises(ConfigError, match="about 2 pictures was asked; the bundle's model takes one"):
        load_pictures([shade(1), shade(2)], spec, max_pixels=PIXELS)


def test_an_empty_list_and_what_is_no_picture_are_refused() -> None:
    with pytest.raises(ConfigError, match="list of pictures is empty"):
        load_pictures([], SEVERAL, max_pixels=PIXELS)
    with pytest.raises(ImageError, match="given as int"):
        load_pictures([shade(1), 3], SEVERAL, max_pixels=PIXELS)  # type: ignore[list-item]


def test_pictures_stand_one_after_the_other_in_a_prompt() -> None:
    first = Prepared(inputs={"pixel_values": np.zeros(1)}, grid=(1, 1, 2))
    second = Prepared(inputs={}, expansion=(5, IMAGE, IMAGE, 6), grid=(1, 2, 1))
    joined = join_prepared([(first, 2), (second, 2), (first, 2)], separator=(7, 8), image_token=IMAGE)
    assert joined.expansion == (IMAGE, IMAGE, 7, 8, 5, IMAGE, IMAGE, 6, 7, 8, IMAGE, IMAGE)
    assert joined.grids == ((1, 1, 2), (1, 2, 1), (1, 1, 2))
    assert not joined.inputs


def test_each_picture_has_positions_of_its_own_grid() -> None:
    positions, following = place((1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3), IMAGE, ((1, 1, 2), (1, 2, 1)))
    np.testing.assert_array_equal(positions, [[0, 1, 1, 3, 4, 4, 6], [0, 1, 1, 3, 4, 5, 6], [0, 1, 2, 3, 4, 4, 6]])
    assert following == 7
