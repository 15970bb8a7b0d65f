"""The page of what never ran on hardware: it names what exists, and leaves nothing out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "hardware.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:edgekit|tests|benchmarks)/[\w./]*)`", PAGE)))
# How a module's docstring says that it is written against documents and stand-ins.
_SAID = re.compile(
    r"never (been )?(run|on a (GPU|Jetson))|no part of it has run|nothing here has run|has not run"
    r"|have not been read on one",
    re.IGNORECASE,
)


def untried() -> list[str]:
    """The modules that say of themselves that hardware has never run them."""
    found = []
    for path in sorted((ROOT / "edgekit").rglob("*.py")):
        said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        if _SAID.search(said):
            found.append(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_exists(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_page_names_many_modules() -> None:
    assert len([name for name in NAMED if name.startswith("edgekit/")]) > 20


def test_a_module_that_says_it_never_ran_on_hardware_is_on_the_page() -> None:
    modules = untried()
    assert "edgekit/engines/cuda.py" in modules
    assert not [module for module in modules if module not in NAMED]
