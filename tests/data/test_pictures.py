"""Pictures as samples: lazy, bounded in memory, the same numbers as by hand, hashed by content."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.data import decode, pictures
from edgekit.data.batches import Batches, load_batches, refuse_shared_samples
from edgekit.data.metrics import top1
from edgekit.data.pictures import PictureArray, layout_of
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.values import Array, Preprocessing, TensorSpec

PLAIN = Preprocessing(scale=1.0)
NCHW = TensorSpec(name="image", dtype="float32", shape=("n", 3, 2, 4))
NHWC = TensorSpec(name="image", dtype="float32", shape=("n", 2, 4, 3))
GREY = TensorSpec(name="image", dtype="float32", shape=("n", 1, 2, 4))
DYNAMIC = TensorSpec(name="image", dtype="float32", shape=("n", 3, "h", "w"))


def coloured(seed: int, height: int = 2, width: int = 4) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def a_folder(place: Path, count: int, seed: int = 0) -> list[Array]:
    """Writes `00.png` and so on, and returns their pixels."""
    made = [coloured(seed + index) for index in range(count)]
    for index, pixels in enumerate(made):
        save(place / f"{index:02}.png", pixels)
    return made


def loaded(
    folder: Path,
    source: str = "photos",
    *,
    inputs: tuple[TensorSpec, ...] = (NCHW,),
    preprocessing: Preprocessing | None = PLAIN,
    batch_size: int = 4,
) -> Batches:
    return load_batches(
        source, folder=folder, inputs=inputs, preprocessing=preprocessing, batch_size=batch_size,
        role="calibration",
    )  # fmt: skip


def refusal(folder: Path, source: str = "photos", **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        loaded(folder, source, **options)
    return caught.value


def joined(batches: Iterable[Any]) -> Array:
    return np.concatenate([batch.inputs["image"] for batch in batches])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were decoded so far."""
    names: list[str] = []
    real = decode.read_pixels

    def counting(path: Path, decoding: decode.Decoding) -> Array:
        names.append(path.name)
        return real(path, decoding)

    monkeypatch.setattr(decode, "read_pixels", counting)
    return names


def test_a_folder_of_classes_gives_inputs_and_labels(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "dog" / "1.png", coloured(1))
    save(tmp_path / "photos" / "cat" / "1.png", coloured(2))
    (batch,) = loaded(tmp_path, "photos/")
    expected = np.stack([coloured(2), coloured(1)]).transpose(0, 3, 1, 2)
    assert batch.inputs["image"].dtype == np.float32
    assert np.array_equal(batch.inputs["image"], expected)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]


def test_a_csv_gives_inputs_and_labels(tmp_path: Path) -> None:
    made = a_folder(tmp_path / "photos", 3)
    (tmp_path / "few.csv").write_text("path,label\nphotos/02.png,7\nphotos/00.png,4\n")
    (batch,) = loaded(tmp_path, "few.csv")
    assert np.array_equal(batch.inputs["image"][0], made[2].transpose(2, 0, 1))
    assert batch.labels is not None
    assert batch.labels.tolist() == [7, 4]


