"""Every kind of source: what it yields, and what is said when it cannot."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftflow.audit import audit_picture
from graftflow.embedded import encode_png
from graftflow.errors import InputError
from graftflow.pictures import Picture, Unusable
from graftflow.sources import check_mirrors, check_source, open_source, parse_source
from tests.unit.bad_server import BadServer, File, bad_server
from tests.unit.damages import DAMAGES, damage

PNG = encode_png(np.zeros((2, 2, 3), np.uint8))


def make_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def cats_and_dogs(prefix: str = "", count: int = 3) -> dict[str, bytes]:
    return {f"{prefix}{c}/{i}.png": PNG for c in ("cat", "dog") for i in range(count)}


def contents(source: str, scratch: Path, **settings: Any) -> list[tuple[str, str]]:
    with open_source(source, scratch=scratch, **settings) as opened:
        found = [(picture.path, picture.label) for picture in opened.pictures]
        assert opened.total == len(found)
    return found


def test_closeups_are_tiles_of_photographs(tmp_path: Path) -> None:
    with open_source("closeups", scratch=tmp_path) as opened:
        assert "optimistic" in opened.note
        pictures = list(opened.pictures)
    labels = [picture.label for picture in pictures]
    counts = {label: labels.count(label) for label in labels}
    assert 13 <= len(counts) <= 15
    assert {"brick", "grass", "cat_fur", "tissue", "deep_field", "motorcycle"} <= set(counts)
    assert all(20 <= count <= 64 for count in counts.values())
    for picture in pictures[::50]:
        with Image.open(io.BytesIO(picture.read())) as image:
            assert (image.format, image.size) == ("PNG", (64, 64))
    assert len({picture.read() for picture in pictures}) == len(pictures)


def test_digits_are_the_scans_of_scikit_learn(tmp_path: Path) -> None:
    with open_source("digits", scratch=tmp_path) as opened:
        pictures = list(opened.pictures)
    assert len(pictures) == opened.total == 1797
    assert {picture.label for picture in pictures} == set("0123456789")
    with Image.open(io.BytesIO(pictures[0].read())) as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema() == (0, 239)  # 15 of 16


def test_a_directory_yields_its_classes_in_order(tmp_path: Path) -> None:
    files = cats_and_dogs("data/") | {"data/cat/deep/9.png": PNG, "data/cat/.hidden": b"x"}
    make_folder(tmp_path, files | {"data/.cache/1.png": PNG, "data/readme.txt": b"hello"})
    with open_source(f"directory:{tmp_path / 'data'}", scratch=tmp_path) as opened:
        found = [(picture.path, picture.label) for picture in opened.pictures]
    assert opened.left_out == (("readme.txt", "stands beside the class folders, not in one"),)
    assert found == [
        ("cat/0.png", "cat"),
        ("cat/1.png", "cat"),
        ("cat/2.png", "cat"),
        ("cat/deep/9.png", "cat"),
        ("dog/0.png", "dog"),
        ("dog/1.png", "dog"),
        ("dog/2.png", "dog"),
    ]


def test_folders_that_are_splits_stay_so(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", cats_and_dogs("train/") | cats_and_dogs("validation/"))
    with open_source(f"directory:{tmp_path / 'data'}", scratch=tmp_path) as opened:
        pictures = list(opened.pictures)
    assert {picture.label for picture in pictures} == {"cat", "dog"}
    assert pictures[0].path == "cat/train/0.png"
    assert len(pictures) == 12
    assert {(picture.path.split("/")[1], picture.split) for picture in pictures} == {
        ("train", "train"),
        ("validation", "validation"),
    }


def test_what_cannot_be_read_is_unusable_not_fatal(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", cats_and_dogs())
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "cat" / "pipe.png")
    with open_source(f"directory:{root}", scratch=tmp_path) as opened:
        by_path = {picture.path: picture for picture in opened.pictures}
    assert "no such file" in audit_picture(by_path["cat/gone.png"]).reason
    with pytest.raises(Unusable, match="no regular file"):
        by_path["cat/pipe.png"].read()


def test_names_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", cats_and_dogs())
    try:
        (root / "cat" / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open_source(f"directory:{root}", scratch=tmp_path) as opened:
        assert len(list(opened.pictures)) == 6
        assert opened.left_out == (("cat/\\udcff.png", "its name is not UTF-8"),)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize("prefix", ["", "pets/", "a/b/"])
def test_an_archive_yields_the_classes_inside(tmp_path: Path, suffix: str, prefix: str) -> None:
    files = cats_and_dogs(prefix) | {"licence.pdf": b"x"}
    archive = make_archive(tmp_path, suffix, files)
    found = contents(f"archive:{archive}", make_folder(tmp_path / "scratch", {"x": b""}))
    assert found == sorted((name, name.split("/")[0]) for name in cats_and_dogs())


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as served:
        yield served


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def zipped(folder: Path, prefix: str = "pets/") -> bytes:
    return make_archive(folder, "zip", cats_and_dogs(prefix)).read_bytes()


def test_an_archive_is_fetched_from_a_url(tmp_path: Path, server: BadServer, scratch: Path) -> None:
    server.files["/pets.zip"] = File(zipped(tmp_path))
    check_source(f"archive:{server.url}/pets.zip")
    assert len(contents(f"archive:{server.url}/pets.zip", scratch)) == 6
    with pytest.raises(InputError, match=r"'http.*/none\.zip': status 404 Not Found"):
        contents(f"archive:{server.url}/none.zip", scratch)


def test_messages_name_the_url_not_the_scratch_folder(
    tmp_path: Path, server: BadServer, scratch: Path
) -> None:
    one_class = make_archive(tmp_path, "zip", {f"cat/{i}.png": PNG for i in range(3)})
    server.files["/pets.zip"] = File(one_class.read_bytes())
    with pytest.raises(InputError, match=r"'http.*/pets\.zip' holds only 'cat'") as caught:
        contents(f"archive:{server.url}/pets.zip", scratch)
    assert str(tmp_path) not in str(caught.value)


def test_mirrors_have_what_a_source_has_lost(tmp_path: Path, server: BadServer, scratch: Path) -> None:
    server.files["/mirror/pets.zip"] = File(zipped(tmp_path))
    mirrors = check_mirrors(f"{server.url}/empty/, {server.url}/mirror")
    assert len(contents(f"archive:{server.url}/old/pets.zip?v=2", scratch, mirrors=mirrors)) == 6
    asked = ["/old/pets.zip?v=2", "/empty/pets.zip", "/mirror/pets.zip"]
    assert [request.path for request in server.log] == asked
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "old.zip").write_bytes(zipped(tmp_path))
    mirrors = check_mirrors(folder.as_uri())
    assert len(contents(f"archive:{server.url}/old.zip", tmp_path / "here", mirrors=mirrors)) == 6


def test_a_checksum_is_checked_wherever_an_archive_is(
    tmp_path: Path, server: BadServer, scratch: Path
) -> None:
    content = zipped(tmp_path)
    right, wrong = hashlib.sha256(content).hexdigest(), "0" * 64
    server.files["/pets.zip"] = File(content)
    for address in (f"{server.url}/pets.zip", str(tmp_path / "pictures.zip")):
        source = f"archive:{address}#sha256={right}"
        check_source(source)
        assert parse_source(source) == ("archive", address)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            assert len(contents(source, Path(folder))) == 6
        with pytest.raises(InputError, match=f"{wrong}.*{right}|{right}.*{wrong}"):
            contents(f"archive:{address}#sha256={wrong}", scratch)


@pytest.mark.parametrize("checked", [False, True])
def test_the_cache_keeps_archives_and_what_is_in_them(
    tmp_path: Path, server: BadServer, scratch: Path, checked: bool
) -> None:
    content = zipped(tmp_path)
    file = server.files["/pets.zip"] = File(content)
    end = f"#sha256={hashlib.sha256(content).hexdigest()}" if checked else ""
    source, cache = f"archive:{server.url}/pets.zip{end}", tmp_path / "cache"
    found = [contents(source, scratch, cache=cache) for _ in range(2)]
    assert found[0] == found[1] == sorted((name, name.split("/")[0]) for name in cats_and_dogs())
    assert [request.status for request in server.log] == ([200] if checked else [200, 304])
    assert list(scratch.iterdir()) == []
    assert len(list((cache / "unpacked").iterdir())) == 1
    # The same archive from elsewhere is unpacked already; another one is another folder.
    assert contents(f"archive:{tmp_path / 'pictures.zip'}", scratch, cache=cache) == found[0]
    assert len(list((cache / "unpacked").iterdir())) == 1
    if not checked:
        file.content = make_archive(tmp_path, "zip", cats_and_dogs(count=4)).read_bytes()
        assert len(contents(source, scratch, cache=cache)) == 8
        assert len(list((cache / "unpacked").iterdir())) == 2


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_picture_of_a_kept_archive_is_unpacked_again(
    tmp_path: Path, scratch: Path, kind: str, capsys
) -> None:
    archive = make_archive(tmp_path, "zip", cats_and_dogs())
    cache = tmp_path / "cache"

    def read() -> list[bytes]:
        with open_source(f"archive:{archive}", scratch=scratch, cache=cache) as source:
            return [picture.read() for picture in source.pictures]

    before = read()
    (folder,) = (cache / "unpacked").iterdir()
    assert read() == before
    assert "unpacked again" not in capsys.readouterr().out
    for name in ("SHA256SUMS", "contents"):
        damaged = folder / name
        if damaged.is_dir():
            damaged = next(path for path in sorted(damaged.rglob("*.*")) if path.is_file())
        damage(damaged, kind, seed=6)
        assert read() == before
        told = "it is unpacked again" in capsys.readouterr().out
        assert told or (name == "SHA256SUMS" and kind == "delete")


def test_a_kept_archive_serves_a_run_without_network(tmp_path: Path, scratch: Path) -> None:
    with bad_server() as server:
        server.files["/pets.zip"] = File(zipped(tmp_path))
        source = f"archive:{server.url}/pets.zip"
        found = contents(source, scratch, cache=tmp_path / "cache")
    assert contents(source, scratch, cache=tmp_path / "cache") == found


@pytest.mark.parametrize("text", ["", " ", ", ,"])
def test_no_mirrors_are_none(text: str) -> None:
    assert check_mirrors(text) == ()


def test_mirrors_are_addresses_in_order() -> None:
    text = "https://b.example/x/,gs://bucket/y  s3://z\nfile:///data https://b.example/x/"
    assert check_mirrors(text) == ("https://b.example/x/", "gs://bucket/y", "s3://z", "file:///data")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("https://a.example mirror.example/x", "'mirror.example/x', which is no address"),
        ("/data/mirror", r"'/data/mirror', .*file:///PATH"),
        ("https://", "names no host"),
        ("gs:///x", "names no host or bucket"),
        ("htps://a.example", "'htps' is no kind that is known"),
        ("https://a.example/#x", "has a '#'"),
    ],
)
def test_a_bad_mirror_is_told_in_one_line(text: str, pattern: str) -> None:
    with pytest.raises(InputError, match=f"mirrors must be addresses.*Received: .*{pattern}") as caught:
        check_mirrors(text)
    assert "\n" not in str(caught.value)


def make_archive(folder: Path, suffix: str, files: dict[str, bytes]) -> Path:
    archive = folder / f"pictures.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return archive


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("closeup", r"source must be one of .*Received: 'closeup'\. Did you mean 'closeups'"),
        ("", "source must be one of archive:PATH-or-URL, closeups, digits, directory:PATH, tfds:NAME"),
        ("closeups:brick", "Received: 'closeups:brick'"),
        ("s3:bucket", "Received: 's3:bucket'"),
        ("directory:", "'directory:' must name its PATH"),
        ("directory:/no/such/folder", "'/no/such/folder', which is not there"),
        (f"directory:{__file__}", "which is a file"),
        ("archive:/no/such.zip", "'/no/such.zip', which is not there"),
        (f"archive:{__file__}", "must be zip, tar"),
        ("archive:https://", "must name a file"),
        ("archive:https://h/a.zip#sha256=12", "sha256= and 64 hexadecimal digits. Received: '#sha256=12'"),
        ("archive:/no/such.zip#sha256=", "sha256= and 64 hexadecimal digits"),
        ("tfds:cats_vs_dogs@", "must name the feature .* Received: 'cats_vs_dogs@'"),
        ("tfds:@label", "Received: '@label'"),
        ("tfds:cat_vs_dog", r"Received: 'cat_vs_dog'\. Did you mean 'cats_vs_dogs'"),
        ("tfds:qqqqqq", "one of the [0-9]+ data sets .* Received: 'qqqqqq'"),
    ],
)
def test_a_bad_source_is_told_in_one_line(source: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        check_source(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ({}, "holds no sub-folder"),
        ({"1.png": PNG, "2.png": PNG}, "holds no sub-folder"),
        ({f"cat/{i}.png": PNG for i in range(3)}, "at least 2 classes.* holds only 'cat'"),
        (cats_and_dogs(count=2), "at least 3 pictures.* Class 'cat' in .* has 2"),
        (cats_and_dogs() | {"eel/Thumbs.db": b"", "eel/.DS_Store": b""}, "Class 'eel' in .* has 0"),
    ],
    ids=["empty", "loose files", "one class", "two pictures a class", "no pictures"],
)
def test_a_directory_that_is_no_data_set_is_told(
    tmp_path: Path, files: dict[str, bytes], pattern: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make_folder(root, files)
    with pytest.raises(InputError, match=pattern):
        check_source(f"directory:{root}")


def test_a_bare_folder_hints_at_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Did you mean 'directory:{tmp_path}'"):
        check_source(str(tmp_path))


def test_good_sources_pass(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", cats_and_dogs())
    for source in ("closeups", "digits", f"directory:{root}", "tfds:cifar10@label", "tfds:mnist:3.0.1"):
        check_source(source)
    check_source(f"archive:{make_archive(tmp_path, 'zip', cats_and_dogs())}")
    check_source("archive:gs://bucket/pets.zip")
    assert parse_source("archive:https://host/a:b.zip") == ("archive", "https://host/a:b.zip")


def test_checking_a_source_does_not_import_tensorflow() -> None:
    code = (
        "import sys; from graftflow.sources import check_source\n"
        "for s in ('closeups', 'tfds:cifar10', 'archive:https://host/a.zip'): check_source(s)\n"
        "print('tensorflow' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_pictures_are_read_when_asked_for(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", cats_and_dogs())
    with open_source(f"directory:{root}", scratch=tmp_path) as opened:
        first: Picture = next(opened.pictures)
        (root / "cat" / "0.png").write_bytes(b"changed")
        assert first.read() == b"changed"
