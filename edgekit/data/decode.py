"""One picture file as uint8 pixels of one size: the only user of Pillow.

What is not looked at: embedded colour profiles (the numbers are taken as sRGB), and all but the
first picture of a file that holds several.
"""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from edgekit.errors import InputError, ResourceError
from edgekit.values import Array, Interpolation, Layout, Order, Resize

# The plugins are named so that they are loaded once, and no other format is ever tried.
_FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile, TiffImagePlugin.TiffImageFile,
    )
)  # fmt: skip

MOST_PIXELS = 2**30 // 12
"""Of one picture: a quarter of a gigabyte in RGB, where Pillow itself begins to warn."""

# What Pillow's readers raise over damaged bytes.
_UNREADABLE = (
    OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, ArithmeticError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
}

_ORIENTATION = 0x0112
# EXIF 2.32, 4.6.4, tag Orientation: what brings a picture that was stored so upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Every mode whose range is known; RGB and grey come from them by Pillow's own conversion.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What every picture of a set becomes: uint8 pixels of one size, order and layout.

    The fields mean what they mean in `values.Preprocessing`; `channels` is 3, or 1 for grey.
    """

    height: int
    width: int
    channels: int
    resize: Resize
    crop_share: float
    fill: int
    interpolation: Interpolation
    order: Order
    layout: Layout

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one picture: (c, h, w) or (h, w, c)."""
        if self.layout == "nchw":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what Pillow warns of: what matters here is an error, or is checked.

    For the thread that starts others, since a filter of warnings is everybody's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_picture(path: Path) -> None:
    """Reads the head of the file only. Raises InputError for what is no picture, or too large."""
    with _opened(path):
        pass


def read_pixels(path: Path, decoding: Decoding) -> Array:
    """The picture as uint8, upright and of the size wanted: (c, h, w) or (h, w, c).

    Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601). Transparency is dropped: a transparent
    pixel keeps the colour that is stored for it. 16 bits of grey become 8. Raises InputError for a
    file that is damaged or cut short, and for pixels whose range nobody knows.
    """
    with _opened(path) as image, _translated(path):
        image.load()
        upright = _upright(image)
        pixels = _resized(_converted(upright, decoding.channels, path), decoding, path)
    found = np.asarray(pixels).reshape(decoding.height, decoding.width, decoding.channels)
    if decoding.order == "bgr":
        found = found[:, :, ::-1]
    return found.transpose(2, 0, 1) if decoding.layout == "nchw" else found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, of which only the head has been read; its size is checked."""
    with _translated(path):
        image = Image.open(path, formats=_FORMATS)
    with image:
        width, height = image.size
        if not width or not height:
            raise InputError(
                "this picture has no pixel", where=str(path), got=f"{width} x {height}"
            )
        if width * height > MOST_PIXELS:
            raise _too_large(path, f"{width} x {height}")
        yield image


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error).split(" exceeds")[0]) from error
    except MemoryError as error:
        raise ResourceError("a picture does not fit into memory", where=str(path)) from error
    except FileNotFoundError as error:
        raise InputError("this picture is gone", where=str(path)) from error
    except PermissionError as error:
        raise InputError("this picture may not be read", where=str(path)) from error
    except _UNREADABLE as error:
        raise InputError(
            "this picture cannot be read", where=str(path), got=_reason(error, path),
            wanted=f"a whole {', '.join(_FORMATS)} file",
            hint="Put a sound copy in its place, or take it out.",
        ) from error  # fmt: skip


def _reason(error: Exception, path: Path) -> str:
    if not path.stat().st_size:
        return "an empty file"
    if isinstance(error, UnidentifiedImageError):
        return "no picture of these kinds"
    return f"{type(error).__name__}: {error}"


def _too_large(path: Path, got: str) -> InputError:
    return InputError(
        "this picture is too large to be decoded", where=str(path), got=got,
        wanted=f"at most {MOST_PIXELS:,} pixels", hint="Shrink it: the model sees far less.",
    )  # fmt: skip


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation wants it seen."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _UNREADABLE:  # a broken note about the picture: viewers show the picture as it lies
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _converted(image: Image.Image, channels: int, path: Path) -> Image.Image:
    """The picture in the mode RGB or L."""
    if image.mode in _SIXTEEN_BITS:
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode not in _MODES:
        raise InputError(
            "nobody knows the range of this picture's pixels", where=str(path),
            got=f"Pillow's mode {image.mode}", wanted="grey, colour, palette or CMYK",
            hint="Save it with 8 bits a channel.",
        )  # fmt: skip
    if image.mode in ("P", "PA", "RGBa", "La"):
        # Straight to RGB, Pillow warns of a palette's transparency, and does not know the others.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if channels == 1:
        grey = image if image.mode in ("1", "L", "LA") else image.convert("RGB")
        return grey.convert("L")
    return image.convert("RGB")


def _resized(image: Image.Image, decoding: Decoding, path: Path) -> Image.Image:
    """The picture in the size wanted; geometry as in `values.Preprocessing`."""
    wanted = (decoding.width, decoding.height)
    if decoding.resize == "stretch":
        return _scaled(image, wanted, decoding, path)
    if decoding.resize == "letterbox":
        inner = letterboxed(image.size, wanted)
        canvas = Image.new(image.mode, wanted, (decoding.fill,) * decoding.channels)
        place = ((wanted[0] - inner[0]) // 2, (wanted[1] - inner[1]) // 2)
        canvas.paste(_scaled(image, inner, decoding, path), place)
        return canvas
    outer = covering(image.size, wanted, decoding.crop_share)
    left, top = (round((o - w) / 2) for o, w in zip(outer, wanted, strict=True))
    scaled = _scaled(image, outer, decoding, path)
    return scaled.crop((left, top, left + wanted[0], top + wanted[1]))


def _scaled(
    image: Image.Image, size: tuple[int, int], decoding: Decoding, path: Path
) -> Image.Image:
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(
            "this picture is too long and thin to be cropped", where=str(path),
            got=f"{image.width} x {image.height}, which becomes {size[0]} x {size[1]}",
            hint='Take it out, or ask for resize = "letterbox".',
        )  # fmt: skip
    return image.resize(size, _FILTERS[decoding.interpolation])


def letterboxed(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) in the proportions of `size` that lies within `wanted`."""
    (width, height), (most_wide, most_high) = size, wanted
    if width * most_high >= height * most_wide:
        return most_wide, max(1, round(height * most_wide / width))
    return max(1, round(width * most_high / height)), most_high


def covering(size: tuple[int, int], wanted: tuple[int, int], share: float) -> tuple[int, int]:
    """The smallest (width, height) in the proportions of `size` that covers `wanted` / `share`.

    The other side is rounded down, as torchvision's Resize does.
    """
    width, height = size
    least_wide, least_high = (round(side / share) for side in wanted)
    if width * least_high >= height * least_wide:
        return width * least_high // height, least_high
    return least_wide, height * least_wide // width