def test_mean_and_std_are_in_the_order_that_the_model_sees(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", np.full((2, 4, 3), (10, 20, 30), np.uint8))
    spec = {"scale": 0.5, "mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 4.0)}
    # Red 10, green 20, blue 30, by half 5, 10, 15.
    expected = {"rgb": [4.0, 4.0, 3.0], "bgr": [14.0, 4.0, 0.5]}
    for order in ("rgb", "bgr"):
        wanted = Preprocessing(**spec, order=order)
        (batch,) = loaded(tmp_path, preprocessing=wanted)
        assert batch.inputs["image"][0, :, 1, 3].tolist() == expected[order]
        (batch,) = loaded(tmp_path, inputs=(NHWC,), preprocessing=wanted)
        assert batch.inputs["image"].shape == (1, 2, 4, 3)
        assert batch.inputs["image"][0, 1, 3].tolist() == expected[order]


def test_a_grey_model_sees_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.png", np.full((2, 4, 3), (100, 100, 100), np.uint8))
    (batch,) = loaded(tmp_path, inputs=(GREY,), preprocessing=Preprocessing(scale=1, mean=(40,)))
    assert batch.inputs["image"].shape == (1, 1, 2, 4)
    assert (batch.inputs["image"] == 60).all()


def test_a_model_of_uint8_sees_the_pixels(tmp_path: Path) -> None:
    made = a_folder(tmp_path / "photos", 1)
    raw = TensorSpec(name="image", dtype="uint8", shape=NHWC.shape)
    (batch,) = loaded(tmp_path, inputs=(raw,), preprocessing=Preprocessing(mean=(9.0,)))
    assert batch.inputs["image"].dtype == np.uint8
    assert np.array_equal(batch.inputs["image"][0], made[0])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (("n", 3, 224, 224), "nchw"),
        (("n", 1, "h", "w"), "nchw"),
        ((1, 224, 224, 3), "nhwc"),
        (("n", "h", "w", 1), "nhwc"),
        (("n", 3, 4, "w"), "nchw"),
        (("n", 3, 224, 3), None),
        (("n", "c", "h", "w"), None),
        (("n", 4, 8, 8), None),
        (("n", 3, 8), None),
    ],
)
def test_the_layout_is_where_1_or_3_channels_are(
    shape: tuple[int | str, ...], layout: str | None
) -> None:
    assert layout_of(TensorSpec(name="image", dtype="float32", shape=shape)) == layout


def test_an_ambiguous_layout_is_asked_for_and_then_used(tmp_path: Path) -> None:
    made = a_folder(tmp_path / "photos", 1)
    both = TensorSpec(name="image", dtype="float32", shape=("n", 3, 4, 3))
    assert 'layout = "nchw"' in refusal(tmp_path, inputs=(both,)).hint
    for layout, size in (("nchw", (4, 3)), ("nhwc", (3, 4))):
        wanted = Preprocessing(scale=1.0, layout=layout, interpolation="nearest")
        (batch,) = loaded(tmp_path, inputs=(both,), preprocessing=wanted)
        x = batch.inputs["image"][0]
        seen = x.transpose(1, 2, 0) if layout == "nchw" else x
        resized = Image.fromarray(made[0]).resize(size[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(seen, np.asarray(resized))


def test_a_dynamic_model_takes_the_size_that_is_asked_for(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 1)
    assert "size = [height, width]" in refusal(tmp_path, inputs=(DYNAMIC,)).hint
    wanted = Preprocessing(size=(6, 5))
    (batch,) = loaded(tmp_path, inputs=(DYNAMIC,), preprocessing=wanted)
    assert batch.inputs["image"].shape == (1, 3, 6, 5)


@pytest.mark.parametrize(
    ("options", "what", "said"),
    [
        ({"preprocessing": None}, "nothing says how the model wants", ""),
        ({"preprocessing": Preprocessing(size=(2, 2))}, "another size", "size [2, 2]"),
        ({"preprocessing": Preprocessing(layout="nhwc")}, "1 or 3 channels", "4 channels"),
        ({"preprocessing": Preprocessing(mean=(0.5, 0.5))}, "mean does not fit", "2 numbers"),
        ({"inputs": (TensorSpec(name="x", dtype="float32", shape=("n", 8)),)},
         "none for pictures", "x float32 (n, 8)"),
        ({"inputs": (NCHW, GREY)}, "pictures are one input", "image"),
        ({"inputs": ()}, "pictures are one input", "no input"),
        ({"inputs": (TensorSpec(name="x", dtype="float32", shape=("n", 3, 10**6, 2)),)},
         "no size that a picture has", "1000000 x 2"),
        ({"inputs": (TensorSpec(name="x", dtype="float32", shape=("n", 3, 0, 2)),)},
         "no size that a picture has", "0 x 2"),
    ],
)  # fmt: skip
def test_an_input_that_pictures_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, Any], what: str, said: str
) -> None:
    a_folder(tmp_path / "photos", 1)
    error = refusal(tmp_path, **options)
    assert what in error.what
    assert said in error.got
    assert error.hint or error.wanted


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, decoded: list[str]) -> None:
    a_folder(tmp_path / "photos", 10)
    batches = loaded(tmp_path)
    assert (batches.count, len(batches)) == (10, 3)
    assert batches.take(5).without(np.array([0])).with_batch_size(2).count == 4
    assert len(batches.digest) == 64
    assert not decoded
    next(iter(batches))
    assert sorted(decoded) == ["00.png", "01.png", "02.png", "03.png"]


