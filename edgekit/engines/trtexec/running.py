"""NVIDIA's trtexec as a way to build and measure: here, or on a device behind a command prefix.

For devices whose TensorRT or Python is out of reach. A device recipe's build.sh does all of it, so
that what a person runs by hand and what edgekit runs over ssh is one and the same.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from edgekit import board
from edgekit.engines.device_recipe.document import DeviceRecipe
from edgekit.engines.processes import shell_copies, shells
from edgekit.engines.processes.shells import Shell
from edgekit.engines.trtexec.script import SCRIPT_FILE
from edgekit.engines.trtexec.script_parts import RESULTS_FOLDER
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError

GPUS_FILE = "gpus"
"""What nvidia-smi says of the device's GPUs, among its own files."""

# build.sh's own exit codes.
_NO_TRTEXEC, _NOT_RIGHT = 5, 2

_ROOT_FILES = (
    "proc/device-tree/model", "proc/device-tree/compatible",
    "proc/device-tree/nvidia,dtsfilename", "proc/device-tree/nvidia,boardids",
    "etc/nv_tegra_release",
)  # fmt: skip


def trtexec_here(recipe: DeviceRecipe) -> str:
    """The trtexec of this machine, empty where there is none. $TRTEXEC goes before all."""
    for place in (os.environ.get("TRTEXEC", ""), recipe.target.runtime.trtexec):
        if place and (found := shutil.which(place)):
            return found
    return str(board.trtexec_place() or "")


def run_recipe(
    recipe: DeviceRecipe, shell: Shell, results: Path, *, limit_s: float,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Builds the engine, runs the golden inputs and measures, where the shell leads.

    Leaves build.sh's results in the folder. What a run that was stopped has made already is not
    made again; a measurement always is. Raises MissingPackageError where there is no trtexec,
    ResourceError where disk or time run out or the connection is lost, InputError where trtexec
    refuses the model, with what it says.
    """
    place = _place(recipe, shell)
    if not shell.is_here:
        shell_copies.push(shell, recipe.folder, recipe.sha256, place, on_line=on_line)
    ended = shells.run(
        shell, f"cd {place} && exec sh ./{SCRIPT_FILE}", limit_s=limit_s, what="the build",
        on_line=lambda line: on_line(line.removeprefix("edgekit: ")),
    )  # fmt: skip
    if ended.code:
        raise _failure(recipe, shell, ended)
    if not shell.is_here:
        on_line("copying the results")
        shell_copies.pull(shell, place, RESULTS_FOLDER, results)
    elif results.resolve() != (recipe.folder / RESULTS_FOLDER).resolve():
        raise ValueError(results)


def device_root(shell: Shell, folder: Path) -> Path:
    """The files by which a device is recognised, copied into the folder as they lie there.

    This machine's own root where the shell is this machine's. Raises as `shells.run` does.
    """
    if shell.is_here:
        return Path("/")
    listed = " ".join(map(shlex.quote, _ROOT_FILES))
    place = '"${XDG_CACHE_HOME:-$HOME/.cache}"/edgekit/machine'
    gather = (
        f"(rm -rf {place} && mkdir -p {place}/root && cd / && for f in {listed}; do "
        f'if [ -r "$f" ]; then mkdir -p {place}/root/"${{f%/*}}" && '
        f'cat "$f" >{place}/root/"$f"; fi; done; uname -m >{place}/root/machine; '
        "nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader "
        f">{place}/root/{GPUS_FILE} 2>/dev/null || true)"
    )
    shell_copies.pull(shell, place, "root", folder, before=gather)
    return folder


def _place(recipe: DeviceRecipe, shell: Shell) -> str:
    """The recipe's folder there, as a shell reads it."""
    if shell.is_here:
        return shlex.quote(str(recipe.folder.resolve()))
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in recipe.name)[:60]
    return f'"${{XDG_CACHE_HOME:-$HOME/.cache}}"/edgekit/{name}-{recipe.stamp[:16]}'


def _failure(recipe: DeviceRecipe, shell: Shell, ended: shells.Ended) -> EdgekitError:
    said = "\n".join(
        line.removeprefix("edgekit: ") for line in ended.said.splitlines()
    )  # fmt: skip
    if ended.code == _NO_TRTEXEC:
        return MissingPackageError(
            "there is no trtexec on the device"
            if not shell.is_here
            else "there is no trtexec on this machine",
            where=shell.name, got=said, wanted=f"the one of {_versions(recipe)}",
            hint="JetPack installs it as /usr/src/tensorrt/bin/trtexec (package "
            "libnvinfer-bin); TRTEXEC names another.",
        )  # fmt: skip
    if ended.code == _NOT_RIGHT:
        return InputError("the device does not fit the recipe", where=shell.name, got=said)
    wrong = InputError(
        "trtexec does not build this model, or not run it", where=shell.name, got=said,
        hint="Its logs lie in results/ of the recipe's folder on the device. Keep what it names "
        "in floating point, or take it out of the model.",
    )  # fmt: skip
    if ended.code in (137, 9):
        return ResourceError(
            "trtexec was killed by SIGKILL, by whom is not known", where=shell.name, got=said,
            hint="If the memory ran out: close other programs there, or lower "
            "engine.workspace_mb.",
        )  # fmt: skip
    return shells.full_or(said, wrong, shell)


def _versions(recipe: DeviceRecipe) -> str:
    versions = dict.fromkeys(build["runtime"]["version"] for build in recipe.builds)
    return " or ".join(f"TensorRT {version}" for version in versions)
