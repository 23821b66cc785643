"""Data sets of TensorFlow Datasets from a server that behaves badly; the builders are the package's own."""

import hashlib
import importlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftflow import downloads
from graftflow.embedded import open_closeups
from graftflow.errors import InputError
from graftflow.files import remove
from graftflow.seals import find_damage
from graftflow.sources import open_source
from tests.unit.bad_server import BadServer, File, bad_server
from tests.unit.damages import damage

# tfds asks protobuf for something that protobuf is about to drop.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated")

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cats-vs-dogs"


def photographs(count: int) -> list[bytes]:
    """JPEGs: real photographs where they are there, else tiles of photographs in a package."""
    files = sorted(SHARED.rglob("*.jpg"))[:count]
    if files:
        return [file.read_bytes() for file in files]
    found = []
    for picture, _ in zip(open_closeups().pictures, range(count), strict=False):
        with Image.open(io.BytesIO(picture.read())) as image, io.BytesIO() as stream:
            image.convert("RGB").save(stream, "JPEG")
            found.append(stream.getvalue())
    return found


def packed(files: dict[str, bytes], kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def png(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ones(shape, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadServer]:
    monkeypatch.setattr(downloads, "PAUSES", (0.0,))
    with bad_server() as served:
        yield served


def register(
    monkeypatch: pytest.MonkeyPatch, builder: Any, files: dict[str, bytes], url: str, wrong: str = ""
) -> None:
    """Give a builder the addresses, sizes and checksums of files on the test's server."""
    import tensorflow_datasets as tfds

    infos = {
        f"{url}/{name}": tfds.core.download.checksums.UrlInfo(
            size=len(content), checksum=wrong or hashlib.sha256(content).hexdigest(), filename=name
        )
        for name, content in files.items()
    }
    monkeypatch.setattr(builder, "url_infos", infos)


@pytest.fixture
def cats(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The zip of cats_vs_dogs with four pictures a class and two that are no JFIF, served below /ms."""
    import tensorflow_datasets as tfds

    pictures = photographs(8)
    files = {f"PetImages/{('Cat', 'Dog')[i % 2]}/{i // 2}.jpg": content for i, content in enumerate(pictures)}
    files |= {
        "PetImages/Cat/666.jpg": b"BM no jpeg",
        "PetImages/Dog/11702.jpg": b"BM no jpeg",
        "readme.txt": b"x",
    }
    content = packed(files, "zip")
    builder = tfds.builder_cls("cats_vs_dogs")
    module = importlib.import_module(builder.__module__)
    monkeypatch.setattr(module, "_URL", f"{server.url}/ms/cats.zip")
    monkeypatch.setattr(module, "_NUM_CORRUPT_IMAGES", 2)
    register(monkeypatch, builder, {"cats.zip": content}, f"{server.url}/ms")
    return content


def contents(source: str, scratch: Path, **settings: Any) -> tuple[list[tuple[str, str]], str]:
    with open_source(source, scratch=scratch, **settings) as opened:
        found = sorted((picture.path, picture.label) for picture in opened.pictures)
        assert opened.total == len(found)
        return found, opened.note


CATS = sorted((f"{label}/{i}.jpg", label) for label in ("cat", "dog") for i in range(4))


def test_cats_vs_dogs_comes_over_a_bad_network(server: BadServer, cats: bytes, tmp_path: Path) -> None:
    file = server.files["/ms/cats.zip"] = File(
        cats, answers=[(503, {})], drops=[len(cats) // 3, len(cats) // 3]
    )
    cache = tmp_path / "cache"
    found, note = contents("tfds:cats_vs_dogs", tmp_path, cache=cache)
    assert found == CATS
    assert "There are 1738 corrupted images that are dropped." in note
    assert [request.status for request in server.log] == [503, 200, 206, 206]
    assert server.sent == len(cats)
    again, _ = contents("tfds:cats_vs_dogs@label", tmp_path, cache=cache)
    assert (again, len(server.log)) == (found, 4)
    assert (cache / "tfds" / "cats_vs_dogs").is_dir()
    assert file.drops == []


def test_a_dead_address_leads_to_a_mirror(server: BadServer, cats: bytes, tmp_path: Path) -> None:
    server.files["/wrong/cats.zip"] = File(b"<html>Log in</html>")
    server.files["/mirror/cats.zip"] = File(cats)
    mirrors = (f"{server.url}/wrong/", f"{server.url}/mirror")
    found, _ = contents("tfds:cats_vs_dogs", tmp_path, tfds_data_dir=tmp_path / "tfds", mirrors=mirrors)
    assert found == CATS
    assert [request.path.split("/")[1] for request in server.log] == ["ms", "wrong", "mirror"]


def test_a_data_set_that_no_source_has_is_told_in_one_line(
    server: BadServer, cats: bytes, tmp_path: Path
) -> None:
    server.files["/wrong/cats.zip"] = File(cats[:-1] + b"x")
    with pytest.raises(InputError) as caught:
        contents("tfds:cats_vs_dogs", tmp_path, cache=tmp_path / "cache", mirrors=[f"{server.url}/wrong"])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("tfds data set 'cats_vs_dogs' needs 'cats.zip'. ")
    assert f"'{server.url}/ms/cats.zip': status 404 Not Found" in message
    right = hashlib.sha256(cats).hexdigest()
    assert f"'{server.url}/wrong/cats.zip': its file has the SHA-256 " in message
    assert f"not {right}. Go on with mirrors= addresses" in message
    assert "archive:" in message
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


SLOW = """
import importlib, sys, time
import tensorflow_datasets as tfds
from graftflow.sources import open_source
url, checksum, size, cache = sys.argv[1:]
builder = tfds.builder_cls("cats_vs_dogs")
importlib.import_module(builder.__module__)._URL = url
builder.url_infos = {url: tfds.core.download.checksums.UrlInfo(int(size), checksum, "cats.zip")}

def slow(self, archive):
    print("converting", flush=True)
    time.sleep(600)
    yield

builder._generate_examples = slow
with open_source("tfds:cats_vs_dogs", scratch=cache, cache=cache):
    pass
"""


def test_a_killed_preparation_starts_again_without_a_download(
    server: BadServer, cats: bytes, tmp_path: Path
) -> None:
    server.files["/ms/cats.zip"] = File(cats)
    cache = tmp_path / "cache"
    facts = [f"{server.url}/ms/cats.zip", hashlib.sha256(cats).hexdigest(), str(len(cats)), str(cache)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *facts],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert "converting\n" in iter(child.stdout.readline, "")
        child.send_signal(signal.SIGKILL)
    folder = cache / "tfds" / "cats_vs_dogs"
    (left,) = folder.glob("incomplete.*_4.0.1")
    other = folder / "incomplete.ABC123_9.9.9"
    other.mkdir()
    for info in cache.rglob("*.INFO"):  # as if killed between the file and the note beside it
        info.unlink()
    assert contents("tfds:cats_vs_dogs", tmp_path, cache=cache)[0] == CATS
    assert len(server.log) == 1
    assert not left.exists()
    assert other.exists()


def test_a_file_put_there_by_hand_is_taken(server: BadServer, cats: bytes, tmp_path: Path) -> None:
    manual = tmp_path / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cats.zip").write_bytes(cats)
    assert contents("tfds:cats_vs_dogs", tmp_path, tfds_data_dir=tmp_path / "tfds")[0] == CATS
    assert server.log == []


@pytest.fixture
def pets(server: BadServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The two archives of oxford_iiit_pet with three pictures of two breeds, served at /."""
    import tensorflow_datasets as tfds

    pictures = photographs(6)
    names = [f"{('Abyssinian', 'beagle')[i // 3]}_{i % 3 + 200}" for i in range(6)]
    rows = [f"{name} {(1, 5)[i // 3]} {(1, 2)[i // 3]} 1" for i, name in enumerate(names)]
    notes = {
        "annotations/trainval.txt": "\n".join(rows[:2] + rows[3:5]).encode(),
        "annotations/test.txt": "\n".join([rows[2], rows[5]]).encode(),
    }
    notes |= {f"annotations/trimaps/{name}.png": png((8, 8)) for name in names}
    files = {
        "images.tar.gz": packed({f"images/{n}.jpg": p for n, p in zip(names, pictures, strict=True)}, "tar"),
        "annotations.tar.gz": packed(notes, "tar"),
    }
    builder = tfds.builder_cls("oxford_iiit_pet")
    monkeypatch.setattr(importlib.import_module(builder.__module__), "_BASE_URL", server.url)
    register(monkeypatch, builder, files, server.url)
    server.files |= {f"/{name}": File(content) for name, content in files.items()}
    return files


def test_pets_have_breeds_and_species(server: BadServer, pets: dict[str, bytes], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server.files["/images.tar.gz"].drops.append(5_000)
    breeds, note = contents("tfds:oxford_iiit_pet", tmp_path, cache=cache)
    names = [(breed, f"{breed}_{i}.jpg") for breed in ("Abyssinian", "beagle") for i in (200, 201, 202)]
    assert breeds == [(f"{breed}/{name}", breed) for breed, name in names]
    assert "test, train of oxford_iiit_pet/4.0.0 were put together" in note
    species, _ = contents("tfds:oxford_iiit_pet@species", tmp_path, cache=cache)
    kinds = {"Abyssinian": "Cat", "beagle": "Dog"}
    assert species == [(f"{kinds[breed]}/{name}", kinds[breed]) for breed, name in names]
    assert server.sent == sum(map(len, pets.values()))
    with pytest.raises(
        InputError, match="no such 'colour'; its features: file_name, head_bbox, image, label"
    ):
        contents("tfds:oxford_iiit_pet@colour", tmp_path, cache=cache)
    with pytest.raises(InputError, match="no such 'file_name'"):
        contents("tfds:oxford_iiit_pet@file_name", tmp_path, cache=cache)


def pictures(source: str, cache: Path) -> list[tuple[str, str, bytes]]:
    with open_source(source, scratch=cache, cache=cache) as opened:
        return sorted((picture.path, picture.label, picture.read()) for picture in opened.pictures)


def test_a_prepared_data_set_is_prepared_again_where_a_file_is_damaged(
    server: BadServer, cats: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/ms/cats.zip"] = File(cats)
    right = pictures("tfds:cats_vs_dogs", tmp_path)
    prepared = tmp_path / "tfds" / "cats_vs_dogs" / "4.0.1"
    assert find_damage(prepared) is None
    names = sorted(path.name for path in prepared.iterdir())
    assert {"dataset_info.json", "features.json", "label.labels.txt", "SHA256SUMS"} < set(names)
    for i, name in enumerate(names):
        damage(prepared / name, ("flip", "cut")[i % 2], seed=i)
        capsys.readouterr()
        assert pictures("tfds:cats_vs_dogs", tmp_path) == right, name
        assert "it is prepared again" in capsys.readouterr().out
        assert find_damage(prepared) is None
    labels = prepared / "label.labels.txt"
    labels.write_text(labels.read_text().replace("cat", "bat"))  # one bit
    assert pictures("tfds:cats_vs_dogs", tmp_path) == right
    capsys.readouterr()
    assert pictures("tfds:cats_vs_dogs:4.0.1", tmp_path) == right
    assert "it is prepared again" not in capsys.readouterr().out
    assert len(server.log) == 1


def test_a_data_set_that_was_not_sealed_in_time_is_prepared_again(
    server: BadServer, cats: bytes, tmp_path: Path
) -> None:
    server.files["/ms/cats.zip"] = File(cats)
    right = pictures("tfds:cats_vs_dogs", tmp_path)
    (tmp_path / "tfds" / "cats_vs_dogs" / "4.0.1" / "SHA256SUMS").unlink()
    assert pictures("tfds:cats_vs_dogs", tmp_path) == right
    assert len(server.log) == 1


@pytest.mark.parametrize("what", ["the file", "the note beside it"])
def test_a_damaged_download_is_fetched_again(
    server: BadServer, cats: bytes, tmp_path: Path, what: str
) -> None:
    server.files["/ms/cats.zip"] = File(cats)
    right = pictures("tfds:cats_vs_dogs", tmp_path)
    remove(tmp_path / "tfds" / "cats_vs_dogs")
    (info,) = (tmp_path / "tfds" / "downloads").rglob("*.INFO")
    damage(info.with_suffix("") if what == "the file" else info, "cut", seed=0)
    assert pictures("tfds:cats_vs_dogs", tmp_path) == right
    assert len(server.log) == 2


def test_what_an_earlier_preparation_unpacked_is_not_taken_for_whole(
    pets: dict[str, bytes], tmp_path: Path
) -> None:
    right = pictures("tfds:oxford_iiit_pet", tmp_path)
    for path in tmp_path.rglob("*_20?.jpg"):
        damage(path, "flip", seed=0)
    remove(tmp_path / "tfds" / "oxford_iiit_pet")
    assert pictures("tfds:oxford_iiit_pet", tmp_path) == right
    assert [path.name for path in (tmp_path / "tfds" / "oxford_iiit_pet").iterdir()] == ["4.0.0"]