def test_a_set_larger_than_what_is_kept_is_decoded_anew_and_the_same(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = np.stack(a_folder(tmp_path / "photos", 10)).transpose(0, 3, 1, 2)
    monkeypatch.setattr(pictures, "KEPT_BYTES", 3 * made[0].nbytes)
    batches = loaded(tmp_path)
    for _ in range(2):
        assert np.array_equal(joined(batches), made)
    assert [decoded.count(f"{i:02}.png") for i in range(10)] == [1] * 3 + [2] * 7


def test_a_small_set_is_decoded_once_whatever_is_chosen_from_it(
    tmp_path: Path, decoded: list[str]
) -> None:
    made = np.stack(a_folder(tmp_path / "photos", 6)).transpose(0, 3, 1, 2)
    batches = loaded(tmp_path)
    joined(batches.take(3))
    for _ in range(2):
        assert np.array_equal(joined(batches.with_batch_size(5)), made)
    assert sorted(decoded) == [f"{i:02}.png" for i in range(6)]


def test_what_is_handed_out_may_be_written_into(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 2)
    array = loaded(tmp_path).arrays["image"]
    first = array[:2]
    first[:] = 0
    assert array[:2].any()


def test_pictures_are_indexed_as_an_array_is(tmp_path: Path) -> None:
    made = np.stack(a_folder(tmp_path / "photos", 5)).transpose(0, 3, 1, 2)
    array = loaded(tmp_path).arrays["image"]
    assert isinstance(array, PictureArray)
    assert (array.shape, array.ndim, array.dtype, len(array)) == (made.shape, 4, made.dtype, 5)
    chosen: list[Array | slice] = [
        slice(1, 4), slice(None, None, -2), np.array([4, 0, 4]), np.array([], np.int64),
        np.array([True, False, True, False, False]),
    ]  # fmt: skip
    for samples in chosen:
        assert np.array_equal(array[samples], made[samples])
        assert np.array_equal(array.only(samples)[:], made[samples])


@pytest.mark.parametrize("processors", [1, 5])
def test_threads_change_nothing(
    tmp_path: Path, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = np.stack(a_folder(tmp_path / "photos", 23)).transpose(0, 3, 1, 2)
    monkeypatch.setattr(pictures, "_processors", lambda: processors)
    assert np.array_equal(joined(loaded(tmp_path, batch_size=9)), made)


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / "photos" / f"{index}.png", coloured(index, 64, 64))
    for name in ("4.png", "5.png"):
        path = tmp_path / "photos" / name
        path.write_bytes(path.read_bytes()[:3000])
    batches = loaded(tmp_path, batch_size=6)
    with pytest.raises(InputError) as caught:
        next(iter(batches))
    assert caught.value.where.endswith("4.png")
    assert batches.pick(slice(0, 4)).inputs["image"].shape == (4, 3, 2, 4)


def test_a_file_that_is_no_picture_is_found_before_anything_is_run(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 3)
    (tmp_path / "photos" / "01.png").write_text("not a picture")
    error = refusal(tmp_path)
    assert error.where.endswith("01.png")


def test_the_digest_is_of_contents_and_not_of_names(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 3)
    shutil.copytree(tmp_path / "photos", tmp_path / "other")
    (tmp_path / "other" / "02.png").rename(tmp_path / "other" / "zz.png")
    one, other = loaded(tmp_path), loaded(tmp_path, "other")
    assert one.digest == other.digest
    assert one == other
    assert one.sample_digests == other.sample_digests


def test_the_digest_changes_with_whatever_decides_what_comes_out(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 3)
    changed = [
        Preprocessing(scale=1.0, resize="letterbox"),
        Preprocessing(scale=1.0, resize="letterbox", fill=0),
        Preprocessing(scale=1.0, resize="crop"),
        Preprocessing(scale=1.0, resize="crop", crop_share=0.9),
        Preprocessing(scale=1.0, interpolation="area"),
        Preprocessing(scale=1.0, order="bgr"),
        Preprocessing(scale=2.0),
        Preprocessing(scale=1.0, mean=(1.0,)),
    ]
    found = {loaded(tmp_path, preprocessing=wanted).digest for wanted in (PLAIN, *changed)}
    found.add(loaded(tmp_path, inputs=(NHWC,)).digest)
    assert len(found) == len(changed) + 2
    plain = loaded(tmp_path).digest
    assert loaded(tmp_path, preprocessing=Preprocessing(scale=1.0, size=(2, 4))).digest == plain
    assert loaded(tmp_path).take(2).digest != plain
    save(tmp_path / "photos" / "01.png", coloured(99))
    assert loaded(tmp_path).digest != plain


def test_labels_are_in_the_digest(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 2)
    digests = set()
    for text in ("00.png,0\n01.png,1\n", "00.png,1\n01.png,0\n", "00.png\n01.png\n"):
        (tmp_path / "photos" / "list.csv").write_text(text)
        digests.add(loaded(tmp_path, "photos/list.csv").digest)
    assert len(digests) == 3


def test_shared_pictures_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 4)
    a_folder(tmp_path / "held" / "cat", 3, seed=50)
    refuse_shared_samples(loaded(tmp_path), loaded(tmp_path, "held"))
    shutil.copy(tmp_path / "photos" / "02.png", tmp_path / "held" / "cat" / "copy.png")
    with pytest.raises(InputError) as caught:
        refuse_shared_samples(loaded(tmp_path), loaded(tmp_path, "held"))
    assert "1 of 4 evaluation samples" in caught.value.got
    assert "index 3" in caught.value.got


