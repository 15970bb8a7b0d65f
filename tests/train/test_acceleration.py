"""Mixed precision and several processes, through accelerate where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import InputError, MissingPackageError
from edgekit.train.launch import launched

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

SAMPLES = 48
INPUTS = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS @ torch.randn(6, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def loss(module: Any, chosen: Any, generator: Any) -> Any:
    return (module(INPUTS[chosen]) - TARGETS[chosen]).square().mean()


def trained(module: Any, loss: Any = loss, checkpoint: Any = None, **changes: Any) -> Any:
    from edgekit.train.fit import Task, fit
    from edgekit.train.options import FitOptions

    options = FitOptions(
        **{"epochs": 10, "learning_rate": 0.02, "batch": 8, "seed": 3, **changes}
    )  # fmt: skip
    return fit(module, Task(samples=SAMPLES, loss=loss), options, checkpoint=checkpoint)


def state(module: Any) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in module.state_dict().items()}


def test_full_precision_in_one_process_does_not_need_accelerate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    report = trained(network())
    assert report.losses[-1] < 0.5 * report.losses[0]


@pytest.mark.parametrize(
    ("precision", "environment"), [("bf16", {}), ("fp32", {"WORLD_SIZE": "2", "RANK": "0"})]
)
def test_without_accelerate_the_extra_is_named(
    precision: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingPackageError) as caught:
        trained(network(), precision=precision)
    assert "edgekit[accelerate]" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no graphics card")
def test_fp16_without_a_graphics_card_is_refused() -> None:
    with pytest.raises(InputError, match="graphics card") as caught:
        trained(network(), precision="fp16")
    assert "bf16" in caught.value.hint


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        trained(network(), precision="fp12")
    assert caught.value.wanted == "fp32, bf16, fp16"


def test_bf16_multiplies_in_bf16_and_learns_in_fp32() -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    module, seen = network(), set()
    module[0].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))

    def noting(module: Any, chosen: Any, generator: Any) -> Any:
        found = loss(module, chosen, generator)
        seen.add(("loss", found.dtype))
        return found

    report = trained(module, noting, precision="bf16")
    assert seen == {torch.bfloat16, ("loss", torch.float32)}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert report.losses[-1] < 0.5 * report.losses[0]
    full = trained(network())
    assert report.losses != full.losses
    assert report.losses == pytest.approx(full.losses, rel=0.05)


def test_after_bf16_the_module_computes_in_fp32_again() -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    module = network()
    trained(module, precision="bf16", epochs=1)
    with torch.no_grad():
        found = module(INPUTS)
        weights = [module[0].weight, module[0].bias, module[2].weight, module[2].bias]
        a, b, c, d = (w.double() for w in weights)
        expected = (INPUTS.double() @ a.T + b).clamp_min(0) @ c.T + d
    assert torch.allclose(found.double(), expected, atol=1e-5)
    # And a run in another precision may follow in the same process.
    assert trained(module, epochs=1).losses[0] > 0


def test_an_interrupted_bf16_run_ends_with_the_very_weights_of_a_whole_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    from edgekit.train.checkpoint import Checkpoint

    whole = network()
    trained(whole, precision="bf16", epochs=4)
    checkpoint = Checkpoint(path=tmp_path / "state.pt", made_from={})
    calls = 0

    def interrupted(module: Any, chosen: Any, generator: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2 * SAMPLES // 8 + 2:
            raise KeyboardInterrupt
        return loss(module, chosen, generator)

    with pytest.raises(KeyboardInterrupt):
        trained(network(), interrupted, checkpoint, precision="bf16", epochs=4)
    module = network()
    report = trained(module, loss, checkpoint, precision="bf16", epochs=4)
    assert report.resumed_after == 2
    assert state(module) == state(whole)
    # At another precision it is another run.
    other = trained(network(), loss, checkpoint, epochs=4)
    assert other.resumed_after == 0
    assert "precision bf16, now fp32" in other.not_resumed


def test_a_network_that_bf16_does_not_fit_says_so() -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")

    class Strict(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(6, 3)
            self.mixing = torch.nn.Parameter(torch.eye(3))

        def forward(self, x: Any) -> Any:
            y = self.first(x)
            found = torch.empty(len(x), 3)
            return torch.mul(y, 1, out=found) if y.dtype == found.dtype else found.index_put(
                (torch.arange(len(x)),), y
            )  # fmt: skip

    with pytest.raises(InputError, match="does not run in bf16") as caught:
        trained(Strict(), precision="bf16")
    assert 'precision = "fp32"' in caught.value.hint


def test_a_launch_for_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match="another precision"):
        trained(network(), precision="bf16")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "2"}, (2, 4)),
        ({"WORLD_SIZE": "", "RANK": "x"}, (0, 1)),
        ({"RANK": "3"}, (0, 1)),
    ],
)
def test_a_launch_is_read_from_the_environment(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


TWO = """
import json, os, sys
import torch
sys.path.insert(0, os.environ["HERE"])
torch.set_num_threads(1)
from pathlib import Path
from test_acceleration import INPUTS, loss, network, state, trained
from edgekit.errors import InputError
from edgekit.train.checkpoint import Checkpoint
from edgekit.train.schedules import Schedule

out = Path(os.environ["OUT"])
rank = int(os.environ["RANK"])
module, seen = network(), []

def noting(module, chosen, generator):
    seen.append(chosen.tolist())
    return loss(module, chosen, generator)

report = trained(module, noting, epochs=3, batch=9)
first = Checkpoint(path=out / "state.pt", made_from={})
trained(network(), loss, first, epochs=2, schedule=Schedule(kind="constant"))
resumed = trained(network(), loss, first, epochs=3, schedule=Schedule(kind="constant"))
refused = ""
try:
    trained(network(), loss, Checkpoint(path=out / f"state{rank}.pt", made_from={}), epochs=1)
    trained(network(), loss, Checkpoint(path=out / f"state{rank}.pt", made_from={}), epochs=1)
except InputError as error:
    refused = error.what
(out / f"{rank}.json").write_text(json.dumps({
    "state": state(module), "losses": report.losses, "processes": report.processes, "seen": seen,
    "resumed": resumed.resumed_after, "refused": refused,
    "files": sorted(p.name for p in out.glob("state*")),
}))
"""


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    """They are launched for real, and talk by gloo."""
    pytest.importorskip("accelerate", reason="needs the accelerate extra")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    here = str(Path(__file__).resolve().parent)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script)],
        env={**os.environ, "HERE": here, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    module = network()
    report = trained(module, epochs=3, batch=9)
    assert first["processes"] == second["processes"] == 2
    assert first["state"] == second["state"]
    assert first["losses"] == second["losses"] == pytest.approx(list(report.losses), rel=1e-4)
    for name, expected in state(module).items():
        assert first["state"][name] == pytest.approx(expected, abs=1e-4)
    # Each batch of 9 was shared out, 5 and 4, and none was seen twice.
    assert [len(chosen) for chosen in first["seen"][:5]] == [5] * 5
    assert [len(chosen) for chosen in second["seen"][:5]] == [4] * 5
    epoch = [i for part in (*first["seen"][:5], *second["seen"][:5]) for i in part]
    assert len(epoch) == len(set(epoch)) == 45
    assert first["resumed"] == second["resumed"] == 2
    assert "same checkpoint" in first["refused"]
    assert "same checkpoint" in second["refused"]
    assert "state0.pt" in first["files"]
    assert "state1.pt" not in first["files"]
