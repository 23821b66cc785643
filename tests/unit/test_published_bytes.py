"""A published version whose files changed gets no label and is not served, and damaged bookkeeping is refused."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from graftflow import releases
from graftflow.errors import InputError
from graftflow.files import sha256_directory
from graftflow.release_histories import Histories
from graftflow.serving.config_texts import read_models
from graftflow.serving.model_sets import ModelSet, ModelSpec
from graftflow.serving.status import ServingError
from tests.unit.damages import DAMAGES, damage
from tests.unit.labelled_stores import KINDS, Store, open_store
from tests.unit.serving_model import save_model


@pytest.fixture(params=KINDS)
def store(request, tmp_path: Path) -> Iterator[Store]:
    """A store with three versions that were stable one after the other, their bytes noted."""
    with open_store(request.param, tmp_path) as opened:
        for version in (1, 2, 3):
            opened.add(version)
            opened.deploy(version, facts={"sha256": digest_of(opened, version)})
        yield opened


def digest_of(store: Store, version: int) -> str:
    from graftflow.store_files import StoreFiles

    return StoreFiles(store.uri).digest("pets", version)


def change(store: Store, version: int) -> None:
    store.filesystem.pipe_file(f"{store.base}/pets/{version}/saved_model.pb", b"grapf")


def test_a_damaged_version_gets_no_label(store: Store) -> None:
    change(store, 2)
    before = {name: store.text(name) for name in ("models.config", "releases.json")}
    rule = "A version must have the bytes that were published to get a label. Received: version 2"
    for refused in (
        lambda: releases.rollback(**store.where),
        lambda: releases.promote(**store.where, version=2),
        lambda: releases.release(**store.where, version=2, label="canary"),
    ):
        with pytest.raises(InputError, match=rule) as found:
            refused()
        assert digest_of(store, 2) in str(found.value)
        assert "releases.json notes" in str(found.value)
    assert {name: store.text(name) for name in before} == before
    # Another one that is intact can take over.
    assert releases.promote(**store.where, version=1).changed
    assert store.served()[1] == {"stable": 1}


def test_a_new_export_under_an_old_number_is_known_by_what_it_is_now(store: Store) -> None:
    change(store, 2)
    facts = {"sha256": digest_of(store, 2)}
    assert releases.release(**store.where, version=2, label="canary", facts=facts).changed
    assert releases.promote(**store.where).version == 2


def test_every_digit_and_word_of_the_history_counts(tmp_path: Path) -> None:
    with open_store("folder", tmp_path) as store:
        store.add(1)
        store.deploy(1, facts={"sha256": digest_of(store, 1), "accuracy": 0.91})
        store.deploy(2)
        intact = store.text("releases.json")
        events = Histories(intact, "").events("pets")
        path = Path(store.uri) / "releases.json"
        taken = 0
        for place in range(0, len(intact), 3):
            changed = bytearray(intact.encode())
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                found = Histories(path.read_bytes().decode(errors="replace"), "").events("pets")
            except InputError:
                continue
            # White space, and the name of the line that holds the digest.
            assert found == events, changed
            taken += 1
        assert taken < 10
        damage(path, "cut", seed=0)
        with pytest.raises(InputError, match=r"must be the history of releases.*its line sha256 may go"):
            releases.promote(**store.where, version=1)


def test_a_history_without_a_digest_is_taken_and_gets_one(tmp_path: Path) -> None:
    with open_store("folder", tmp_path) as store:
        store.deploy(1)
        content = json.loads(store.text("releases.json"))
        del content["sha256"]
        content["models"]["pets"][0]["accuracy"] = 0.5
        store.put("releases.json", json.dumps(content))
        store.deploy(2)
        written = json.loads(store.text("releases.json"))
        assert written["sha256"]
        assert written["models"]["pets"][0]["accuracy"] == 0.5


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions that TensorFlow loads."""
    root = tmp_path_factory.mktemp("exports")
    for version in (1, 2):
        save_model(root / str(version), scale=float(version))
    return root


@pytest.fixture
def published(exports: Path, tmp_path: Path) -> Path:
    """A store in which version 1 and then version 2 became stable."""
    for version in (1, 2):
        shutil.copytree(exports / str(version), tmp_path / "store" / "pets" / str(version))
        facts = {"sha256": sha256_directory(exports / str(version))}
        where = {"store": str(tmp_path / "store"), "model_name": "pets"}
        releases.release(**where, version=version, facts=facts)
    return tmp_path / "store"


def serve(store: Path) -> tuple[ModelSet, set[int]]:
    """Load what the store's configuration lists, as the server does; returns the versions that serve."""
    from graftflow.serving.saved_models import LoadedVersion

    models = ModelSet(LoadedVersion)
    with suppress(ServingError):  # the label of a version that does not load
        models.configure(read_models(store / "models.config"))
    states = models.statuses(ModelSpec("pets"))
    return models, {status.number for status in states if status.state == "AVAILABLE"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("saved_model.pb", kind) for kind in DAMAGES),
        ("variables/variables.index", "flip"),
        ("variables/variables.data-00000-of-00001", "flip"),
    ],
)
def test_a_damaged_version_is_not_served_and_the_older_one_stays(
    published: Path, name: str, kind: str, caplog
) -> None:
    damage(published / "pets" / "2" / name, kind, seed=5)
    models, available = serve(published)
    assert available == {1}
    assert models.get(ModelSpec("pets")).number == 1
    (status,) = models.statuses(ModelSpec("pets", version=2))
    assert status.code.name in ("DATA_LOSS", "NOT_FOUND")
    assert "which" in status.message
    assert "releases.json notes: they were changed or damaged" in status.message
    assert "version 2 of pets does not load" in caplog.text
    models.close()


def test_intact_versions_and_those_nobody_noted_are_served(published: Path) -> None:
    models, available = serve(published)
    assert available == {1, 2}
    models.close()
    # A damaged history keeps nobody from serving, with a warning; a missing one tells of nothing.
    (published / "releases.json").write_text("{")
    assert serve(published)[1] == {1, 2}
    (published / "releases.json").unlink()
    assert serve(published)[1] == {1, 2}
