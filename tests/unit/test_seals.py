"""Sealed artifacts: every byte that changed afterwards is found, and the file that it is in is named."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from graftflow import seals
from graftflow.errors import InputError
from tests.unit.damages import DAMAGES, damage


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A sealed folder of three files, one of them deeper."""
    with seals.sealed_directory(tmp_path / "model") as folder:
        (folder / "model.keras").write_bytes(np.random.default_rng(0).bytes(3000))
        (folder / "model.json").write_text('{"chosen": "head"}\n')
        (folder / "3" / "variables").mkdir(parents=True)
        (folder / "3" / "variables" / "variables.index").write_bytes(b"\0" * 100)
    return tmp_path / "model"


FILES = ("model.keras", "model.json", "3/variables/variables.index", seals.FILE)


def test_a_seal_is_what_coreutils_check(artifact: Path) -> None:
    seals.check_seals(artifact)
    done = subprocess.run(["sha256sum", "-c", seals.FILE], cwd=artifact, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name}: OK" for name in sorted(FILES[:3])]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(artifact: Path, name: str, kind: str) -> None:
    damage(artifact / name, kind, seed=1)
    with pytest.raises(InputError) as found:
        seals.check_seals(artifact)
    message = str(found.value)
    assert message.startswith("The artifact 'model' must be as its step wrote it. Received: ")
    assert "\n" not in message
    assert message.endswith("Run that step again; make run does so by itself")
    # A changed digest in the seal looks like a changed file; either way both are named.
    assert str(artifact / name) in message or name == seals.FILE


def test_every_byte_of_a_seal_counts(artifact: Path) -> None:
    intact = (artifact / seals.FILE).read_bytes()
    for place in range(len(intact)):
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        (artifact / seals.FILE).write_bytes(changed)
        with pytest.raises(InputError, match="must be as its step wrote it"):
            seals.check_seals(artifact)
    for length in range(0, len(intact), 7):
        (artifact / seals.FILE).write_bytes(intact[:length])
        with pytest.raises(InputError, match="must be as its step wrote it"):
            seals.check_seals(artifact)


def test_both_hashes_are_told(artifact: Path) -> None:
    (artifact / "model.json").write_text('{"chosen": "tail"}\n')
    with pytest.raises(InputError, match=r"the SHA-256 [0-9a-f]{64} where SHA256SUMS says [0-9a-f]{64}\."):
        seals.check_seals(artifact)


def test_a_file_too_many_is_refused_but_for_hidden_ones(artifact: Path) -> None:
    (artifact / ".nfs0001").write_text("left by a file system")
    seals.check_seals(artifact)
    (artifact / "train-00001-of-00002.tfrecord").write_text("from another data set")
    with pytest.raises(InputError, match="train-00001-of-00002.tfrecord', which SHA256SUMS does not list"):
        seals.check_seals(artifact)


def test_an_artifact_without_a_seal_is_refused(artifact: Path, tmp_path: Path) -> None:
    (artifact / seals.FILE).unlink()
    with pytest.raises(InputError, match=r"no SHA256SUMS in '.*model', so nobody can tell"):
        seals.check_seals(artifact)
    with pytest.raises(InputError, match="nothing at"):
        seals.check_seals(tmp_path / "absent")
    with pytest.raises(InputError, match="a file at"):
        seals.check_seals(artifact / "model.json")


def test_sealing_again_takes_changes_in(artifact: Path) -> None:
    (artifact / "model.json").write_text("{}\n")
    seals.seal(artifact)
    seals.check_seals(artifact)


def test_a_failure_leaves_the_sealed_folder_before_it(artifact: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), seals.sealed_directory(artifact) as folder:
        (folder / "model.json").write_text("half")
        raise RuntimeError("half way")
    seals.check_seals(artifact)
    assert [path.name for path in artifact.parent.iterdir()] == ["model"]


def test_large_inputs_tell_their_progress(artifact: Path, monkeypatch, capsys) -> None:
    seals.check_seals(artifact)
    assert capsys.readouterr().out == ""
    (artifact / "views").write_bytes(bytes(3 * 10**6))
    seals.seal(artifact)
    monkeypatch.setattr(seals, "_SILENT_BYTES", 10**6)
    seals.check_seals(artifact)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "progress: check of the inputs 3/3 MB"


def test_a_file_that_ends_with_its_digest_still_reads_and_every_byte_counts(tmp_path: Path) -> None:
    values, path = np.arange(12, dtype=np.float32).reshape(3, 4), tmp_path / "view.npy"
    np.save(path, values)
    assert not seals.ends_with_digest(path)
    seals.end_with_digest(path)
    assert seals.ends_with_digest(path)
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), values)
    np.savez(tmp_path / "a.npz", values=values)
    seals.end_with_digest(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["values"], values)
    intact = path.read_bytes()
    for place in range(len(intact)):
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert not seals.ends_with_digest(path), place
    for length in range(0, len(intact), 7):
        path.write_bytes(intact[:length])
        assert not seals.ends_with_digest(path), length
    assert not seals.ends_with_digest(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", [b"\xc3\x9c nicode 1.jpg", b"latin-\xfc.jpg", b"back\\slash\nbreak", b"*a  b"]
)
def test_any_name_of_a_file_is_written_as_coreutils_do(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("x")
    said = subprocess.run([b"sha256sum", b"--", name], cwd=tmp_path, capture_output=True, check=True)
    seals.seal(tmp_path)
    assert (tmp_path / seals.FILE).read_bytes() == said.stdout
    seals.check_seals(tmp_path)
    path.write_text("y")
    with pytest.raises(InputError, match="with the SHA-256"):
        seals.check_seals(tmp_path)
