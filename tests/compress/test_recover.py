"""Recovery on a small cut network: what it gains, what it keeps, how it is taken up again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.compress.channels.cut import cut_channels
from edgekit.compress.recover import RecoverOptions, RecoverReport, recover
from edgekit.data.batches import Batches
from edgekit.data.metrics import agreement, fidelity
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, parameters, to_bytes
from edgekit.models.source import load
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
SHORT = RecoverOptions(epochs=2, batch=32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small to be shared out between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches_of(array: Array, *, name: str = "image") -> Batches:
    return Batches(arrays={name: array}, pixels={}, batch_size=16)


def samples(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def seen() -> Batches:
    return batches_of(samples(256, 1))


@pytest.fixture
def residual(residual: Model, seen: Batches) -> Model:
    """The residual network with the running statistics that these samples give, as if trained."""
    from edgekit.models.torch_module import torch_module, write_back

    module = torch_module(residual)
    module.observe_statistics(torch.from_numpy(np.asarray(seen.arrays["image"])))
    return write_back(module, residual, "trained")


@pytest.fixture
def cut(residual: Model) -> Model:
    return cut_channels(residual, macs=0.6, multiple=1)[0]


def test_recovery_brings_unseen_samples_nearer_to_the_original(
    residual: Model, cut: Model, seen: Batches, reference: Reference
) -> None:
    recovered, report = recover(cut, residual, seen, RecoverOptions(epochs=12, batch=32))
    unseen = {"image": samples(200, 2)}
    original, before, after = (
        {"logits": reference(model, unseen)[0]} for model in (residual, cut, recovered)
    )
    errors = [1 - fidelity(outputs, None, original) for outputs in (before, after)]
    assert errors[1] < 0.5 * errors[0]
    assert agreement(after, original) >= agreement(before, original)
    assert report.after < 0.5 * report.before
    assert len(report.losses) == report.epochs == 12
    assert report.losses[-1] < report.losses[0]
    assert report.samples == 256


def test_names_shapes_and_types_are_kept_and_the_step_is_written_down(
    residual: Model, cut: Model, seen: Batches
) -> None:
    before = to_bytes(cut), to_bytes(residual)
    recovered, _ = recover(cut, residual, seen, SHORT)
    assert (to_bytes(cut), to_bytes(residual)) == before
    assert recovered.history == (*cut.history, "recover")
    assert {n: (a.shape, a.dtype) for n, a in parameters(recovered)} == {
        n: (a.shape, a.dtype) for n, a in parameters(cut)
    }


def test_the_same_seed_gives_the_same_model(residual: Model, cut: Model, seen: Batches) -> None:
    first, again = (to_bytes(recover(cut, residual, seen, SHORT)[0]) for _ in range(2))
    assert first == again
    other = recover(cut, residual, seen, RecoverOptions(epochs=2, batch=32, seed=1))[0]
    assert to_bytes(other) != first


def test_an_interrupted_recovery_ends_with_the_very_model_of_an_uninterrupted_one(
    residual: Model, cut: Model, seen: Batches, tmp_path: Path
) -> None:
    options = RecoverOptions(epochs=3, batch=32)
    whole, whole_report = recover(cut, residual, seen, options)

    def interrupt(done: int, total: int, said: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        recover(cut, residual, seen, options, checkpoint=checkpoint, on_progress=interrupt)
    resumed, report = recover(cut, residual, seen, options, checkpoint=checkpoint)
    assert report == RecoverReport(**{**asdict(whole_report), "resumed_after": 1})
    assert "resumed after epoch 1" in str(report)
    assert to_bytes(resumed) == to_bytes(whole)


def test_a_checkpoint_of_other_samples_is_not_resumed(
    residual: Model, cut: Model, seen: Batches, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "state.pt"
    recover(cut, residual, seen, SHORT, checkpoint=checkpoint)
    assert recover(cut, residual, seen, SHORT, checkpoint=checkpoint)[1].resumed_after == 2
    fewer = seen.take(200)
    assert recover(cut, residual, fewer, SHORT, checkpoint=checkpoint)[1].resumed_after == 0


def test_labels_are_never_read(residual: Model, cut: Model, seen: Batches) -> None:
    labelled = Batches(
        arrays=seen.arrays, labels=np.full(seen.count, 10**9), pixels={}, batch_size=16
    )
    assert to_bytes(recover(cut, residual, labelled, SHORT)[0]) == to_bytes(
        recover(cut, residual, seen, SHORT)[0]
    )


def test_the_answers_are_the_same_looked_up_and_asked_for(
    residual: Model, cut: Model, seen: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = recover(cut, residual, seen, SHORT)[1]
    monkeypatch.setattr("edgekit.compress.recover._KEPT_ANSWERS_BYTES", 0)
    asked = recover(cut, residual, seen, SHORT)[1]
    assert asked.losses == pytest.approx(looked_up.losses, rel=1e-3)


def test_a_mirror_shows_each_image_flipped_beside_the_originals_answer_to_that(
    residual: Model, reference: Reference
) -> None:
    from edgekit.compress.recover import _answers, _show
    from edgekit.models.torch_module import torch_module

    images = samples(6, 3)
    chosen, flips = np.array([4, 1, 3]), np.array([True, False, True])
    (shown,) = _show(batches_of(images), ["image"], chosen, flips)
    expected = images[chosen].copy()
    expected[flips] = expected[flips][..., ::-1]
    assert np.array_equal(shown.numpy(), expected)
    answers = _answers(
        torch_module(residual), batches_of(images), ["image"], True, lambda *_: None
    )  # fmt: skip
    (found,) = answers(chosen, flips)
    (wanted,) = reference(residual, {"image": expected})
    assert np.allclose(found.numpy(), wanted, atol=1e-4)


def test_statistics_become_those_of_the_samples(residual: Model, seen: Batches) -> None:
    """Against the first convolution's outputs in double precision."""
    from edgekit.compress.recover import _estimate_statistics
    from edgekit.models.torch_module import torch_module

    module = torch_module(residual)
    _estimate_statistics(module, seen, ["image"], 128)
    weight = module.parameters_by_name()["stem.weight"].detach().double()
    x = torch.from_numpy(np.asarray(seen.arrays["image"])).double()
    inner = torch.nn.functional.conv2d(x, weight, padding=1)
    statistics = module.statistics_by_name()
    assert torch.allclose(statistics["stem.bn.mean"].double(), inner.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(statistics["stem.bn.var"].double(), inner.var((0, 2, 3)), rtol=1e-2)
    assert not module.training


def test_progress_never_goes_back_and_ends_at_the_end(
    residual: Model, cut: Model, seen: Batches
) -> None:
    heard: list[tuple[float, str]] = []
    recover(
        cut, residual, seen, SHORT,
        on_progress=lambda done, total, said: heard.append((done / total, said)),
    )  # fmt: skip
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(said for _, said in heard)


def vector_model(folder: Path, seed: int) -> Model:
    """(n, 6) -> Gemm, Tanh, Gemm -> (n, 1): no image, no class, no BatchNormalization."""
    rng = np.random.default_rng(seed)
    stored = {
        "one.weight": rng.normal(0, 0.5, (8, 6)), "one.bias": rng.normal(0, 0.5, 8),
        "two.weight": rng.normal(0, 0.5, (1, 8)), "two.bias": np.array([3.0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "one.weight", "one.bias"], ["inner"], transB=1),
        helper.make_node("Tanh", ["inner"], ["bent"]),
        helper.make_node("Gemm", ["bent", "two.weight", "two.bias"], ["height"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "vector",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("height", onnx.TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in stored.items()],
    )
    path = folder / f"vector{seed}.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return load(path)


def test_a_network_without_images_classes_or_batchnorm_recovers_too(tmp_path: Path) -> None:
    teacher, student = vector_model(tmp_path, 0), vector_model(tmp_path, 1)
    x = np.random.default_rng(2).normal(size=(300, 6)).astype(np.float32)
    options = RecoverOptions(epochs=20, batch=20, learning_rate=1e-2)
    report = recover(student, teacher, batches_of(x, name="x"), options)[1]
    assert report.after < 0.1 * report.before


def test_a_teacher_of_another_shape_is_refused(
    residual: Model, seen: Batches, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        recover(vector_model(tmp_path, 0), residual, seen, SHORT)
    assert "height" in caught.value.wanted
    assert "logits" in caught.value.got


def test_a_learning_rate_that_is_far_too_high_says_what_to_lower(
    residual: Model, cut: Model, seen: Batches
) -> None:
    with pytest.raises(InputError) as caught:
        recover(cut, residual, seen, RecoverOptions(epochs=5, batch=32, learning_rate=1e30))
    assert "learning_rate" in caught.value.hint


def test_importing_recovery_does_not_import_torch() -> None:
    code = "import edgekit.compress.recover, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_torch_the_extra_is_named(
    residual: Model, cut: Model, seen: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError) as caught:
        recover(cut, residual, seen, SHORT)
    assert "edgekit[compress]" in caught.value.hint
