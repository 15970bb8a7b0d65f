"""Preprocessing: its arithmetic by hand, and its way into a file's metadata and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.values import Preprocessing, preprocessing_from_json, preprocessing_to_json

FULL = Preprocessing(
    scale=0.5, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), size=(224, 320), resize="crop",
    crop_share=0.875, fill=3, interpolation="bicubic", order="bgr", layout="nhwc",
)  # fmt: skip


def test_channels_are_where_the_layout_says() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    first = Preprocessing(scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    last = Preprocessing(scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), layout="nhwc")
    found = first.apply(pixels)
    assert found.dtype == np.float32
    assert found[1, :, 0, 1].tolist() == [13 - 1, (17 - 2) / 2, (21 - 3) / 4]
    assert np.array_equal(last.apply(pixels.transpose(0, 2, 3, 1)), found.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("preprocessing", [Preprocessing(), FULL])
def test_a_preprocessing_comes_back_from_json(preprocessing: Preprocessing) -> None:
    stored = json.loads(json.dumps(preprocessing_to_json(preprocessing)))
    assert preprocessing_from_json(stored) == preprocessing


def test_a_missing_key_has_its_default_and_an_unknown_one_is_ignored() -> None:
    stored = {"scale": 1, "mean": [0], "std": [2], "colour_profile": "sRGB"}
    assert preprocessing_from_json(stored) == Preprocessing(scale=1.0, mean=(0.0,), std=(2.0,))
    assert preprocessing_from_json({}) == Preprocessing()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", 0), ("scale", "1"), ("scale", None), ("scale", True), ("scale", float("nan")),
        ("scale", 10**400), ("mean", 0.5), ("mean", []), ("mean", ["a"]), ("std", [0.0]),
        ("std", [float("inf")]), ("size", 224), ("size", [1]), ("size", [0, 2]),
        ("size", [2.0, 2]), ("size", [2, 10**6]), ("resize", "fit"), ("resize", []),
        ("crop_share", 0), ("crop_share", 1.5), ("fill", 256), ("fill", 1.0), ("fill", False),
        ("interpolation", "lanczos"), ("order", "RGB"), ("layout", "chw"), ("layout", {}),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        preprocessing_from_json({key: value})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(vars(FULL))), inner),
    )
)
def test_whatever_is_stored_is_a_preprocessing_or_a_value_error(stored: Any) -> None:
    try:
        found = preprocessing_from_json(stored)
    except ValueError:
        return
    assert preprocessing_from_json(preprocessing_to_json(found)) == found
