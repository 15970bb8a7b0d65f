"""How a user's function is found, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit.data.functions import function_digest, load_function
from edgekit.errors import InputError


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def refusal(spec: str, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_function(spec, folder)
    return caught.value


def test_a_function_in_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n")
    assert load_function("mine.py:double", tmp_path)(4) == 8


def test_a_function_in_a_package_beside_the_recipe(tmp_path: Path) -> None:
    package = tmp_path / "a_package_of_mine" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("def half(x):\n    return x / 2\n")
    assert load_function("a_package_of_mine.inner:half", tmp_path)(4) == 2


def test_a_function_of_an_installed_package(tmp_path: Path) -> None:
    assert load_function("math:sqrt", tmp_path)(9.0) == 3.0


def test_two_files_of_the_same_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.py").write_text(f"def which():\n    return {name!r}\n")
    assert [load_function("same.py:which", tmp_path / n)() for n in ("one", "two")] == [
        "one", "two"
    ]  # fmt: skip


@pytest.mark.parametrize("spec", ["nothing", ":f", "module:", ""])
def test_what_names_no_function_is_refused(tmp_path: Path, spec: str) -> None:
    assert "package.module:function" in refusal(spec, tmp_path).wanted


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal("gone.py:f", tmp_path).wanted == str(tmp_path / "gone.py")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    error = refusal("no_such_package_here.data:f", tmp_path)
    assert "no_such_package_here" in error.what
    assert "ModuleNotFoundError" in error.got


def test_a_missing_function_says_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(x): ...\ndef _hidden(): ...\nhalf = 3\n")
    assert refusal("mine.py:treble", tmp_path).wanted == "one of double"
    assert refusal("mine.py:half", tmp_path).got == "a int"


@pytest.mark.parametrize("body", ["raise RuntimeError('no licence')", "def f(:"])
def test_a_file_that_fails_when_it_runs_is_quoted(tmp_path: Path, body: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    error = refusal("mine.py:f", tmp_path)
    assert error.where == "mine.py:f"
    assert error.got.startswith(("RuntimeError: no licence", "SyntaxError"))
    assert error.__cause__ is not None


def test_the_digest_changes_with_the_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    digests = []
    for number in (1, 2):
        path.write_text(f"def f():\n    return {number}\n")
        digests.append(function_digest("mine.py:f", tmp_path))
    assert digests[0] != digests[1]
    path.write_text("def f():\n    return 1\n")
    assert function_digest("mine.py:f", tmp_path) == digests[0]


def test_the_digest_of_a_function_in_a_package_is_its_files(tmp_path: Path) -> None:
    import hashlib
    import json

    source = Path(json.__file__ or "")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert function_digest("json:loads", tmp_path) == digest
