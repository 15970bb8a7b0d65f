"""`edgekit build --from --via 'ssh …'` over a real OpenSSH server on this machine's loopback."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import device_recipes
import fake_trtexec
import pytest

from edgekit import files
from edgekit.engines.processes import shell_copies, shells
from edgekit.errors import InputError, MissingPackageError, ResourceError
from edgekit.pipeline.from_recipe import FromRequest, build_from
from edgekit.values import Verdict

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="needs sshd (Debian: openssh-server)"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh (Debian: openssh-client)"),
]
IMAGES = device_recipes.two_batches()[:2]


@dataclass(frozen=True)
class Device:
    """A server, how to reach it, and where its trtexec and its cache lie."""

    via: str
    process: subprocess.Popen[bytes]
    trtexec: Path
    cache: Path

    def set_fault(self, fault: str) -> None:
        (self.trtexec / "fault").write_text(fault)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An sshd with keys and a configuration of its own; whoever runs the tests logs in."""
    place = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(command, check=True)
    trtexec = fake_trtexec.install(place / "trtexec's place")
    cache, port = place / "cache of it", free_port()
    (place / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nPidFile none\n"
        f"AuthorizedKeysFile {place}/user.pub\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin yes\n"
        f'SetEnv "TRTEXEC={trtexec}" "XDG_CACHE_HOME={cache}"\n'
    )
    assert SSHD is not None
    separation = Path("/run/sshd")  # a server of root's asks for it
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    with subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(place / "sshd_config")], stderr=subprocess.DEVNULL
    ) as process:
        via = shlex.join([
            "ssh", "-p", str(port), "-i", str(place / "user"), "-F", "none",
            "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={place}/known",
            "-o", "IdentitiesOnly=yes", f"{getpass.getuser()}@127.0.0.1",
        ])  # fmt: skip
        wait_for(port)
        yield Device(via=via, process=process, trtexec=trtexec.parent, cache=cache)
        process.terminate()
    if made:
        with contextlib.suppress(OSError):
            separation.rmdir()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    pytest.fail("sshd did not start")


@pytest.fixture(autouse=True)
def good(device: Device) -> None:
    device.set_fault("")


@pytest.fixture
def recipe(residual_path: Path, tmp_path: Path) -> Path:
    """A recipe that any machine may build, in a folder and of a name that a shell would take apart.

    Its name is of this test alone: recipes on the device are told apart by what is in them.
    """
    return device_recipes.write(
        residual_path, tmp_path / "it's $HOME; a folder", {"image": IMAGES},
        target=device_recipes.anonymous(), name=f"it's a \"net\" $(exit 3) {tmp_path.name}",
    ).folder  # fmt: skip


def nothing(event: object) -> None:
    del event


def test_a_device_builds_answers_and_is_measured_over_ssh(device: Device, recipe: Path) -> None:
    result = build_from(FromRequest(folder=recipe, via=device.via), on_event=nothing)
    (target,) = result.targets
    assert target.verdict is Verdict.PASS, target.checks
    assert target.after.fps == pytest.approx(2 * 480.25)
    assert (recipe / "built" / "engine" / "model.engine").stat().st_size > 10_000
    (there,) = (device.cache / "edgekit").glob("it_s_a__net_*")
    assert (there / "results" / "model.engine").is_file()
    assert not (recipe / "argv.txt").exists()  # nothing was built in the recipe's own folder

    # Again: only what was changed there is sent, and the engine is built already.
    kept = (there / "golden.npz").stat().st_mtime_ns
    (there / "model.onnx").write_bytes(b"another")
    words = ["build", "--from", str(recipe), "--via", device.via, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["targets"][0]["verdict"] == "pass"
    assert (there / "model.onnx").read_bytes() == (recipe / "model.onnx").read_bytes()
    assert (there / "golden.npz").stat().st_mtime_ns == kept
    built = [json.loads(line) for line in (there / "argv.txt").read_text().splitlines()]
    assert sum("--saveEngine" in " ".join(run) for run in built) == 1


def test_a_device_of_another_kind_is_refused_before_anything_is_sent(
    device: Device, residual_path: Path, tmp_path: Path
) -> None:
    made = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES}, name="unsent"
    )
    with pytest.raises(InputError, match="not the one that this recipe is for"):
        build_from(FromRequest(folder=made.folder, via=device.via), on_event=nothing)
    assert not list((device.cache / "edgekit").glob("unsent-*"))


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("refused", InputError, "No importer registered for op: Mod"),
        ("full-disk", ResourceError, "No space left on device"),
    ],
)
def test_what_trtexec_says_there_is_said_here(
    device: Device, recipe: Path, fault: str, kind: type[Exception], said: str
) -> None:
    device.set_fault(fault)
    with pytest.raises(kind) as caught:
        build_from(FromRequest(folder=recipe, via=device.via), on_event=nothing)
    assert said in caught.value.got  # type: ignore[attr-defined]
    assert not (recipe / "built").exists()
    assert not (recipe / "results").exists()


