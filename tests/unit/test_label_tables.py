"""Tables of labels: classes, splits and groups from ``labels.csv``, and what is said of a bad line."""

from pathlib import Path

import pytest

from graftflow.errors import InputError
from graftflow.label_tables import Row, read_table
from graftflow.sources import check_source, open_source
from graftflow.splits import SPLITS
from tests.unit.pictures_on_disk import encode, make_folder, photo, rows, write

HEADER = "path,label,split,group"
NAMES = [f"photos/{i:02d}.jpg" for i in range(24)]


def table(root: Path, *lines: str, header: str = HEADER) -> Path:
    files = {name: encode(photo(i, (60, 48)), "JPEG") for i, name in enumerate(NAMES)}
    make_folder(root, files | {"labels.csv": "\n".join([header, *lines, ""]).encode()})
    return root


def test_a_table_says_class_split_and_group(tmp_path: Path) -> None:
    root = table(
        tmp_path / "pets",
        "photos/00.jpg,cat,val,tom",
        '"./photos/01.jpg", dog ,Training,',
        "",
        "photos//02.jpg,a cat,TEST,p 7",
    )
    assert read_table(root / "labels.csv") == [
        Row("photos/00.jpg", "cat", "validation", "tom"),
        Row("photos/01.jpg", "dog", "train", ""),
        Row("photos/02.jpg", "a cat", "test", "p 7"),
    ]


def test_a_spreadsheet_s_mark_and_another_order_of_columns_do_not_matter(tmp_path: Path) -> None:
    root = table(tmp_path / "pets", "tom,cat,photos/00.jpg", header="\ufeffGroup,Label,Path")
    assert read_table(root / "labels.csv") == [Row("photos/00.jpg", "cat", "", "tom")]


@pytest.mark.parametrize("place", ["", "/labels.csv"])
def test_a_data_set_is_made_of_a_table(tmp_path: Path, place: str) -> None:
    lines = [f"{name},{'cat' if i % 2 else 'dog'},patient {i // 4}" for i, name in enumerate(NAMES)]
    root = table(tmp_path / "pets", *lines, header="path,label,group")
    check_source(f"directory:{root}{place}")
    dataset, info = write(tmp_path / f"pets{place}", validation_fraction=0.25, test_fraction=0.25)
    # A quarter of 12 pictures a class is wanted; patients have two of each class.
    for split in SPLITS[1:]:
        assert info.counts[split] in ({"cat": 2, "dog": 2}, {"cat": 4, "dog": 4})
    manifest = rows(dataset / "manifest.csv")
    assert [row["path"] for row in manifest] == NAMES
    patients: dict[int, set[str]] = {}
    for i, row in enumerate(manifest):
        patients.setdefault(i // 4, set()).add(row["split"])
        assert row["group"] == NAMES[i // 4 * 4]
    assert all(len(splits) == 1 for splits in patients.values())


def test_splits_of_a_table_are_kept_and_copies_across_them_are_told(tmp_path: Path) -> None:
    lines = [f"{name},{'cat' if i % 2 else 'dog'},{SPLITS[i // 2 % 3]}" for i, name in enumerate(NAMES)]
    root = table(tmp_path / "pets", *lines, "photos/copy.jpg,dog,test", header="path,label,split")
    (root / "photos/copy.jpg").write_bytes((root / NAMES[0]).read_bytes())
    dataset, info = write(root)
    for i, row in enumerate(rows(dataset / "manifest.csv")[:-1]):
        assert row["split"] == SPLITS[i // 2 % 3]
    assert info.audit["leaks"] == 1
    assert "own splits are kept: train, validation, test." in info.note
    assert "1 picture has an equal or nearly equal copy" in info.note
    assert "in test, with the copy in train." in info.note


@pytest.mark.parametrize(
    ("lines", "header", "pattern"),
    [
        (["photos/00.jpg,cat"], "path,label,colour", "has the unknown 'colour'"),
        (["photos/00.jpg,cat"], "path,class", "lacks 'label'"),
        (["photos/00.jpg,cat,cat"], "path,label,label", "has twice 'label'"),
        ([], "", "lacks 'path', 'label'"),
        ([], HEADER, "must have a line for each picture"),
        (["photos/00.jpg,cat"], HEADER, r"line 2: must have 4 cells.*Received: 'photos/00.jpg,cat'"),
        (["photos/00.jpg,,,"], HEADER, r"line 2: label must be a name of one line\. Received: ''"),
        (
            ["photos/00.jpg,cat,,", "no.jpg,cat,,"],
            HEADER,
            r"line 3: path .*Received: no.jpg, which is not there",
        ),
        (["photos,cat,,"], HEADER, "which is not there"),
        (["../x.jpg,cat,,"], HEADER, r"without '\.\.'\. Received: '\.\./x.jpg'"),
        (["/etc/hostname,cat,,"], HEADER, "from there.*Received: '/etc/hostname'"),
        ([",cat,,"], HEADER, "path must name a file"),
        (["photos/00.jpg,cat,dev,"], HEADER, "split must be one of train, training, val.*Received: 'dev'"),
        (["photos/00.jpg,cat,,", "./photos/00.jpg,dog,,"], HEADER, "line 3: .*named once, not in line 2 too"),
        (
            ["photos/00.jpg,cat,test,", "photos/01.jpg,dog,,"],
            HEADER,
            "split must be given in all lines or in none",
        ),
        (
            ["photos/00.jpg,cat,test,tom", "photos/01.jpg,dog,train,tom"],
            HEADER,
            "a group must be in one split, but 'photos/00.jpg' of group 'tom' is in test. Received: 'train'",
        ),
        (['photos/00.jpg,"cat,,'], HEADER, "must be CSV"),
    ],
)
def test_a_bad_table_is_told_in_one_line(tmp_path: Path, lines: list[str], header: str, pattern: str) -> None:
    root = table(tmp_path / "pets", *lines, header=header)
    with pytest.raises(InputError, match=pattern) as caught:
        check_source(f"directory:{root}")
    assert "\n" not in str(caught.value)
    assert "labels.csv'" in str(caught.value)


def test_a_table_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    root = table(tmp_path / "pets")
    (root / "labels.csv").write_bytes(b"path,label\nphotos/00.jpg,caf\xe9\n")
    with pytest.raises(InputError, match="must be text in UTF-8"):
        check_source(f"directory:{root}/labels.csv")


def test_a_table_of_one_class_or_of_few_pictures_is_told(tmp_path: Path) -> None:
    one = table(tmp_path / "one", *(f"{name},cat" for name in NAMES), header="path,label")
    with pytest.raises(InputError, match="at least 2 classes, one name each in 'label'.* holds only 'cat'"):
        check_source(f"directory:{one}")
    few = table(
        tmp_path / "few", *(f"{n},{'dog' if i else 'cat'}" for i, n in enumerate(NAMES)), header="path,label"
    )
    with pytest.raises(InputError, match="at least 3 pictures.* Class 'cat' in .* has 1"):
        check_source(f"directory:{few}")


def test_an_archive_may_hold_a_table(tmp_path: Path) -> None:
    import shutil

    root = table(
        tmp_path / "in" / "pets", *(f"{n},{i % 2}" for i, n in enumerate(NAMES)), header="path,label"
    )
    archive = shutil.make_archive(str(tmp_path / "pets"), "zip", root.parent)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_source(f"archive:{archive}", scratch=scratch) as opened:
        pictures = list(opened.pictures)
    assert [picture.path for picture in pictures] == NAMES
    assert {picture.label for picture in pictures} == {"0", "1"}
