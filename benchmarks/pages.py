"""Pictures and rendered pages for three real networks: text detection, recognition, direction.

    python benchmarks/pages.py WHEELS RAPIDOCR OUT [--seed 0] [--quick]

WHEELS is a folder with the unzipped wheels of scikit-image, scikit-learn and matplotlib: their
pictures, their fonts (DejaVu, STIX), and their descriptions, which are the texts. RAPIDOCR is the
unzipped wheel of rapidocr-onnxruntime, whose three networks are meant:

    for name in scikit-image scikit-learn matplotlib rapidocr-onnxruntime; do
        pip download --no-deps $name && unzip -q -o ${name//-/_}-*.whl; done

OUT gets {det,rec,cls}.onnx (opset 17, simplified, height and width fixed, the batch left open) and
{det,rec,cls}-{calib,eval}.npz: the network's input by its name, float32 (n, 3, h, w); for `cls`
also `labels`, 1 where the line stands on its head, and for `rec` `texts`, what each line says.
Calibration and evaluation come from different pictures and different texts, and everything from
one seed. `--quick` makes 4 samples of each.

The networks take BGR in -1..1. A line of text is brought to a height of 48 and padded with 0 on the
right, a page to 480x480.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgekit import files
from edgekit.engines.onnxruntime import open_model
from edgekit.models.model import Model, after_step, editable, save, to_bytes
from edgekit.models.opset import converted
from edgekit.models.simplify import clean, simplify
from edgekit.models.source import from_bytes, load
from edgekit.values import Array, run

OPSET = 17
# File, height and width, samples to calibrate with and to judge on. Of two classes a few lines are
# near even, and decide what a hundred of them give: hence more.
NETWORKS = {
    "det": ("ch_PP-OCRv4_det_infer.onnx", (480, 480), (24, 24)),
    "rec": ("ch_PP-OCRv4_rec_infer.onnx", (48, 320), (64, 128)),
    "cls": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192), (64, 512)),
}
_SKIMAGE, _SKLEARN = Path("skimage", "data"), Path("sklearn", "datasets", "images")
PICTURES = {
    "calib": [_SKIMAGE / name for name in (
        "astronaut.png", "brick.png", "camera.png", "coffee.png", "color.png", "grass.png",
        "motorcycle_left.png", "page.png", "retina.jpg",
    )] + [_SKLEARN / "china.jpg"],
    "eval": [_SKIMAGE / name for name in (
        "cell.png", "chelsea.png", "clock_motion.png", "coins.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "rocket.jpg", "text.png",
    )] + [_SKLEARN / "flower.jpg"],
}  # fmt: skip
TEXTS = {"calib": "scikit_image-*/METADATA", "eval": "scikit_learn-*/METADATA"}
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-BoldItalic", "DejaVuSansMono",
    "STIXGeneral", "STIXGeneralBol",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What one set is made of: pictures, words, fonts, and the dice."""

    pictures: list[Image.Image]
    words: list[str]
    fonts: list[Path]
    dice: np.random.Generator

    def font(self, least: int, most: int) -> ImageFont.FreeTypeFont:
        path = self.fonts[self.dice.integers(len(self.fonts))]
        return ImageFont.truetype(str(path), int(self.dice.integers(least, most + 1)))

    def phrase(self, least: int, most: int) -> str:
        """Some words that follow one another in the text, at times a number behind them."""
        count = int(self.dice.integers(least, most + 1))
        at = int(self.dice.integers(len(self.words) - count))
        words = self.words[at : at + count]
        if self.dice.random() < 0.25:
            words = [*words[: count - 1], f"{self.dice.integers(1, 10**5) / 100:.2f}"]
        return " ".join(words)

    def crop(self, width: int, height: int) -> Image.Image:
        """A part of a picture, at most magnified to fit, mirrored by chance."""
        picture = self.pictures[self.dice.integers(len(self.pictures))]
        scale = max(width / picture.width, height / picture.height)
        scale *= float(self.dice.uniform(1.0, 1.5))
        picture = picture.resize(
            (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
        )
        left = int(self.dice.integers(picture.width - width + 1))
        top = int(self.dice.integers(picture.height - height + 1))
        return picture.crop((left, top, left + width, top + height))

    def colours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Paper and ink that differ: dark on light three times of four."""
        light = tuple(int(c) for c in self.dice.integers(170, 256, 3))
        dark = tuple(int(c) for c in self.dice.integers(0, 90, 3))
        return (light, dark) if self.dice.random() < 0.75 else (dark, light)


def stock(wheels: Path, part: str, seed: int) -> Stock:
    text = next(wheels.glob(TEXTS[part])).read_text(encoding="utf-8")
    body = text.split("\n\n", 1)[1]
    words = [w for w in body.split() if re.fullmatch(r"[A-Za-z0-9.,:;()'%-]{1,14}", w)]
    fonts = wheels / "matplotlib" / "mpl-data" / "fonts" / "ttf"
    return Stock(
        pictures=[Image.open(wheels / path).convert("RGB") for path in PICTURES[part]],
        words=words, fonts=[fonts / f"{name}.ttf" for name in FONTS],
        dice=np.random.default_rng([seed, *part.encode()]),
    )  # fmt: skip


def page(made_of: Stock, size: int) -> Image.Image:
    """Lines of text on paper or on a picture, a little turned, with the noise of a camera."""
    dice = made_of.dice
    paper, ink = made_of.colours()
    on_picture = dice.random() < 0.5
    sheet = made_of.crop(size, size) if on_picture else Image.new("RGB", (size, size), paper)
    pen = ImageDraw.Draw(sheet)
    top = int(dice.integers(8, 60))
    while top < size - 30 and not (on_picture and dice.random() < 0.2):
        font = made_of.font(12, 34)
        left = int(dice.integers(4, 120))
        pen.text((left, top), made_of.phrase(1, 7), fill=ink, font=font)
        top += int(font.size * dice.uniform(1.1, 3.0 if on_picture else 1.8))
    if not on_picture and dice.random() < 0.4:
        width = int(dice.integers(size // 4, size // 2))
        sheet.paste(made_of.crop(width, width), (size - width - 8, size - width - 8))
    turned = sheet.rotate(float(dice.normal(0, 1.5)), Image.Resampling.BILINEAR, fillcolor=paper)
    return worn(turned, dice)


def line(made_of: Stock, words: tuple[int, int]) -> tuple[Image.Image, str]:
    """One line of text as a detector cuts it out, and what it says."""
    dice = made_of.dice
    paper, ink = made_of.colours()
    text, font = made_of.phrase(*words), made_of.font(22, 44)
    left, top, right, bottom = font.getbbox(text)
    margins = dice.integers(2, 9, 4)
    size = (int(right - left + margins[:2].sum()), int(bottom - top + margins[2:].sum()))
    strip = Image.new("RGB", size, paper)
    if dice.random() < 0.25:
        behind = made_of.crop(*size)
        strip = Image.blend(strip, behind, 0.35)
    at = (margins[0] - left, margins[2] - top)
    ImageDraw.Draw(strip).text((int(at[0]), int(at[1])), text, fill=ink, font=font)
    turned = strip.rotate(float(dice.normal(0, 0.6)), Image.Resampling.BILINEAR, fillcolor=paper)
    return worn(turned, dice), text


def worn(picture: Image.Image, dice: np.random.Generator) -> Image.Image:
    """Out of focus by up to a pixel, unevenly lit, with noise."""
    blurred = picture.filter(ImageFilter.GaussianBlur(float(dice.uniform(0, 1))))
    pixels = np.asarray(blurred, np.float32)
    light = np.linspace(*dice.uniform(0.75, 1.1, 2), pixels.shape[1])[None, :, None]
    noisy = pixels * light + dice.normal(0, dice.uniform(0, 8), pixels.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def as_input(picture: Image.Image) -> Array:
    """(3, h, w) float32 in -1..1, blue first."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1].transpose(2, 0, 1)
    found: Array = (pixels / 255 - 0.5) / 0.5
    return found


def strip_as_input(picture: Image.Image, height: int, width: int) -> Array:
    """(3, height, width): resized to the height, squeezed if too wide, else 0 on the right."""
    wide = min(width, math.ceil(height * picture.width / picture.height))
    padded = np.zeros((3, height, width), np.float32)
    resized = picture.resize((wide, height), Image.Resampling.BILINEAR)
    padded[:, :, :wide] = as_input(resized)
    return padded


def detection(made_of: Stock, count: int) -> Mapping[str, Array]:
    side = NETWORKS["det"][1][0]
    plain = count // 4
    shown = [as_input(worn(made_of.crop(side, side), made_of.dice)) for _ in range(plain)]
    shown += [as_input(page(made_of, side)) for _ in range(count - plain)]
    return {"x": np.stack(shown)}


def recognition(made_of: Stock, count: int) -> Mapping[str, Array]:
    lines = [line(made_of, (1, 4)) for _ in range(count)]
    shown = [strip_as_input(picture, *NETWORKS["rec"][1]) for picture, _ in lines]
    return {"x": np.stack(shown), "texts": np.array([text for _, text in lines])}


def direction(made_of: Stock, count: int) -> Mapping[str, Array]:
    labels = made_of.dice.permutation(np.arange(count) % 2)
    shown = []
    for turned in labels:
        strip, _ = line(made_of, (1, 3))
        upright = strip.transpose(Image.Transpose.ROTATE_180) if turned else strip
        shown.append(strip_as_input(upright, *NETWORKS["cls"][1]))
    return {"x": np.stack(shown), "labels": labels.astype(np.int64)}


MAKERS: Mapping[str, Callable[[Stock, int], Mapping[str, Array]]] = {
    "det": detection,
    "rec": recognition,
    "cls": direction,
}


def prepared(path: Path, sizes: tuple[int, int], shown: Array) -> Model:
    """The network at opset 17 with its height and width fixed, simplified."""
    model = clean(converted(load(path), OPSET))
    program = editable(model)
    program.graph.inputs[0].shape = ir.Shape(["batch", 3, *sizes])
    for node in program.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    fixed = from_bytes(to_bytes(after_step(model, program, "sizes")), name=path.stem)

    def outputs(one: Model) -> Mapping[str, Array]:
        with open_model(one) as session:
            return run(session, {fixed.inputs[0].name: shown})

    return simplify(fixed, run=outputs)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("rapidocr", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (file, sizes, counts) in NETWORKS.items():
        for part, samples in zip(("calib", "eval"), counts, strict=True):
            count = 4 if options.quick else samples
            made = MAKERS[name](stock(options.wheels, part, options.seed), count)
            with files.replacing(options.out / f"{name}-{part}.npz") as partial:
                np.savez_compressed(partial, **made)  # type: ignore[arg-type]
        network = options.rapidocr / "rapidocr_onnxruntime" / "models" / file
        model = prepared(network, sizes, made["x"][-2:])  # of text: an empty page is all 0
        save(model, options.out / f"{name}.onnx")
        nodes = model.graph.num_nodes()
        print(f"{name}: {nodes} nodes, samples of {made['x'].shape[1:]}")


if __name__ == "__main__":
    main()