def test_a_device_without_trtexec_is_said(device: Device, recipe: Path) -> None:
    moved = device.trtexec / "moved"
    (device.trtexec / "trtexec").rename(moved)
    try:
        with pytest.raises(MissingPackageError, match="no trtexec on the device"):
            build_from(FromRequest(folder=recipe, via=device.via), on_event=nothing)
    finally:
        moved.rename(device.trtexec / "trtexec")


def at_work(device: Device) -> bool:
    return fake_trtexec.is_at_work("--saveEngine") and fake_trtexec.is_at_work("fake_trtexec.py")


def gone(device: Device, seconds: float = 8) -> bool:
    deadline = time.monotonic() + seconds
    while at_work(device) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not at_work(device)


def test_a_time_limit_ends_trtexec_there(device: Device, recipe: Path) -> None:
    device.set_fault("slow-build")
    request = FromRequest(folder=recipe, via=device.via, time_limit_s=2)
    with pytest.raises(ResourceError, match="time limit"):
        build_from(request, on_event=nothing)
    assert gone(device)


def waiting_build(device: Device, recipe: Path) -> subprocess.Popen[str]:
    """`edgekit build` while trtexec builds for a minute there."""
    device.set_fault("slow-build")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli", "build", "--from", str(recipe), "--via", device.via],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not at_work(device) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert at_work(device)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_edgekit_ends_trtexec_there(
    device: Device, recipe: Path, number: int
) -> None:
    with waiting_build(device, recipe) as process:
        process.send_signal(number)
        assert process.wait(10) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert gone(device)
    assert not (recipe / "built").exists()


def test_a_connection_that_drops_is_one_panel(device: Device, recipe: Path) -> None:
    with waiting_build(device, recipe) as process:
        for pid in children(device.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 6, said
    assert "the connection to the device was lost" in said
    assert said.count("╭") == 1
    assert gone(device)


def children(pid: int) -> list[int]:
    """The servers of single connections, and of their sessions."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            name = (path.parent / "cmdline").read_bytes()
            if int(fields[1]) == pid and b"sshd" in name:
                found += [*children(int(path.parent.name)), int(path.parent.name)]
    return found


def test_a_device_that_cannot_be_reached_is_input_not_loss(device: Device, recipe: Path) -> None:
    words = shlex.split(device.via)
    words[words.index("-p") + 1] = str(free_port())
    with pytest.raises(InputError, match="cannot be reached") as caught:
        build_from(FromRequest(folder=recipe, via=shlex.join(words)), on_event=nothing)
    assert "refused" in caught.value.got


def test_a_key_that_the_device_does_not_know_asks_no_question(
    device: Device, recipe: Path, tmp_path: Path
) -> None:
    key = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    words = shlex.split(device.via)
    words[words.index("-i") + 1] = str(key)
    with pytest.raises(InputError, match="cannot be reached") as caught:
        build_from(FromRequest(folder=recipe, via=shlex.join(words)), on_event=nothing)
    assert "Permission denied" in caught.value.got


def test_a_folder_there_and_back_is_the_same(device: Device, tmp_path: Path) -> None:
    shell = shells.shell_of(device.via)
    source = tmp_path / "source"
    (source / "in it").mkdir(parents=True)
    names = {"a": os.urandom(70_000), "in it/b 'c' $d": b"", "-e": b"dash"}
    for name, content in names.items():
        (source / name).write_bytes(content)
    digests = {name: files.digest_bytes(content) for name, content in names.items()}
    place = shlex.quote(str(tmp_path / "there's"))
    assert shell_copies.push(shell, source, digests, f"{place}/all") == 3
    assert shell_copies.push(shell, source, digests, f"{place}/all") == 0
    shell_copies.pull(shell, place, "all", tmp_path / "back")
    found = {
        str(path.relative_to(tmp_path / "back")): path.read_bytes()
        for path in (tmp_path / "back").rglob("*") if path.is_file()
    }  # fmt: skip
    assert found == names
