"""Recovery on a small cut network: what it gains, what it keeps, how it is taken up again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekit.compress.channels.groups import find_groups
from edgekit.compress.channels.remove import remove_channels
from edgekit.compress.hints import with_hint
from edgekit.compress.recover import RecoverOptions, RecoverReport, recover
from edgekit.data.batches import Batches
from edgekit.data.metrics import agreement, fidelity
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, editable, parameters, to_bytes
from edgekit.models.source import load
from edgekit.train.augment import OwnFunction
from edgekit.train.schedules import Schedule
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
    return cut_of(residual)


def cut_of(model: Model, *, but: str = "") -> Model:
    """Three quarters of the units of every group, of all units of the one with that weight."""
    groups = find_groups(model)
    kept = [
        np.arange(
            group.units
            if but in {member.parameter for member in group.members if member.role == "produced"}
            else group.units * 3 // 4
        )
        for group in groups.groups
    ]
    return remove_channels(model, groups, kept)[0]


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
    monkeypatch.setattr("edgekit.compress.lessons._KEPT_ANSWERS_BYTES", 0)
    asked = recover(cut, residual, seen, SHORT)[1]
    assert asked.losses == pytest.approx(looked_up.losses, rel=1e-3)


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


LIVE: dict[str, dict[str, object]] = {
    "shift": {"shift": 2},
    "patience": {"patience": 2, "schedule": Schedule(kind="constant")},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4},
    "step": {"schedule": Schedule(kind="step", step_epochs=2, warm_up_epochs=0)},
}


@pytest.mark.parametrize("changes", LIVE.values(), ids=LIVE)
def test_every_way_of_training_learns_and_is_taken_up_exactly(
    residual: Model, cut: Model, seen: Batches, tmp_path: Path, changes: dict[str, object]
) -> None:
    options = RecoverOptions(**{"epochs": 4, "batch": 32, **changes})  # type: ignore[arg-type]
    whole, whole_report = recover(cut, residual, seen, options)
    assert whole_report.after < whole_report.before

    def interrupt(done: int, total: int, said: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        recover(cut, residual, seen, options, checkpoint=checkpoint, on_progress=interrupt)
    resumed, report = recover(cut, residual, seen, options, checkpoint=checkpoint)
    assert report.resumed_after == 2
    assert to_bytes(resumed) == to_bytes(whole)


def test_patience_holds_samples_out_and_writes_the_best_epochs_weights(
    residual: Model, cut: Model, seen: Batches
) -> None:
    """A rate that is too high for long: some epoch is the best, and it is what is written."""
    options = RecoverOptions(
        epochs=30, batch=32, learning_rate=5e-3, patience=2, schedule=Schedule(kind="constant")
    )
    report = recover(cut, residual, seen, options)[1]
    assert report.samples == 256 - 25
    assert len(report.held_out) == len(report.losses) + 1
    assert report.held_out[report.kept_epoch] == min(report.held_out)
    assert report.before == pytest.approx(report.held_out[0], rel=1e-5)
    assert report.after == pytest.approx(min(report.held_out), rel=1e-5)
    assert len(report.losses) in (report.kept_epoch + 2, 30)


def report(**changes: object) -> str:
    facts = {"samples": 90, "epochs": 9, "before": 2.0, "after": 1.0, "losses": (1.0,) * 5}
    return str(RecoverReport(**{**facts, "kept_epoch": 5, "resumed_after": 0, **changes}))  # type: ignore[arg-type]


def test_a_report_says_what_a_user_would_ask() -> None:
    assert report(epochs=5) == "5 epochs on 90 samples, loss 2.000 to 1.000"
    assert report(epochs=1, losses=(1.0,), kept_epoch=1).startswith("1 epoch on")
    assert "ended early of 9, the weights of epoch 3 kept" in report(kept_epoch=3)
    assert "none was better than no training" in report(kept_epoch=0)
    assert "resumed after epoch 2" in report(resumed_after=2)
    assert "begun anew, the checkpoint was no use: because" in report(not_resumed="because")
    assert "4 processes" in report(processes=4)


def test_patience_with_a_handful_of_samples_is_refused(
    residual: Model, cut: Model, seen: Batches
) -> None:
    with pytest.raises(InputError, match="hold some out") as caught:
        recover(cut, residual, seen.take(9), RecoverOptions(epochs=2, patience=1))
    assert caught.value.got == "9 samples"


def test_a_checkpoint_of_another_function_is_not_resumed(
    residual: Model, cut: Model, seen: Batches, tmp_path: Path
) -> None:
    def own(digest: str) -> RecoverOptions:
        function = OwnFunction(name="mine:same", digest=digest, call=lambda batch, g: batch)
        return RecoverOptions(epochs=1, batch=64, own=function)

    checkpoint = tmp_path / "state.pt"
    recover(cut, residual, seen, own("1"), checkpoint=checkpoint)
    assert recover(cut, residual, seen, own("1"), checkpoint=checkpoint)[1].resumed_after == 1
    report = recover(cut, residual, seen, own("2"), checkpoint=checkpoint)[1]
    assert report.resumed_after == 0
    assert "augment mine:same 1, now mine:same 2" in report.not_resumed
    assert "begun anew" in str(report)


def test_bf16_recovers_as_far_as_fp32(residual: Model, cut: Model, seen: Batches) -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    full, half = (
        recover(cut, residual, seen, RecoverOptions(epochs=4, batch=32, precision=precision))
        for precision in ("fp32", "bf16")  # type: ignore[arg-type]
    )
    assert to_bytes(full[0]) != to_bytes(half[0])
    assert {array.dtype for _, array in parameters(half[0])} == {np.dtype(np.float32)}
    assert half[1].after == pytest.approx(full[1].after, rel=0.1)


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({"picture": samples(20, 1)}, "picture"),
        ({"image": samples(20, 1)[:, :1]}, "image float32 (1, 1, 8, 8)"),
        ({"image": samples(20, 1)[0]}, "image float32 (1, 8, 8)"),
        ({"image": samples(20, 1).astype(np.float64)}, "image float64 (1, 3, 8, 8)"),
    ],
)
def test_samples_that_do_not_fit_are_one_error(
    residual: Model, cut: Model, arrays: dict[str, Array], got: str
) -> None:
    with pytest.raises(InputError, match="samples do not fit") as caught:
        recover(cut, residual, Batches(arrays=arrays, pixels={}, batch_size=4), SHORT)
    assert caught.value.got == got


def test_a_student_with_nan_is_told_from_a_diverging_one(
    residual: Model, cut: Model, seen: Batches
) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    module = torch_module(cut)
    with torch.no_grad():
        module.parameters_by_name()["stem.weight"][0] = float("nan")
    with pytest.raises(InputError, match="network to train answers with NaN"):
        recover(write_back(module, cut, "broken"), residual, seen, SHORT)


def test_how_a_dynamic_axis_is_called_does_not_matter(
    residual: Model, cut: Model, seen: Batches
) -> None:
    renamed = replace(
        residual,
        program=editable(residual),
    )
    for value in (*renamed.graph.inputs, *renamed.graph.outputs):
        value.shape = ir.Shape(["n", *value.shape[1:]])
    assert renamed.inputs != cut.inputs
    assert recover(cut, renamed, seen, SHORT)[1].after > 0


def test_a_hint_brings_the_last_shared_feature_map_nearer(
    residual: Model, seen: Batches, reference: Reference
) -> None:
    """Against a run without; the map is read by ONNX Runtime."""
    cut = cut_of(residual, but="right.weight")
    name = with_hint(cut, residual)[1]
    assert name == "right.relu"  # not what is pooled of it, and "both" is narrower
    models = {}
    for weight in (0.0, 30.0):
        options = RecoverOptions(epochs=8, batch=32, hint=weight)
        models[weight], report = recover(cut, residual, seen, options)
        assert report.hint == (name if weight else "")
        assert report.after < report.before
        assert models[weight].outputs == cut.outputs
    unseen = {"image": samples(200, 2)}

    def map_of(model: Model) -> Array:
        return reference(with_hint(model, residual)[0][0], unseen)[1]

    wanted = reference(with_hint(cut, residual)[0][1], unseen)[1]
    errors = {w: float(np.square(map_of(m) - wanted).mean()) for w, m in models.items()}
    assert errors[30.0] < 0.9 * errors[0.0]


def test_networks_that_share_no_feature_map_give_no_hint(tmp_path: Path) -> None:
    teacher, student = vector_model(tmp_path, 0), vector_model(tmp_path, 1)
    x = np.zeros((20, 6), np.float32)
    with pytest.raises(InputError, match="share no feature map") as caught:
        recover(student, teacher, batches_of(x, name="x"), RecoverOptions(hint=1.0))
    assert caught.value.where == "hint"


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", float("nan")), ("hint", -1.0), ("shift", -1)],
)
def test_an_option_of_recovery_that_makes_no_sense_is_named(
    residual: Model, cut: Model, seen: Batches, name: str, value: float
) -> None:
    with pytest.raises(InputError) as caught:
        recover(cut, residual, seen, RecoverOptions(**{name: value}))  # type: ignore[arg-type]
    assert caught.value.where == name


def test_a_network_of_whole_numbers_cannot_be_imitated(residual: Model, seen: Batches) -> None:
    program = editable(residual)
    chosen = ir.node("ArgMax", [program.graph.outputs[0]], {"axis": 1})
    program.graph.append(chosen)
    chosen.outputs[0].name, chosen.outputs[0].dtype = "best", ir.DataType.INT64
    chosen.outputs[0].shape = ir.Shape(["batch", 1])
    program.graph.outputs[:] = [chosen.outputs[0]]
    model = replace(residual, program=program)
    with pytest.raises(InputError, match="no output of this network can be imitated") as caught:
        recover(model, model, seen, SHORT)
    assert "best int64" in caught.value.got
