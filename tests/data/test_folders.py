"""Which pictures a folder or a CSV names, their order and labels, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from edgekit.data.folders import Listing, list_pictures
from edgekit.errors import InputError


def touched(folder: Path, *names: str) -> Path:
    """The folder with files of those names; listing looks at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def listed(place: Path) -> Listing:
    return list_pictures(place, "evaluation data photos")


def names(listing: Listing, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in listing.paths]


def labels(listing: Listing) -> list[int]:
    assert listing.labels is not None
    assert listing.labels.dtype.kind == "i"
    return [int(label) for label in listing.labels]


def refusal(place: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        listed(place)
    assert caught.value.exit_code == 2
    return caught.value


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_class_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    folder = touched(tmp_path, "dog/2.png", "cat/b.jpg", "cat/a.JPEG", "dog/10.webp", "ant/x.tif")
    found = listed(folder)
    assert names(found, folder) == ["ant/x.tif", "cat/a.JPEG", "cat/b.jpg", "dog/10.webp",
                                    "dog/2.png"]  # fmt: skip
    assert labels(found) == [0, 1, 1, 2, 2]


def test_the_order_of_classes_txt_goes_before_the_alphabet(tmp_path: Path) -> None:
    folder = touched(tmp_path, "cat/1.png", "dog/1.png")
    (folder / "classes.txt").write_text("dog\nbird\n cat \n\n")
    found = listed(folder)
    assert names(found, folder) == ["dog/1.png", "cat/1.png"]
    assert labels(found) == [0, 2]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    folder = touched(tmp_path, "b.png", "a.bmp", "c.tiff")
    found = listed(folder)
    assert names(found, folder) == ["a.bmp", "b.png", "c.tiff"]
    assert found.labels is None


def test_hidden_files_and_what_is_no_picture_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = touched(tmp_path, "a.png", ".b.png", ".git/c.png", "notes.txt", "Thumbs.db")
    with caplog.at_level(logging.INFO):
        assert names(listed(folder), folder) == ["a.png"]
    assert "2 files that are no pictures" in caplog.text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("a.txt", "b.npz", "c.npz"), "2 .npz, 1 .txt"),
        ((), "an empty folder"),
        ((".hidden.png",), "an empty folder"),
    ],
)
def test_a_folder_without_a_picture_says_what_it_holds(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    error = refusal(touched(tmp_path, *files))
    assert error.got == said
    assert ".jpg" in error.wanted


def test_pictures_beside_class_folders_are_refused(tmp_path: Path) -> None:
    error = refusal(touched(tmp_path, "cat/1.png", "dog/1.png", "stray.jpg"))
    assert error.got == "1 picture (stray.jpg) and 2 folders (cat, dog)"


def test_a_class_folder_without_a_picture_is_refused_since_labels_would_move(
    tmp_path: Path,
) -> None:
    error = refusal(touched(tmp_path, "cat/1.png", "__MACOSX/._1.png", "dog/1.png"))
    assert "__MACOSX" in error.what
    assert "classes.txt" in error.hint


def test_a_folder_of_splits_is_not_taken_for_classes(tmp_path: Path) -> None:
    error = refusal(touched(tmp_path, "train/cat/1.png", "val/cat/1.png"))
    assert "holds folders of its own" in error.what
    assert str(tmp_path / "train") in error.hint


def test_a_folder_that_classes_txt_does_not_know_is_named(tmp_path: Path) -> None:
    folder = touched(tmp_path, "cats/1.png", "dog/1.png")
    (folder / "classes.txt").write_text("cat\ndog\n")
    error = refusal(folder)
    assert error.got == "cats"
    assert error.hint == 'Did you mean "cat"?'


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "an empty file"), ("cat\n\ndog\n", "an empty line"), ("cat\ndog\ncat", "cat twice")],
)
def test_classes_in_no_clear_order_are_refused(tmp_path: Path, text: str, said: str) -> None:
    folder = touched(tmp_path, "cat/1.png")
    (folder / "classes.txt").write_text(text)
    assert refusal(folder).got == said


@pytest.mark.parametrize("name", ["x.gif", "x.HEIC", "cat/x.avif"])
def test_pictures_of_a_kind_that_is_not_read_are_not_left_out_in_silence(
    tmp_path: Path, name: str
) -> None:
    error = refusal(touched(tmp_path, "cat/a.png", name))
    assert Path(name).name in error.got
    assert error.hint == "Convert them, or take them out."


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,1\nsub/b.png,0\n",
        "a.png,1\nsub/b.png,0\n",
        "\ufeffPath, Label\r\na.png, 1\r\nsub/b.png, 0\r\n\r\n",
        'label,note,path\n1,"x, y",a.png\n0,,sub/b.png\n',
        '"a.png","1"\n"sub/b.png","0"',
    ],
    ids=["header", "no header", "as a spreadsheet writes", "other columns", "quoted"],
)
def test_a_csv_lists_paths_and_labels(tmp_path: Path, text: str) -> None:
    folder = touched(tmp_path, "a.png", "sub/b.png", "unlisted.png")
    found = listed(table(folder, text))
    assert names(found, folder) == ["a.png", "sub/b.png"]
    assert labels(found) == [1, 0]


