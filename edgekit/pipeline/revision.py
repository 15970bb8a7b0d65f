"""Which commit of the user's repository a build belongs to, as git says it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgekit.history import Revision

_PATIENCE_S = 10.0


def revision_of(folder: Path) -> Revision:
    """The commit that is checked out in the folder, its tags, and whether files differ from it.

    Empty where there is no repository, no commit yet, or no git.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return Revision()
    return Revision(
        commit=commit,
        changed=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        tags=tuple(_git(folder, "tag", "--points-at", "HEAD").split()),
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder or Path()), *arguments], capture_output=True, text=True,
            timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
