"""The cache's folder is made where it is named, and refused in one line where it cannot be."""

from pathlib import Path

import pytest

from graftflow import caches
from graftflow.errors import InputError


def test_a_named_cache_is_made(tmp_path: Path) -> None:
    assert caches.open_cache(tmp_path / "a" / "b").is_dir()


def test_without_a_name_it_is_in_the_home_and_else_among_the_temporary_files(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caches.open_cache("") == tmp_path / ".cache" / "graftflow"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert caches.open_cache() == tmp_path / "temporary" / "graftflow"


def test_another_users_folder_among_the_temporary_files_is_no_cache(tmp_path: Path, monkeypatch) -> None:
    """Whoever made it would choose the features and checkpoints that are found in it."""
    (tmp_path / "home").write_text("")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary" / "graftflow").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="cache must be a folder"):
        caches.open_cache()
    (tmp_path / "temporary" / "graftflow").unlink()
    assert caches.open_cache() == tmp_path / "temporary" / "graftflow"
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(InputError, match="cache must be a folder"):
        caches.open_cache()


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cache must be a folder that can be written. Received: .*file"):
        caches.open_cache(tmp_path / "file" / "cache")


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    caches.check_cache("")
    caches.check_cache(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cache must be a folder that can be written"):
        caches.check_cache(tmp_path / "file" / "cache")


def test_a_key_depends_on_the_facts_and_not_on_their_order() -> None:
    assert caches.key_of({"a": 1, "b": [2]}) == caches.key_of({"b": [2], "a": 1})
    assert caches.key_of({"a": 1}) != caches.key_of({"a": 2})
