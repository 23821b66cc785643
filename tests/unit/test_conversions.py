"""A killed conversion goes on where it stopped, and uses nothing that a kill or a crash has torn."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from graftflow import folders
from graftflow.audit import THREADS, audit_picture
from graftflow.conversions import Conversion, Stored, open_conversion
from graftflow.datasets import write_dataset
from graftflow.errors import InputError
from graftflow.pictures import Picture
from tests.unit.pictures_on_disk import FRACTIONS, encode, make_folder, photo

COUNT = 60
# Runs write_dataset; every read is written down, and after 25 of them each one takes a while.
CHILD = """
import sys, time
from pathlib import Path
from graftflow import folders
from graftflow.datasets import write_dataset

root, destination, cache, log = sys.argv[1:]
read, count = folders._read, 0

def slowly(file):
    global count
    count += 1
    with open(log, "a") as opened:
        opened.write(f"{file.relative_to(root).as_posix()}\\n")
    if count > 25:
        time.sleep(0.2)
    return read(file)

folders._read = slowly
write_dataset(destination, source=f"directory:{root}", seed=4, validation_fraction=0.2, test_fraction=0.2,
              shard_megabytes=0.03, cache=cache)
"""


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures: JPEG, BMP that is converted, one broken file a class, one near copy."""
    files = {}
    for i in range(COUNT):
        kind = "BMP" if i % 7 == 0 else "JPEG"
        data = encode(photo(i, (96, 80)), kind)
        files[f"{'cat' if i % 2 else 'dog'}/{i:02d}.{kind.lower()}"] = data[:99] if i in (6, 9) else data
    files["cat/copy.jpg"] = encode(photo(1, (96, 80)).resize((72, 60)), "JPEG", quality=60)
    return make_folder(tmp_path_factory.mktemp("source") / "pets", files)


def convert(pets: Path, destination: Path, cache: Path | None) -> dict[str, bytes]:
    destination.mkdir()
    write_dataset(
        destination,
        source=f"directory:{pets}",
        seed=4,
        validation_fraction=0.2,
        test_fraction=0.2,
        shard_megabytes=0.03,
        cache=cache,
    )
    return {file.name: file.read_bytes() for file in destination.iterdir()}


