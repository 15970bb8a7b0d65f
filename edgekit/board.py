"""What an NVIDIA machine says of itself: its module, L4T and JetPack, GPUs, power mode, libraries.

Everything is read from files under a root, or from a tool that prints one thing and ends; nothing
is imported, and what is not said is empty. Written from captured files and output of NVIDIA's
tools: no part of it has run on a Jetson.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# NVIDIA's number of a board: "p3767-0005" is a module, "p3768-0000" a carrier.
_BOARD = re.compile(r"(?<![a-z0-9])p\d{4}-\d{4}(?!\d)")
_L4T_LINE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
_POWER_MODE = re.compile(r"NV Power Mode:\s*(\S.*)")
_TOOL_SECONDS = 10.0

JETPACK_OF_L4T: Mapping[str, str] = {
    "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4",
    "32.7.5": "4.6.5", "32.7.6": "4.6.6",
    "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3",
    "35.6.0": "5.1.4", "35.6.1": "5.1.5", "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6",
    "36.2.0": "6.0DP", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1rev1", "36.4.3": "6.2",
    "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2",
    "38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1", "39.0.0": "7.2EA",
    "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
"""Which JetPack an L4T release belongs to: jetson_stats' table, and where sources disagree, it."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A discrete GPU as `nvidia-smi` tells it."""

    name: str
    compute_capability: str
    driver: str


def device_tree_strings(name: str, root: Path = Path("/")) -> list[str]:
    """The NUL-separated strings of a file of the device tree; none where it is not there."""
    try:
        content = (root / "proc" / "device-tree" / name).read_bytes()
    except OSError:
        return []
    words = (word.decode(errors="replace").strip() for word in content.split(b"\0"))
    return [word for word in words if word]


def is_tegra(root: Path = Path("/")) -> bool:
    """Whether the device tree names one of NVIDIA's Tegras, which every Jetson is."""
    return any(word.startswith("nvidia,tegra") for word in device_tree_strings("compatible", root))


def model_name(root: Path = Path("/")) -> str:
    """The board's name for itself. It does not tell modules of different memory apart."""
    return " ".join(device_tree_strings("model", root))


def soc_name(root: Path = Path("/")) -> str:
    """The system on a chip, such as "tegra234": the last entry of `compatible`."""
    compatible = device_tree_strings("compatible", root)
    return compatible[-1].partition(",")[2] if compatible else ""


def board_numbers(root: Path = Path("/")) -> tuple[str, ...]:
    """NVIDIA's numbers of the module and its carrier, such as "p3767-0005", as first seen."""
    files = ("compatible", "nvidia,dtsfilename", "nvidia,boardids")
    words = [word for name in files for word in device_tree_strings(name, root)]
    return tuple(dict.fromkeys(board for word in words for board in _BOARD.findall(word)))


def l4t_version(root: Path = Path("/")) -> str:
    """The release of Linux for Tegra, such as "36.4.3"; empty where there is none.

    From /etc/nv_tegra_release, else from the version of the package nvidia-l4t-core: images of
    JetPack 7 may lack the file.
    """
    try:
        first = (root / "etc" / "nv_tegra_release").read_text(errors="replace")
    except OSError:
        first = ""
    if found := _L4T_LINE.search(first):
        return _three_places(f"{found[1]}.{found[2]}")
    return _three_places(debian_version("nvidia-l4t-core", root).partition("-")[0])


def jetpack_version(root: Path = Path("/")) -> str:
    """The JetPack of the L4T release, else of the package nvidia-jetpack; empty where unknown."""
    known = JETPACK_OF_L4T.get(l4t_version(root), "")
    return known or debian_version("nvidia-jetpack", root).partition("+")[0].partition("-")[0]


def debian_version(package: str, root: Path = Path("/")) -> str:
    """The installed version of a Debian package, as dpkg's own list has it; else empty."""
    return _debian_versions(root / "var" / "lib" / "dpkg" / "status").get(package, "")


