"""What a set of samples may be, what comes out of it, and what each broken one is told."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.data.batches import Batches, load_batches, refuse_shared_samples
from edgekit.errors import InputError
from edgekit.values import Array, Preprocessing, TensorSpec

IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 4, "width"))
SCALE = TensorSpec(name="scale", dtype="float32", shape=("batch",))
GREY = Preprocessing(mean=(0.5,), std=(0.25,))


def floats(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 5)).astype(np.float32)


def pixels(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 5)).astype(np.uint8)


def loaded(
    folder: Path,
    arrays: dict[str, Any] | None = None,
    *,
    source: str = "samples.npz",
    inputs: tuple[TensorSpec, ...] = (IMAGE,),
    preprocessing: Preprocessing | None = None,
    batch_size: int = 4,
) -> Batches:
    if arrays is not None:
        np.savez(folder / source, **arrays)
    return load_batches(
        source, folder=folder, inputs=inputs, preprocessing=preprocessing, batch_size=batch_size,
        role="calibration",
    )  # fmt: skip


def refusal(folder: Path, arrays: dict[str, Any] | None = None, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        loaded(folder, arrays, **options)
    return caught.value


def test_samples_come_in_order_as_often_as_they_are_asked_for(tmp_path: Path) -> None:
    images, labels = floats(10), np.arange(10)
    batches = loaded(tmp_path, {"image": images, "labels": labels})
    assert (batches.count, len(batches)) == (10, 3)
    for _ in range(2):
        found = list(batches)
        assert [len(batch) for batch in found] == [4, 4, 2]
        assert np.array_equal(np.concatenate([b.inputs["image"] for b in found]), images)
        assert [int(x) for b in found if b.labels is not None for x in b.labels] == list(range(10))


def test_labels_are_optional(tmp_path: Path) -> None:
    assert next(iter(loaded(tmp_path, {"image": floats(3)}))).labels is None


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    spec = TensorSpec(name="labels", dtype="int64", shape=("n",))
    batches = loaded(tmp_path, {"labels": np.arange(3)}, inputs=(spec,))
    assert batches.labels is None
    assert next(iter(batches)).inputs["labels"].tolist() == [0, 1, 2]


def test_arrays_that_no_input_wants_are_left_out(tmp_path: Path) -> None:
    batches = loaded(tmp_path, {"image": floats(3), "names": np.array(["a", "b", "c"])})
    assert list(batches.arrays) == ["image"]


def test_pixels_are_scaled_and_normalised_by_channel(tmp_path: Path) -> None:
    images = pixels(5)
    mean, std = (0.5, 0.25, 0.125), (0.5, 2.0, 1.0)
    batches = loaded(tmp_path, {"image": images}, preprocessing=Preprocessing(mean=mean, std=std))
    (first, *_) = batches
    assert batches.arrays["image"].dtype == np.uint8
    assert first.inputs["image"].dtype == np.float32
    for channel in range(3):
        expected = (images[:4, channel] / 255 - mean[channel]) / std[channel]
        assert np.allclose(first.inputs["image"][:, channel], expected, atol=1e-6)


def test_pixels_become_the_type_of_the_input(tmp_path: Path) -> None:
    half = TensorSpec(name="image", dtype="float16", shape=IMAGE.shape)
    batches = loaded(tmp_path, {"image": pixels(2)}, inputs=(half,), preprocessing=GREY)
    assert next(iter(batches)).inputs["image"].dtype == np.float16


def test_numbers_of_the_inputs_own_type_are_not_preprocessed(tmp_path: Path) -> None:
    images, raw = floats(2), TensorSpec(name="mask", dtype="uint8", shape=("n",))
    arrays = {"image": images, "mask": np.array([1, 2], np.uint8)}
    batches = loaded(tmp_path, arrays, inputs=(IMAGE, raw), preprocessing=GREY)
    (batch,) = batches
    assert np.array_equal(batch.inputs["image"], images)
    assert batch.inputs["mask"].tolist() == [1, 2]


def test_picked_samples_come_in_the_order_asked_for(tmp_path: Path) -> None:
    images = floats(6)
    batch = loaded(tmp_path, {"image": images, "labels": np.arange(6)}).pick(np.array([4, 0]))
    assert np.array_equal(batch.inputs["image"], images[[4, 0]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [4, 0]


def test_taken_samples_are_spread_evenly_and_keep_their_labels(tmp_path: Path) -> None:
    batches = loaded(tmp_path, {"image": floats(11), "labels": np.arange(11)})
    taken = batches.take(3)
    assert taken.labels is not None
    assert taken.labels.tolist() == [0, 5, 10]
    assert np.array_equal(taken.arrays["image"], batches.arrays["image"][[0, 5, 10]])
    assert batches.take(11) is batches
    assert batches.take(99).count == 11


@given(count=st.integers(2, 60), wanted=st.integers(1, 60))
def test_no_sample_is_taken_twice(count: int, wanted: int) -> None:
    batches = Batches(arrays={"x": np.arange(count)}, pixels={}, batch_size=1)
    taken = batches.take(wanted).arrays["x"].tolist()
    assert len(set(taken)) == len(taken) == min(count, wanted)
    assert taken == sorted(taken)


def test_what_is_left_without_some_samples(tmp_path: Path) -> None:
    batches = loaded(tmp_path, {"image": floats(4), "labels": np.arange(4)})
    left = batches.without(np.array([2, 0]))
    assert left.labels is not None
    assert left.labels.tolist() == [1, 3]


def test_the_digest_changes_with_whatever_decides_what_comes_out(tmp_path: Path) -> None:
    images, labels = pixels(4), np.arange(4)
    changed = images.copy()
    changed[3, 2, 3, 4] ^= 1
    variants = [
        loaded(tmp_path, {"image": images}, preprocessing=GREY),
        loaded(tmp_path, {"image": changed}, preprocessing=GREY),
        loaded(tmp_path, {"image": images, "labels": labels}, preprocessing=GREY),
        loaded(tmp_path, {"image": images, "labels": labels + 1}, preprocessing=GREY),
        loaded(tmp_path, {"image": images}, preprocessing=Preprocessing(mean=(0.4,))),
        loaded(tmp_path, {"image": images.astype(np.float32)}),
        loaded(tmp_path, {"image": images[::-1]}, preprocessing=GREY),
    ]
    assert len({batches.digest for batches in variants}) == len(variants)


def test_the_same_samples_are_equal_in_batches_of_the_same_size(tmp_path: Path) -> None:
    one, other = (loaded(tmp_path, {"image": pixels(4)}, preprocessing=GREY) for _ in range(2))
    assert one == other
    assert len({one, other}) == 1
    larger = one.with_batch_size(2)
    assert larger.digest == one.digest
    assert larger != one


def test_arrays_may_come_from_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "samples.py").write_text(
        "import numpy as np\n"
        "def images():\n"
        "    return {'image': np.ones((2, 3, 4, 5), np.float32), 'labels': np.array([3, 4])}\n"
    )
    batches = loaded(tmp_path, source="samples.py:images")
    assert batches.count == 2
    assert batches.labels is not None
    assert batches.labels.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise OSError('the disk is asleep')", "OSError: the disk is asleep"),
        ("return [1, 2]", "list"),
        ("return {'image': [1, 2]}", "list"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_data_function_that_fails_is_quoted(tmp_path: Path, body: str, said: str) -> None:
    name = f"broken_{abs(hash(body))}.py"
    (tmp_path / name).write_text(f"def images():\n    {body}\n")
    error = refusal(tmp_path, source=f"{name}:images")
    assert said in error.got
    assert error.where == f"{name}:images"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.where == "calibration data samples.npz"
    assert error.wanted == str(tmp_path / "samples.npz")


def garbage(path: Path) -> None:
    path.write_bytes(b"no archive at all" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    np.savez(path, image=floats(20))
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(path: Path) -> None:
    np.savez_compressed(path, image=floats(20))
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))


def of_objects(path: Path) -> None:
    np.savez(path, image=np.array([{"a": 1}, None], object))


def boastful(path: Path) -> None:
    """A member whose header claims a petabyte."""
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 3, 400, 400)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"little")


@pytest.mark.parametrize(
    "broken", [garbage, empty, truncated, damaged, of_objects, boastful], ids=lambda f: f.__name__
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, broken: Callable[[Path], None]) -> None:
    broken(tmp_path / "samples.npz")
    error = refusal(tmp_path)
    assert error.where == "calibration data samples.npz"
    assert error.got
    assert error.hint


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    compressed=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 10**6),
)
def test_damaged_bytes_give_samples_or_one_clear_error(
    tmp_path: Path, compressed: bool, changes: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path / "samples.npz"
    (np.savez_compressed if compressed else np.savez)(path, image=floats(3), labels=np.arange(3))
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut % len(content) if cut % 2 else None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(InputError):
            assert loaded(tmp_path).count == 3


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    of_objects(tmp_path / "samples.npz")
    assert "Python objects" in refusal(tmp_path).got


def test_one_bare_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", floats(2))
    (tmp_path / "samples.npy").rename(tmp_path / "samples.npz")
    assert "savez" in refusal(tmp_path).hint


def test_a_missing_array_says_what_is_there(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"img": floats(2), "labels": np.arange(2)})
    assert '"image"' in error.what
    assert error.got == "img, labels"
    assert error.wanted == "image"


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (floats(2)[0], "the wrong number of axes"),
        (np.float32(1), "the wrong number of axes"),
        (floats(2)[:, :1], "the wrong shape"),
        (floats(2).transpose(0, 2, 3, 1), "the wrong shape"),
        (floats(0), "no sample"),
        (floats(2).astype(np.float64), "the wrong type"),
        (floats(2).astype(np.int8), "the wrong type"),
    ],
)
def test_an_array_that_does_not_fit_the_input_is_refused(
    tmp_path: Path, array: Array, what: str
) -> None:
    error = refusal(tmp_path, {"image": array})
    assert what in error.what
    assert "(batch, 3, 4, width)" in error.wanted or "float32" in error.wanted
    assert error.hint


def test_a_dynamic_dimension_takes_any_size(tmp_path: Path) -> None:
    for width in (1, 9):
        array = np.zeros((2, 3, 4, width), np.float32)
        assert loaded(tmp_path, {"image": array}).count == 2


def test_pixels_without_preprocessing_are_refused(tmp_path: Path) -> None:
    assert "[data.preprocessing]" in refusal(tmp_path, {"image": pixels(2)}).hint


@pytest.mark.parametrize("field", ["mean", "std"])
def test_preprocessing_for_another_number_of_channels_is_refused(
    tmp_path: Path, field: str
) -> None:
    wrong = Preprocessing(**{field: (0.5, 0.5)})
    error = refusal(tmp_path, {"image": pixels(2)}, preprocessing=wrong)
    assert error.what.startswith(f"{field} does not fit the 3 channels")
    assert error.wanted == "1 number or 3"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_the_first_sample_named(
    tmp_path: Path, value: float
) -> None:
    images = floats(6)
    images[3, 0, 0, :2] = value
    images[5, 1, 1, 1] = value
    error = refusal(tmp_path, {"image": images})
    assert error.got == "3 values in 2 samples, the first at index 3"


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"image": floats(3), "labels": np.arange(2)})
    assert error.got == "image: 3, labels: 2"


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    arrays = {"image": floats(3), "scale": np.ones(4, np.float32)}
    assert refusal(tmp_path, arrays, inputs=(IMAGE, SCALE)).got == "image: 3, scale: 4"


@pytest.mark.parametrize("labels", [np.array(3), np.array(["cat", "dog", "cat"])])
def test_labels_that_are_no_numbers_are_refused(tmp_path: Path, labels: Array) -> None:
    error = refusal(tmp_path, {"image": floats(3), "labels": labels})
    assert "labels" in error.what


def test_shared_samples_are_counted_and_the_first_named(tmp_path: Path) -> None:
    calibration = loaded(tmp_path, {"image": pixels(8)}, preprocessing=GREY)
    other = pixels(5, seed=1)
    other[2], other[4] = calibration.arrays["image"][7], calibration.arrays["image"][0]
    evaluation = loaded(
        tmp_path, {"image": other, "labels": np.arange(5)}, preprocessing=GREY
    )  # fmt: skip
    with pytest.raises(InputError) as caught:
        refuse_shared_samples(calibration, evaluation)
    assert "2 of 5 evaluation samples" in caught.value.got
    assert "index 2" in caught.value.got
    assert calibration.sample_digests[7] == evaluation.sample_digests[2]


def test_sets_without_a_common_sample_pass(tmp_path: Path) -> None:
    one = loaded(tmp_path, {"image": pixels(8)}, preprocessing=GREY)
    other = loaded(tmp_path, {"image": pixels(8, seed=1)}, preprocessing=GREY)
    refuse_shared_samples(one, other)
