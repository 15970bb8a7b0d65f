"""Every error that edgekit raises on purpose, and the exit code of each kind.

An error says what is wrong, where, what was got, what was wanted and what to do about it. Only
`cli.py` prints one.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """The root: anything that edgekit raises on purpose."""

    exit_code = 70

    def __init__(
        self, what: str, *, where: str = "", got: str = "", wanted: str = "", hint: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = got
        self.wanted = wanted
        self.hint = hint

    def __str__(self) -> str:
        rows = (("where", self.where), ("got", self.got), ("wanted", self.wanted))
        said = [self.what, *(f"{label}: {text}" for label, text in rows if text)]
        return "\n".join([*said, self.hint] if self.hint else said)


class InputError(EdgekitError):
    """What the user gave cannot be used: a file, a key, a value, a target that refuses a model."""

    exit_code = 2


class MissingPackageError(EdgekitError):
    """A package or tool that this request needs is not on this machine."""

    exit_code = 5


class ResourceError(EdgekitError):
    """The disk, the memory or the time ran out."""

    exit_code = 6


class InternalError(EdgekitError):
    """A step broke its own promise: a bug of edgekit, never of the user."""

    exit_code = 70