def test_numbers_in_an_npz_may_have_their_channels_last(tmp_path: Path) -> None:
    pixels = np.stack([coloured(0), coloured(1)])
    np.savez(tmp_path / "samples.npz", image=pixels)
    wanted = Preprocessing(scale=1.0, mean=(1.0, 2.0, 3.0), order="bgr", resize="crop")
    (batch,) = loaded(tmp_path, "samples.npz", inputs=(NHWC,), preprocessing=wanted)
    assert np.array_equal(batch.inputs["image"], pixels.astype(np.float32) - [1, 2, 3])


def test_a_label_that_is_no_class_of_the_model_is_refused(tmp_path: Path) -> None:
    a_folder(tmp_path / "photos", 2)
    (tmp_path / "few.csv").write_text("photos/00.png,1\nphotos/01.png,10\n")
    (batch,) = loaded(tmp_path, "few.csv")
    with pytest.raises(InputError) as caught:
        top1({"scores": np.zeros((2, 10))}, batch.labels, {})
    assert caught.value.got == "1 to 10"
    assert caught.value.wanted == "0 to 9"


def test_a_missing_folder_says_what_may_be_given(tmp_path: Path) -> None:
    assert "a folder of pictures" in refusal(tmp_path, "gone/").hint


def test_two_models_are_compared_on_a_folder_by_the_recipe_s_preprocessing(
    tmp_path: Path, residual: Model, reference: Callable[..., list[Array]]
) -> None:
    seen, labels = [], []
    for index in range(20):
        pixels = coloured(index, 9, 13)
        save(tmp_path / "photos" / f"class{index % 5}" / f"{index:02}.png", pixels)
    for path in sorted((tmp_path / "photos").rglob("*.png")):
        resized = Image.open(path).resize((8, 8), Image.Resampling.BICUBIC)
        seen.append(((np.asarray(resized) / 255 - 0.5) / 0.25).transpose(2, 0, 1))
        labels.append(int(path.parent.name[-1]))
    (scores,) = reference(residual, {"image": np.stack(seen).astype(np.float32)})
    expected = float((scores.argmax(1) == labels).mean())
    (tmp_path / "edgekit.toml").write_text(
        'model.path = "residual.onnx"\n[data]\ncalibration = "c"\nevaluation = "photos"\n'
        "[data.preprocessing]\nmean = [0.5]\nstd = [0.25]\ninterpolation = 'bicubic'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "verify", "residual.onnx", "residual.onnx",
         "--data", "photos/", "--recipe", "edgekit.toml", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["metric"], found["samples"]) == ("top1", 20)
    assert found["before"] == found["after"] == pytest.approx(expected)