@pytest.fixture(scope="module")
def unbroken(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run writes that nothing disturbs and that has no cache."""
    return convert(pets, tmp_path_factory.mktemp("unbroken") / "dataset", None)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    read, seen = folders._read, []

    def noted(file: Path) -> bytes:
        seen.append(f"{file.parent.name}/{file.name}")
        return read(file)

    monkeypatch.setattr(folders, "_read", noted)
    return seen


def test_a_killed_conversion_goes_on_and_ends_the_same(
    pets: Path, unbroken: dict[str, bytes], tmp_path: Path, reads: list[str]
) -> None:
    cache, log, broken = tmp_path / "cache", tmp_path / "log", tmp_path / "broken"
    broken.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", CHILD, str(pets), str(broken), str(cache), str(log)]
    child = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) > 32):
        assert child.poll() is None, "the child ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    first = log.read_text().splitlines()
    assert 32 < len(first) < COUNT
    assert not (broken / "dataset.json").exists()
    assert list((cache / "conversions").glob("*/journal"))

    assert convert(pets, tmp_path / "dataset", cache) == unbroken
    # Only the handful that was in hand when the process died is read twice.
    assert len(set(reads) & set(first)) <= 5 * THREADS
    assert len(reads) <= COUNT + 1 - len(first) + 5 * THREADS
    assert set(first) | set(reads) == {f"{file.parent.name}/{file.name}" for file in pets.rglob("*.*")}
    assert list((cache / "conversions").iterdir()) == []


def interrupt(pets: Path, folder: Path, cache: Path) -> Path:
    """Stop a conversion by an error late in the work, and return the folder that is left."""
    folder.mkdir()
    with pytest.raises(InputError, match="Class 'dog' has none in test"):
        write_dataset(folder, source=f"directory:{pets}", seed=4, cache=cache, **FRACTIONS)
    (left,) = (p for p in (cache / "conversions").iterdir() if p.is_dir())
    return left


def divided(root: Path) -> Path:
    """A source whose pictures are fine and whose splits are not: the audit is done when that is found out."""
    files = {
        f"{split}/{label}/{i}.jpg": encode(photo(100 * k + 10 * j + i, (64, 64)), "JPEG")
        for k, split in enumerate(("train", "validation", "test"))
        for j, label in enumerate(("cat", "dog"))
        for i in range(4)
        if (split, label) != ("test", "dog")
    }
    return make_folder(root, files)


def cut_spool(folder: Path) -> None:
    os.truncate(folder / "spool", (folder / "spool").stat().st_size - 10)


def tear_line(folder: Path) -> None:
    os.truncate(folder / "journal", (folder / "journal").stat().st_size - 10)


def spoil_line(folder: Path) -> None:
    lines = (folder / "journal").read_bytes().splitlines(keepends=True)
    lines[10] = lines[10].replace(b'"width": 64', b'"width": 65')
    (folder / "journal").write_bytes(b"".join(lines))


def spoil_bytes(folder: Path) -> None:
    with (folder / "spool").open("r+b") as spool:
        spool.seek(50)
        spool.write(b"\0\0\0\0")


def lose_spool(folder: Path) -> None:
    (folder / "spool").unlink()


@pytest.mark.parametrize(
    ("harm", "kept"),
    [(None, 20), (cut_spool, 19), (tear_line, 19), (spoil_line, 10), (spoil_bytes, 0), (lose_spool, 0)],
)
def test_what_is_torn_is_not_used(
    tmp_path: Path, reads: list[str], harm: Callable[[Path], None] | None, kept: int
) -> None:
    root, cache = divided(tmp_path / "pets"), tmp_path / "cache"
    left = interrupt(root, tmp_path / "first", cache)
    assert len(reads) == 20
    if harm:
        harm(left)
    reads.clear()
    for i in range(4):
        make_folder(root, {f"test/dog/{i}.jpg": encode(photo(900 + i, (64, 64)), "JPEG")})
    resumed = convert(root, tmp_path / "resumed", cache)
    assert len(reads) == 24 - kept
    assert resumed == convert(root, tmp_path / "whole", None)


def test_a_picture_that_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    root, cache = divided(tmp_path / "pets"), tmp_path / "cache"
    interrupt(root, tmp_path / "first", cache)
    make_folder(root, {f"test/dog/{i}.jpg": encode(photo(900 + i, (64, 64)), "JPEG") for i in range(4)})
    (root / "train/cat/0.jpg").write_bytes(encode(photo(950, (64, 64)), "JPEG"))
    os.utime(root / "train/cat/1.jpg")
    reads.clear()
    resumed = convert(root, tmp_path / "resumed", cache)
    assert sorted(reads) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg", "dog/2.jpg", "dog/3.jpg"]
    assert resumed == convert(root, tmp_path / "whole", None)


def test_two_runs_do_not_share_a_conversion(
    pets: Path, unbroken: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    with open_conversion(tmp_path, cache=cache, source=f"directory:{pets}") as held:
        assert isinstance(held, Conversion)
        assert convert(pets, tmp_path / "dataset", cache) == unbroken
        assert "Another run converts the same pictures" in capsys.readouterr().out
        assert len(list((cache / "conversions").iterdir())) == 2
    assert list((cache / "conversions").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "dataset").mkdir()
    with pytest.raises(InputError, match=r"cache must be a folder .* Received: '.*cache'"):
        write_dataset(
            tmp_path / "dataset", source=f"directory:{pets}", seed=0, cache=tmp_path / "cache", **FRACTIONS
        )
    assert list((tmp_path / "dataset").iterdir()) == []


def test_the_bytes_of_a_conversion_are_those_of_the_pictures(tmp_path: Path) -> None:
    data = encode(Image.linear_gradient("L"), "PNG")
    picture = Picture("a/0.png", "a", lambda: data, group="g", stamp="1:2")
    for _ in range(2):
        with Conversion(tmp_path, resume=True) as conversion:
            recalled = conversion.recall(picture, "")
            stored = conversion.keep(picture, recalled or audit_picture(picture))
            assert isinstance(stored, Stored)
            assert conversion.spool.get(stored.span) == data
            assert (stored.path, stored.group) == ("a/0.png", "g")
            assert len(conversion.thumbnail(stored)) == 1024
    assert recalled is not None
    assert len((tmp_path / "journal").read_bytes().splitlines()) == 1