def cuda_version(root: Path = Path("/")) -> str:
    """The version of the CUDA toolkit in its usual place; empty where there is none."""
    folder = root / "usr" / "local" / "cuda"
    try:
        return str(json.loads((folder / "version.json").read_text())["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:  # before CUDA 11.1: "CUDA Version 10.2.300"
        return (folder / "version.txt").read_text().split()[-1]
    except (OSError, IndexError):
        return ""


def libnvinfer_version(root: Path = Path("/")) -> str:
    """TensorRT's version by its Debian package, without the packaging's own suffix."""
    for major in ("11", "10", "9", "8"):
        if found := debian_version(f"libnvinfer{major}", root):
            return found.partition("-")[0]
    return ""


def gpus() -> tuple[Gpu, ...]:
    """The discrete GPUs that `nvidia-smi` on PATH lists; none where it is absent or fails.

    A Jetson's own GPU is none of them.
    """
    fields = "name,compute_cap,driver_version"
    said = tool_output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    return parse_gpus(said)


def parse_gpus(said: str) -> tuple[Gpu, ...]:
    """The lines of `nvidia-smi --query-gpu=name,compute_cap,driver_version`, one GPU each."""
    rows = ([cell.strip() for cell in line.split(",")] for line in said.splitlines())
    return tuple(
        Gpu(name=row[0], compute_capability=row[1], driver=row[2])
        for row in rows
        if len(row) == 3 and re.fullmatch(r"\d+\.\d+", row[1])
    )


def power_mode(root: Path = Path("/")) -> str:
    """The power mode's name, as `nvpmodel -q` on PATH prints it; empty where nothing says it.

    By name: the ids of the modes differ from module to module. Where the tool does not answer (it
    may want root), from the id that it left in its status file, and its list of modes.
    """
    return parse_power_mode(tool_output(["nvpmodel", "-q"])) or stored_power_mode(root)


def stored_power_mode(root: Path = Path("/")) -> str:
    """The power mode's name by the files that nvpmodel leaves; empty where they do not say it."""
    try:
        status = (root / "var" / "lib" / "nvpmodel" / "status").read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"pmode:\s*(\d{1,6})\b", status)
    names = {number: name for name, number in power_modes(root).items()}
    return names.get(int(found[1]), "") if found else ""


def power_modes(root: Path = Path("/")) -> Mapping[str, int]:
    """The power modes that nvpmodel knows, by name, and their ids; none where its list is not."""
    try:
        text = (root / "etc" / "nvpmodel.conf").read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, int] = {}
    for tag in re.findall(r"^\s*<\s*POWER_MODEL\b([^>]*)>", text, re.MULTILINE):
        number, name = re.search(r"\bID=(\d{1,6})\b", tag), re.search(r"\bNAME=(\S+)", tag)
        if number and name:
            found[name[1]] = int(number[1])
    return found


def same_power_mode(one: str, other: str) -> bool:
    """Whether two names mean one mode: of some modules "15W" is called "MODE_15W"."""
    return _plain_mode(one) == _plain_mode(other)


def _plain_mode(name: str) -> str:
    return name.strip().upper().replace(" ", "_").removeprefix("MODE_")


def parse_power_mode(said: str) -> str:
    """The name in what `nvpmodel -q` prints; empty where there is none."""
    found = _POWER_MODE.search(said)
    return found[1].strip() if found else ""


def trtexec_place(root: Path = Path("/")) -> Path | None:
    """The `trtexec` on PATH, else the one that TensorRT's Debian packages install; None if none."""
    usual = root / "usr" / "src" / "tensorrt" / "bin" / "trtexec"
    found = shutil.which("trtexec") or shutil.which(usual)
    return Path(found) if found else None


def tool_output(command: Sequence[str], *, seconds: float = _TOOL_SECONDS) -> str:
    """What a tool on PATH prints; empty where it is absent, fails, or does not end in time."""
    tool = shutil.which(command[0])
    if tool is None:
        return ""
    try:
        done = subprocess.run(
            [tool, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _three_places(version: str) -> str:
    """ "36.3" and "36.3.0" are one release."""
    parts = [part for part in version.split(".") if part]
    return ".".join([*parts, "0", "0"][: max(3, len(parts))]) if parts else ""


@functools.cache
def _debian_versions(status: Path) -> Mapping[str, str]:
    """The packages that dpkg's list holds as installed, with their versions."""
    try:
        content = status.read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for paragraph in content.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Version" in fields:
            found[fields.get("Package", "")] = fields["Version"]
    return found
