"""Who may import whom, read from the imports themselves; and what a light start may not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgekit"

# Whoever stands in a lower row may not import who stands in a higher one; rooms of one row do not
# import one another.
ROWS = (
    ("errors",),
    ("files", "documents", "machine", "board"),
    ("values",),
    ("targeting",),
    ("targets", "recipe", "recipe_targets", "recipe_sections"),
    ("models", "data"),
    ("train",),
    ("compress",),
    ("quantize",),
    ("codec",),
    ("engines",),
    ("bench",),
    ("evidence",),
    ("verify", "gate", "history", "doctor"),
    ("pipeline",),
    ("report", "release", "fleet", "api"),
    ("console",),
    ("cli",),
)
FLOOR = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

# A recipe names targets and checks that they exist; its tables are a file of their own.
WITHIN_A_ROW = {
    ("recipe", "targets"), ("recipe", "recipe_sections"), ("recipe", "recipe_targets"),
    ("recipe_targets", "targets"), ("recipe_targets", "recipe_sections"),
}  # fmt: skip

OWNERS = {
    "torch": (
        "models/torch_module.py", "models/torch_source.py", "models/torch_files.py",
        "models/operators/", "train/", "compress/",
        "quantize/refine/", "quantize/precision/",
    ),
    "accelerate": ("train/acceleration.py",),
    # Only by name, in the process that builds and where an engine is opened.
    "tensorrt": (),
    "tensorrt_rtx": (),
    "pycuda": ("engines/cuda.py",),
    "ctypes": ("engines/cuda.py", "engines/cuda_runtime.py", "bench/nvml.py"),
    "onnxsim": ("models/simplify.py",),
    "onnxruntime": ("engines/onnxruntime.py", "engines/onnxruntime_session.py"),
    "openvino": ("engines/openvino.py",),
    "rich": ("console.py",),
    "typer": ("cli.py",),
    "PIL": ("data/decode.py",),
    "click": (),
    "torchvision": (),
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_names(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Every dotted name that the file imports, anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            names.add(module)
            if module == "edgekit":
                names |= {f"edgekit.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_below(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] != "edgekit" or len(parts) < 2:
            continue
        other = parts[1]
        if other == room or (room, other) in WITHIN_A_ROW:
            continue
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_by_their_owners_only(path: Path) -> None:
    here = path.relative_to(PACKAGE).as_posix()
    for name in imported_names(path):
        owners = OWNERS.get(name.split(".")[0])
        if owners is not None:
            assert here.startswith(owners) if owners else False, f"{here} imports {name}"


def test_every_room_has_a_row() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR)


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that `python ARGUMENTS` loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 10
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "pydantic", "PIL", "psutil"}
    assert not loaded_by("-m", "edgekit.cli", "--help") & heavy


def test_the_package_itself_loads_nothing_heavy() -> None:
    heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "pydantic", "typer", "rich"}
    assert not loaded_by("-c", "import edgekit") & heavy
