"""Artifacts appear whole or not at all."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from graftflow import files
from graftflow.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_takes_its_name_when_it_is_finished(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "artifact"
    with files.atomic_directory(final) as folder:
        (folder / "a.txt").write_text("new")
        assert not final.exists()
    assert (final / "a.txt").read_text() == "new"
    assert [path.name for path in final.parent.iterdir()] == ["artifact"]


def test_a_failure_leaves_what_was_there_before(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    with files.atomic_directory(final) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="half way"), files.atomic_directory(final) as folder:
        (folder / "a.txt").write_text("new")
        raise RuntimeError("half way")
    assert (final / "a.txt").read_text() == "old"
    with pytest.raises(ValueError, match="half way"), files.atomic_file(final / "a.txt") as aside:
        aside.write_text("new")
        raise ValueError("half way")
    assert (final / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_killed_process_leaves_no_artifact(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from graftflow import files\n"
        "with files.atomic_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    final = tmp_path / "artifact"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(final)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert killed.returncode == -signal.SIGKILL
    assert not final.exists()


def test_a_full_disk_is_told_as_one_whatever_the_library_says(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 4096))
    with (
        pytest.raises(InputError, match="The disk must have room for 'model'"),
        files.atomic_directory(tmp_path / "model"),
    ):
        raise RuntimeError("Can't decrement id ref count")
    assert not list(tmp_path.iterdir())


def test_a_file_that_finds_no_room_is_told_although_smaller_ones_would(tmp_path: Path, monkeypatch) -> None:
    with (
        pytest.raises(
            InputError, match=f"The disk must have room for 'model'. Received: no space left in '{tmp_path}'"
        ),
        files.atomic_directory(tmp_path / "model"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: os.pread(-1, 0, 0))
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.write_json(tmp_path / "figures", {})

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=f"Cannot write in folder '{tmp_path}': No space left on device"):
        files.write_json(tmp_path / "figures", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyError("label"), ValueError("bad"), OSError(errno.EACCES, "no")])
def test_what_no_full_disk_does_is_not_blamed_on_it(tmp_path: Path, monkeypatch, error: Exception) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 4096))
    with pytest.raises(type(error)) as caught, files.atomic_directory(tmp_path / "model"):
        raise error
    assert caught.value is error


def test_a_full_disk_elsewhere_is_named_and_not_the_artifacts(tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache"

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *([str(path)] if path.suffix else []))

    expected = f"Cannot write in folder '{cache}': No space left on device."
    with pytest.raises(InputError) as caught, files.atomic_directory(tmp_path / "run" / "model"):
        full(cache / "some.rows")
    assert str(caught.value) == expected
    # A write that finds no room names no file of its own.
    monkeypatch.setattr(os, "write", lambda *_: full(Path("descriptor")))
    with (
        pytest.raises(InputError) as caught,
        files.atomic_directory(tmp_path / "run" / "model"),
        files.atomic_file(cache / "weights.sha256"),
    ):
        os.write(1, b"digest")
    assert str(caught.value) == expected
    with (
        pytest.raises(InputError, match=f"no space left in '{tmp_path / 'run'}'"),
        files.atomic_directory(tmp_path / "run" / "model") as folder,
    ):
        full(folder / "model.keras")


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match=f"Cannot write in folder '{tmp_path}/file/run': Not a directory"),
        files.atomic_directory(tmp_path / "file" / "run" / "model"),
    ):
        pass

    def refuse(*_: object, **given: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system", f"{given['dir']}/.model.0.partial")

    told = f"Cannot write in folder '{tmp_path}': Read-only file system."
    with pytest.raises(InputError) as caught, files.atomic_directory(tmp_path / "model"):
        refuse(dir=tmp_path)  # mounted read-only while the step works
    assert str(caught.value) == told
    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError) as caught, files.atomic_directory(tmp_path / "model"):
        pass
    assert str(caught.value) == told


def test_json_refuses_what_json_cannot_carry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    files.write_json(tmp_path / "a.json", {"ε": [1, 2.5]})
    assert files.read_json(tmp_path / "a.json") == {"ε": [1, 2.5]}


def test_the_digest_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "1")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        digests.add(files.sha256_directory(folder))
    assert len(digests) == 3
    assert files.sha256_directory(shutil.copytree(tmp_path / "a1", tmp_path / "copy")) in digests
