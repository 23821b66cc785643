"""The step that writes the data set, as KFP calls it."""

import errno
import json
from pathlib import Path

import pytest
from kfp import dsl

from components.download_data import download_data
from graftflow import seals
from graftflow.datasets import load_info
from graftflow.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, where the cache is."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    return home


def run(path: Path, source: str = "digits", test_fraction: float = 0.2, mirrors: str = "") -> dsl.Dataset:
    dataset = dsl.Dataset(uri=str(path))
    download_data.python_func(
        source=source,
        seed=3,
        validation_fraction=0.2,
        test_fraction=test_fraction,
        dataset=dataset,
        mirrors=mirrors,
    )
    return dataset


def test_the_step_writes_the_artifact_and_says_what_it_holds(tmp_path: Path) -> None:
    dataset = run(tmp_path / "dataset")
    info = load_info(tmp_path / "dataset")
    facts = json.loads(json.dumps(dataset.metadata, allow_nan=False))
    assert facts["classes"] == list(info.classes) == list("0123456789")
    assert facts["counts"] == {"train": 1079, "validation": 359, "test": 359}
    assert facts["pictures"] == info.pictures == 1797
    assert facts["digest"] == info.digest
    assert facts["source"] == "digits"
    assert facts["left_out"] == facts["duplicates"] == facts["near_duplicates"] == facts["leaks"] == 0
    assert facts["small"] == 1797
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize(
    ("source", "test_fraction", "pattern"),
    [
        ("digit", 0.2, "Did you mean 'digits'"),
        ("directory:/no/such/folder", 0.2, "not there"),
        ("digits", 0.9, "together must be below 1"),
    ],
)
def test_a_failed_step_leaves_nothing_and_keeps_what_stood_there(
    tmp_path: Path, source: str, test_fraction: float, pattern: str
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "old").write_text("of an earlier run")
    with pytest.raises(InputError, match=pattern):
        run(tmp_path / "dataset", source, test_fraction)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        "dataset",
        "dataset/old",
    ]


def test_a_mirror_that_is_no_address_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Received: .*somewhere"):
        run(tmp_path / "dataset", mirrors="somewhere")
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_a_finished_conversion_stays_in_the_cache(tmp_path: Path, home: Path) -> None:
    run(tmp_path / "dataset")
    (conversions,) = home.rglob("conversions")
    assert list(conversions.iterdir()) == []


def test_a_data_set_that_finds_no_room_for_its_seal_is_not_looked_at_again(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(seals, "seal", full)
        with pytest.raises(InputError, match="room for 'dataset'"):
            run(tmp_path / "dataset", f"directory:{picture_folder}")
    assert list(tmp_path.iterdir()) == []
    run(tmp_path / "dataset", f"directory:{picture_folder}")
    assert "48 pictures were looked at by an earlier run" in capsys.readouterr().out


def test_the_compiled_component_describes_its_settings() -> None:
    spec = download_data.component_spec
    assert {"source", "seed", "validation_fraction", "test_fraction"} <= set(spec.inputs)
    assert all(found.description for found in spec.inputs.values())
    assert set(spec.outputs) == {"dataset"}