@pytest.mark.parametrize("text", ["path\nb.png\na.png\n", "b.png\na.png\n"])
def test_a_csv_may_have_no_labels_and_its_own_order(tmp_path: Path, text: str) -> None:
    folder = touched(tmp_path, "a.png", "b.png")
    found = listed(table(folder, text))
    assert names(found, folder) == ["b.png", "a.png"]
    assert found.labels is None


def test_a_folder_with_a_labels_csv_is_what_that_lists(tmp_path: Path) -> None:
    folder = touched(tmp_path, "a.png", "b.png")
    table(folder, "b.png,3\n", "labels.csv")
    found = listed(folder)
    assert names(found, folder) == ["b.png"]
    assert labels(found) == [3]


def test_names_of_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    folder = touched(tmp_path, "1.png", "2.png", "3.png")
    assert labels(listed(table(folder, "1.png,dog\n2.png,cat\n3.png,dog\n"))) == [1, 0, 1]


def test_names_of_classes_are_numbered_by_classes_txt_beside_the_csv(tmp_path: Path) -> None:
    folder = touched(tmp_path, "1.png", "2.png")
    (folder / "classes.txt").write_text("dog\ncat\nbird\n")
    assert labels(listed(table(folder, "1.png,bird\n2.png,dog\n"))) == [2, 0]
    assert labels(listed(table(folder, "1.png,1\n2.png,2\n"))) == [1, 2]


def test_digits_that_classes_txt_names_are_names(tmp_path: Path) -> None:
    folder = touched(tmp_path, "1.png", "2.png")
    (folder / "classes.txt").write_text("7\n1\n0\n")
    assert labels(listed(table(folder, "1.png,0\n2.png,7\n"))) == [2, 0]


def test_paths_may_be_absolute_and_may_leave_the_folder(tmp_path: Path) -> None:
    """The CSV is the user's own, who may read those files anyway."""
    touched(tmp_path, "elsewhere/a.png", "b.png", "lists/none.txt")
    text = f"{tmp_path / 'elsewhere' / 'a.png'},0\n../b.png,1\n"
    found = listed(table(tmp_path / "lists", text))
    assert [path.resolve() for path in found.paths] == [
        tmp_path.resolve() / "elsewhere" / "a.png", tmp_path.resolve() / "b.png"
    ]  # fmt: skip


CSV_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "missing file": ("path,label\na.png,0\ngone.png,1\n", {"got": "1 of 2, the first on line 3"}),
    "unknown header": ("file,class\na.png,0\n", {"got": "line 1: 'file'", "hint": "path,label"}),
    "no picture": ("a.png,0\nnotes.txt,1\n", {"got": "line 2: notes.txt"}),
    "twice": ("a.png,0\nb.png,1\n./a.png,1\n", {"got": "line 1 and on line 3"}),
    "no label in a row": ("a.png,0\nb.png,\n", {"what": "no label", "got": "line 2"}),
    "no path in a row": ("a.png,0\n,1\n", {"what": "no path", "got": "line 2"}),
    "a cell too many": ("a.png,0\nb.png,1,2\n", {"got": "line 2: 'b.png,1,2'"}),
    "three cells and no header": ("a.png,0,1\n", {"got": "line 1"}),
    "numbers and names": ("a.png,0\nb.png,cat\n", {"got": "0 on line 1, 'cat' on line 2"}),
    "a negative number": ("a.png,0\nb.png,-1\n", {"got": "'-1' on line 2"}),
    "fractions": ("a.png,1.0\nb.png,10.0\n", {"got": "1.0 on line 1", "wanted": "0, 1, 2"}),
    "a huge number": ("a.png,0\nb.png,99999999999999999999\n", {"got": "on line 2"}),
    "nothing": ("", {"got": "an empty file"}),
    "a header alone": ("path,label\n", {"got": "a header alone"}),
    "an open quote": ('"a.png,0\n', {"what": "no CSV"}),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_a_fault_in_a_csv_is_named_with_its_line(tmp_path: Path, fault: str) -> None:
    text, said = CSV_FAULTS[fault]
    folder = touched(tmp_path, "a.png", "b.png", "notes.txt")
    error = refusal(table(folder, text))
    for field, part in said.items():
        assert part in getattr(error, field)


@pytest.mark.parametrize(
    ("label", "said", "hint"),
    [("brid", "'brid' on line 2", 'Did you mean "bird"?'), ("3", "3 on line 2", "")],
)
def test_a_label_that_classes_txt_does_not_know_is_refused(
    tmp_path: Path, label: str, said: str, hint: str
) -> None:
    folder = touched(tmp_path, "a.png", "b.png")
    (folder / "classes.txt").write_text("cat\ndog\nbird\n")
    first = "cat" if hint else "2"
    error = refusal(table(folder, f"a.png,{first}\nb.png,{label}\n"))
    assert error.got == said
    assert error.hint == hint


def test_a_csv_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "no such" in refusal(tmp_path / "gone.csv").what
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    assert refusal(tmp_path / "list.csv").wanted == "text in UTF-8"
