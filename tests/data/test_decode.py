"""One picture: every geometry, order and kind of pixel by hand, and what a broken file is told."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit.data import decode
from edgekit.data.decode import Decoding, check_picture, covering, letterboxed, read_pixels
from edgekit.errors import InputError
from edgekit.values import Array


def decoding(height: int, width: int, **changes: Any) -> Decoding:
    options: dict[str, Any] = {
        "channels": 3, "resize": "stretch", "crop_share": 1.0, "fill": 114,
        "interpolation": "nearest", "order": "rgb", "layout": "nhwc",
    }  # fmt: skip
    return Decoding(height=height, width=width, **(options | changes))


def coloured(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def saved(folder: Path, pixels: Array, name: str = "picture.png", **options: Any) -> Path:
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def refusal(path: Path, **changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read_pixels(path, decoding(2, 2, **changes))
    assert caught.value.where == str(path)
    return caught.value


def test_a_picture_of_the_size_wanted_comes_as_it_is(tmp_path: Path) -> None:
    pixels = coloured(3, 5)
    found = read_pixels(saved(tmp_path, pixels), decoding(3, 5))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tiff", "png"])
def test_every_lossless_format_gives_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    pixels = coloured(4, 6)
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, pixels, f"picture.{suffix}", **options)
    assert np.array_equal(read_pixels(path, decoding(4, 6)), pixels)


def test_a_jpeg_is_near_what_was_saved(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    path = saved(tmp_path, pixels, "picture.jpg", quality=95)
    assert np.abs(read_pixels(path, decoding(16, 16)).astype(int) - pixels).max() <= 3


def test_the_content_says_what_a_file_is_not_its_name(tmp_path: Path) -> None:
    pixels = coloured(2, 2)
    path = saved(tmp_path, pixels, "picture.png").rename(tmp_path / "picture.jpg")
    assert np.array_equal(read_pixels(path, decoding(2, 2)), pixels)


def test_order_and_layout_by_hand(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    found = {
        (order, layout): read_pixels(path, decoding(1, 2, order=order, layout=layout)).tolist()
        for order in ("rgb", "bgr")
        for layout in ("nchw", "nhwc")
    }
    assert found["rgb", "nhwc"] == [[[1, 2, 3], [4, 5, 6]]]
    assert found["bgr", "nhwc"] == [[[3, 2, 1], [6, 5, 4]]]
    assert found["rgb", "nchw"] == [[[1, 4]], [[2, 5]], [[3, 6]]]
    assert found["bgr", "nchw"] == [[[3, 6]], [[2, 5]], [[1, 4]]]


# EXIF 2.32, 4.6.4: where the 0th row and the 0th column of what is stored are to be seen. So the
# picture as seen is made of the stored one by these.
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,  # row 0 at the top, column 0 on the left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: np.rot90(a, 2),  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: np.rot90(a, -1),  # right, top
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),  # right, bottom
    8: lambda a: np.rot90(a, 1),  # left, bottom
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_the_exif_is_applied(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored = coloured(2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, stored, f"picture.{suffix}", exif=exif, **options)
    expected = UPRIGHT[orientation](stored)
    found = read_pixels(path, decoding(*expected.shape[:2]))
    assert np.array_equal(found, expected)


def test_a_jpeg_from_a_camera_held_upright_is_turned(tmp_path: Path) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, stored, "picture.jpg", exif=exif, quality=95)
    found = read_pixels(path, decoding(32, 16)).astype(int)
    assert found[:16].max() < 40
    assert found[16:].min() > 215


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01"]
)
def test_a_picture_with_a_broken_exif_is_shown_as_it_lies(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path, np.zeros((8, 8, 3), np.uint8), "picture.jpg", exif=exif)
    with decode.quiet():
        assert read_pixels(path, decoding(8, 8)).max() == 0


def test_stretched_pixels_are_repeated_by_the_nearest_filter(tmp_path: Path) -> None:
    pixels = coloured(2, 3)
    found = read_pixels(saved(tmp_path, pixels), decoding(4, 9))
    assert np.array_equal(found, pixels.repeat(2, 0).repeat(3, 1))


def test_the_area_filter_is_the_mean_of_what_a_pixel_covers(tmp_path: Path) -> None:
    pixels = (coloured(4, 6) // 4 * 4).astype(np.uint8)
    found = read_pixels(saved(tmp_path, pixels), decoding(2, 3, interpolation="area"))
    means = pixels.reshape(2, 2, 3, 2, 3).astype(float).mean((1, 3))
    assert np.abs(found - means).max() <= 1  # Pillow rounds once along each axis


def test_the_bilinear_filter_is_antialiased(tmp_path: Path) -> None:
    """Down by 2, the triangle has the weights 1, 3, 3, 1 over 8; at an edge what is left of it."""
    row = np.array([0, 80, 160, 240, 80, 0], np.uint8)
    path = saved(tmp_path, np.broadcast_to(row[None, :, None], (1, 6, 3)).copy())
    found = read_pixels(path, decoding(1, 3, interpolation="bilinear"))[0, :, 0]
    expected = [
        (3 * 0 + 3 * 80 + 160) / 7, (80 + 3 * 160 + 3 * 240 + 80) / 8, (240 + 3 * 80 + 0) / 7
    ]  # fmt: skip
    assert found.tolist() == [round(value) for value in expected]


def test_the_bicubic_filter_overshoots_at_an_edge_where_the_others_do_not(tmp_path: Path) -> None:
    row = np.array([50] * 4 + [200] * 4, np.uint8)
    path = saved(tmp_path, np.broadcast_to(row[None, :, None], (1, 8, 3)).copy())
    lows = {
        name: int(read_pixels(path, decoding(1, 32, interpolation=name)).min())
        for name in ("bicubic", "bilinear", "nearest", "area")
    }
    assert lows["bicubic"] < 50
    assert {lows[name] for name in ("bilinear", "nearest", "area")} == {50}


def test_letterbox_centres_the_picture_and_fills_the_rest(tmp_path: Path) -> None:
    pixels = coloured(1, 2)
    found = read_pixels(saved(tmp_path, pixels), decoding(4, 4, resize="letterbox", fill=7))
    assert np.array_equal(found[1:3], pixels.repeat(2, 0).repeat(2, 1))
    assert (found[[0, 3]] == 7).all()


def test_letterbox_of_a_high_picture_has_bars_at_the_sides(tmp_path: Path) -> None:
    pixels = coloured(4, 1)
    found = read_pixels(saved(tmp_path, pixels), decoding(4, 4, resize="letterbox"))
    assert np.array_equal(found[:, 1:2], pixels)
    assert (found[:, [0, 2, 3]] == 114).all()


def test_letterbox_of_the_same_proportions_has_no_bars(tmp_path: Path) -> None:
    pixels = coloured(2, 3)
    found = read_pixels(saved(tmp_path, pixels), decoding(4, 6, resize="letterbox"))
    assert np.array_equal(found, pixels.repeat(2, 0).repeat(2, 1))


def test_crop_resizes_the_shorter_side_and_takes_the_middle(tmp_path: Path) -> None:
    pixels = coloured(2, 6)
    found = read_pixels(saved(tmp_path, pixels), decoding(4, 4, resize="crop"))
    assert np.array_equal(found, pixels[:, 2:4].repeat(2, 0).repeat(2, 1))


def test_a_crop_share_leaves_a_border_out(tmp_path: Path) -> None:
    pixels = coloured(8, 8)
    path = saved(tmp_path, pixels)
    found = read_pixels(path, decoding(7, 7, resize="crop", crop_share=0.875))
    assert np.array_equal(found, pixels[:7, :7])  # round(0.5) is 0, as torchvision's CenterCrop
    found = read_pixels(path, decoding(6, 6, resize="crop", crop_share=0.75))
    assert np.array_equal(found, pixels[1:7, 1:7])


@pytest.mark.parametrize(
    ("size", "wanted", "share", "expected"),
    [
        ((500, 375), (224, 224), 0.875, (341, 256)),  # 500 * 256 / 375 = 341.33
        ((375, 500), (224, 224), 0.875, (256, 341)),
        ((100, 100), (224, 224), 1.0, (224, 224)),
        ((640, 480), (320, 160), 1.0, (320, 240)),
        ((100, 300), (320, 160), 1.0, (320, 960)),
        ((224, 224), (224, 224), 0.9, (249, 249)),  # 248.89
    ],
)
def test_what_is_cropped_covers_the_size(
    size: tuple[int, int], wanted: tuple[int, int], share: float, expected: tuple[int, int]
) -> None:
    assert covering(size, wanted, share) == expected


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        ((1280, 720), (640, 640), (640, 360)),
        ((720, 1280), (640, 640), (360, 640)),
        ((500, 375), (640, 480), (640, 480)),
        ((1000, 1), (10, 10), (10, 1)),
        ((810, 1080), (640, 640), (480, 640)),
    ],
)
def test_what_is_letterboxed_lies_within_the_size(
    size: tuple[int, int], wanted: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert letterboxed(size, wanted) == expected


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    wanted=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    share=st.floats(0.3, 1.0),
)
def test_one_side_fits_exactly_and_the_other_does_not_fall_short(
    size: tuple[int, int], wanted: tuple[int, int], share: float
) -> None:
    inner = letterboxed(size, wanted)
    assert any(i == w for i, w in zip(inner, wanted, strict=True))
    assert all(1 <= i <= w for i, w in zip(inner, wanted, strict=True))
    outer, least = covering(size, wanted, share), [round(side / share) for side in wanted]
    assert any(o == w for o, w in zip(outer, least, strict=True))
    assert all(o >= w for o, w in zip(outer, wanted, strict=True))


def test_grey_weighs_the_colours_as_itu_r_601(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 30]]], np.uint8)
    found = read_pixels(saved(tmp_path, pixels), decoding(1, 4, channels=1))
    assert found.shape == (1, 4, 1)
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found[..., 0] - expected).max() <= 0.51


def test_grey_pictures_have_three_equal_channels(tmp_path: Path) -> None:
    pixels = coloured(2, 3)[..., 0]
    found = read_pixels(saved(tmp_path, pixels), decoding(2, 3))
    assert np.array_equal(found, np.stack([pixels] * 3, -1))


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    pixels = np.array([[0, 257, 128, 129, 32896, 65535]], np.uint16)
    for name in ("picture.png", "picture.tiff"):
        found = read_pixels(saved(tmp_path, pixels, name), decoding(1, 6, channels=1))
        assert found[0, :, 0].tolist() == [0, 1, 0, 1, 128, 255]  # v / 257, rounded


def test_big_endian_sixteen_bits_are_the_same_numbers(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 257, 65535], ">u2").tobytes())
    image.save(tmp_path / "picture.tiff")
    found = read_pixels(tmp_path / "picture.tiff", decoding(1, 3, channels=1))
    assert found[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_pixel_keeps_its_colour(tmp_path: Path, mode: str) -> None:
    colour = (10, 20, 30) if mode == "RGBA" else (25,)
    image = Image.new(mode, (2, 1), (*colour, 255))
    image.putpixel((1, 0), (*colour, 0))
    image.save(tmp_path / "picture.png")
    found = read_pixels(tmp_path / "picture.png", decoding(1, 2))
    assert found.tolist() == [[list(colour * (3 // len(colour)))] * 2]


def test_a_palette_is_looked_up_also_where_it_has_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3])
    image.putdata([1, 0, 2])
    image.save(tmp_path / "picture.png", transparency=bytes([0, 255, 128]))
    found = read_pixels(tmp_path / "picture.png", decoding(1, 3))
    assert found.tolist() == [[[60, 50, 40], [9, 8, 7], [1, 2, 3]]]


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "picture.png")
    found = read_pixels(tmp_path / "picture.png", decoding(1, 4, channels=1))
    assert found[0, :, 0].tolist() == [0, 0, 255, 255]


def test_cmyk_becomes_colour(tmp_path: Path) -> None:
    """R = 255 - C where there is no black, and so on."""
    Image.new("CMYK", (2, 2), (255, 55, 0, 0)).save(tmp_path / "picture.tiff")
    found = read_pixels(tmp_path / "picture.tiff", decoding(2, 2))
    assert (found == (0, 200, 255)).all()


def test_pixels_of_an_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "picture.tiff")
    assert "mode F" in refusal(tmp_path / "picture.tiff").got


def a_png(width: int, height: int) -> bytes:
    """A picture whose head claims that size, and which has next to nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(a_png(*size))

    def load(self: Image.Image) -> None:
        pytest.fail("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with decode.quiet(), pytest.raises(InputError) as caught:
        check_picture(path)
    assert caught.value.what == "this picture is too large to be decoded"
    assert caught.value.where == str(path)


def test_the_limit_is_a_picture_of_a_quarter_gigabyte() -> None:
    assert decode.MOST_PIXELS * 3 <= 2**28
    assert decode.MOST_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_a_pixel_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "nothing.png"
    path.write_bytes(a_png(*size))
    with pytest.raises(InputError) as caught:
        check_picture(path)
    assert caught.value.where == str(path)


def test_a_thin_strip_is_not_blown_up_by_cropping(tmp_path: Path) -> None:
    path = saved(tmp_path, np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        read_pixels(path, decoding(224, 224, resize="crop"))
    assert "60000 x 1" in caught.value.got
    assert "letterbox" in caught.value.hint


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_picture_that_was_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, coloured(64, 64), f"picture.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be read" in refusal(path).what


def test_a_file_that_is_no_picture_is_refused_by_its_head(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not a picture")
    with pytest.raises(InputError) as caught:
        check_picture(path)
    assert caught.value.got == "no picture of these kinds"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        check_picture(path)
    assert caught.value.got == "an empty file"


def test_a_gif_is_not_opened_whatever_its_name(tmp_path: Path) -> None:
    Image.new("P", (2, 2)).save(tmp_path / "picture.gif")
    path = (tmp_path / "picture.gif").rename(tmp_path / "picture.png")
    assert refusal(path).got == "no picture of these kinds"


def test_a_picture_that_went_away_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone.png").what == "this picture is gone"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, coloured(2, 2))
    path.chmod(0)
    assert refusal(path).what == "this picture may not be read"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(["png", "jpeg", "webp", "bmp", "tiff"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 10**6),
)
def test_damaged_bytes_give_pixels_or_one_clear_error(
    tmp_path: Path, suffix: str, changes: list[tuple[int, int]], cut: int
) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(coloured(9, 7)).save(stream, suffix, exif=exif)
    content = bytearray(stream.getvalue())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / f"picture.{suffix}"
    path.write_bytes(content[: len(content) - cut % len(content) if cut % 2 else None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(InputError):
            assert read_pixels(path, decoding(4, 4)).shape == (4, 4, 3)
