"""A model's versions, several models, their labels and their reloads, without TensorFlow."""

from pathlib import Path

import pytest

from graftflow.serving.config_texts import ModelSettings, VersionPolicy
from graftflow.serving.model_sets import ModelSet, ModelSpec
from graftflow.serving.model_store import ModelStore, Retries, status_json
from graftflow.serving.status import HTTP_STATUS, Code, ServingError

LATEST = VersionPolicy()
LATEST_SPEC = ModelSpec("toy")


class Version:
    """Stands in for a loaded SavedModel."""

    def __init__(self, number: int, path: Path) -> None:
        if (path / "odd").exists():
            raise RuntimeError("never seen before")
        if (path / "broken").exists():
            raise ServingError(Code.DATA_LOSS, "it is broken")
        self.number = number


def error_of(call, *arguments):
    with pytest.raises(ServingError) as caught:
        call(*arguments)
    return caught.value


def make(folder, *numbers, broken=False):
    for number in numbers:
        (folder / str(number)).mkdir(parents=True)
        if broken:
            (folder / str(number) / "broken").touch()


def store_of(tmp_path, *numbers, policy=LATEST, retries=None):
    make(tmp_path, *numbers)
    store = ModelStore(ModelSettings("toy", tmp_path, policy), Version, retries or Retries())
    store.poll()
    return store


def states(store):
    return {s.number: s.state for s in store.statuses()}


def test_versions_sort_as_numbers_and_other_folders_are_left_alone(tmp_path):
    store = store_of(tmp_path, "9", "10", ".11.x.partial", "12a", "-13")
    assert store.get().number == 10
    assert states(store) == {10: "AVAILABLE"}


def test_a_new_version_takes_over_and_the_old_one_ends(tmp_path):
    store = store_of(tmp_path, "1")
    old = store.get()
    make(tmp_path, 2)
    store.poll()
    assert store.get().number == 2
    assert old.number == 1
    assert states(store) == {2: "AVAILABLE", 1: "END"}
    assert error_of(store.get, 1).message == "Servable not found for request: Specific(toy, 1)"


def test_a_broken_version_leaves_the_good_one_and_is_tried_again_once_it_changes(tmp_path):
    store = store_of(tmp_path, "1")
    make(tmp_path, 2, broken=True)
    store.poll()
    assert store.get().number == 1
    assert status_json(store.statuses(2))["model_version_status"] == [
        {
            "version": "2",
            "state": "END",
            "status": {"error_code": "DATA_LOSS", "error_message": "it is broken"},
        }
    ]
    (tmp_path / "2" / "broken").unlink()
    store.poll()
    assert store.get().number == 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_unchanged_version_is_tried_again_as_often_as_allowed(tmp_path, count):
    tries = []

    def load(number, path):
        tries.append(number)
        return Version(number, path)

    make(tmp_path, 1, broken=True)
    store = ModelStore(ModelSettings("toy", tmp_path), load, Retries(count, 0))
    for _ in range(6):
        store.poll()
    assert len(tries) == 1 + count
    patient = ModelStore(ModelSettings("toy", tmp_path), load, Retries(count, 3600))
    tries.clear()
    for _ in range(6):
        patient.poll()
    assert len(tries) == 1


def test_an_unforeseen_failure_is_a_status_too(tmp_path):
    make(tmp_path, 2)
    (tmp_path / "2" / "odd").touch()
    store = store_of(tmp_path, "1")
    status = store.statuses(2)[0]
    assert (status.code, status.message) == (Code.INTERNAL, "RuntimeError: never seen before")
    assert store.get().number == 1


def test_a_server_that_starts_on_a_broken_version_serves_the_one_before(tmp_path):
    make(tmp_path, 2, broken=True)
    store = store_of(tmp_path, "1")
    assert states(store) == {2: "END", 1: "AVAILABLE"}


def test_a_removed_version_gives_way_but_an_emptied_base_path_unloads_nothing(tmp_path):
    store = store_of(tmp_path, "1", "2")
    (tmp_path / "2").rmdir()
    store.poll()
    assert store.get().number == 1
    (tmp_path / "1").rmdir()
    store.poll()
    assert store.get().number == 1


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (VersionPolicy("latest", count=2), {4, 3}),
        (VersionPolicy("latest", count=9), {1, 2, 3, 4}),
        (VersionPolicy("all"), {1, 2, 3, 4}),
        (VersionPolicy("specific", versions=(1, 3)), {1, 3}),
        (VersionPolicy("specific", versions=(2, 7)), {2}),
    ],
)
def test_a_policy_decides_which_versions_serve(tmp_path, policy, served):
    store = store_of(tmp_path, "1", "2", "3", "4", policy=policy)
    assert store.available() == served
    assert store.get().number == max(served)
    assert {store.get(number).number for number in served} == served


def test_the_latest_two_skip_a_broken_one(tmp_path):
    make(tmp_path, 3, broken=True)
    store = store_of(tmp_path, "1", "2", "4", policy=VersionPolicy("latest", count=2))
    assert store.available() == {4, 2}


def test_specific_versions_that_are_gone_unload_nothing(tmp_path):
    store = store_of(tmp_path, "1", "2", policy=VersionPolicy("specific", versions=(1,)))
    store.settings = ModelSettings("toy", tmp_path, VersionPolicy("specific", versions=(7,)))
    store.poll()
    assert store.available() == {1}


def models_of(*settings, labels_before_load=False):
    models = ModelSet(Version, labels_before_load=labels_before_load)
    models.configure(settings)
    return models


def test_an_unknown_model_is_not_found(tmp_path):
    models = models_of(ModelSettings("toy", tmp_path))
    assert error_of(models.get, LATEST_SPEC).message == "Servable not found for request: Latest(toy)"
    other = ModelSpec("other", 3)
    assert error_of(models.get, other).message == "Servable not found for request: Specific(other, 3)"
    assert error_of(models.statuses, other).message == "Could not find version 3 of model other"
    error = error_of(models.statuses, ModelSpec("other"))
    assert error.message == "Could not find any versions of model other"
    assert HTTP_STATUS[error.code] == 404
    assert error_of(models.get, ModelSpec("")).code is Code.INVALID_ARGUMENT


def test_labels_name_versions(tmp_path):
    make(tmp_path, 1, 2)
    both = VersionPolicy("all")
    models = models_of(ModelSettings("toy", tmp_path, both, {"stable": 1, "canary": 2}))
    assert models.get(ModelSpec("toy", label="stable")).number == 1
    assert models.get(ModelSpec("toy", label="canary")).number == 2
    assert models.get(LATEST_SPEC).number == 2
    error = error_of(models.get, ModelSpec("toy", label="nightly"))
    assert (error.code, error.message) == (
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: nightly",
    )
    models.configure([ModelSettings("toy", tmp_path, both, {"stable": 2})])
    assert models.get(ModelSpec("toy", label="stable")).number == 2
    assert error_of(models.get, ModelSpec("toy", label="canary")).code is Code.INVALID_ARGUMENT


def test_no_label_is_ever_without_its_version(tmp_path):
    """Whatever happens while a label moves: at every moment the label answers."""
    make(tmp_path, 1, 2)
    stable = ModelSpec("toy", label="stable")

    def settings(number):
        return ModelSettings(
            "toy", tmp_path, VersionPolicy("specific", versions=(number,)), {"stable": number}
        )

    seen = []

    class Watched(Version):
        def __init__(self, number, path):
            super().__init__(number, path)
            if models.names():
                seen.append(models.get(stable).number)

    models = ModelSet(Watched)
    models.configure([settings(1)])
    unload = ModelStore._unload

    def watched(store, numbers):
        seen.append(models.get(stable).number)
        unload(store, numbers)
        seen.append(models.get(stable).number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelStore, "_unload", watched)
        models.configure([settings(2)])
        models.configure([settings(1)])
    # Loading, before and after unloading, there and back.
    assert seen == [1, 2, 2, 2, 1, 1]


def test_a_label_of_a_version_that_does_not_load_leaves_the_labels_as_they_were(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2, broken=True)
    both = VersionPolicy("all")
    models = models_of(ModelSettings("toy", tmp_path, both, {"stable": 1}))
    error = error_of(models.configure, [ModelSettings("toy", tmp_path, both, {"stable": 2})])
    assert error.code is Code.FAILED_PRECONDITION
    assert "assign label to version 2 of model toy, which is not currently available" in error.message
    assert models.get(ModelSpec("toy", label="stable")).number == 1


def test_a_new_label_may_wait_for_its_version_where_that_is_allowed(tmp_path):
    make(tmp_path, 1)
    waiting = ModelSettings("toy", tmp_path, VersionPolicy("all"), {"stable": 1, "canary": 2})
    assert error_of(models_of, waiting).code is Code.FAILED_PRECONDITION
    models = models_of(waiting, labels_before_load=True)
    canary = ModelSpec("toy", label="canary")
    assert error_of(models.get, canary).message == "Servable not found for request: Specific(toy, 2)"
    make(tmp_path, 2)
    models.poll()
    assert models.get(canary).number == 2
    # A label that is in use never points to nothing, whatever the flag.
    moved = ModelSettings("toy", tmp_path, VersionPolicy("all"), {"stable": 3})
    assert error_of(models.configure, [moved]).code is Code.FAILED_PRECONDITION
    assert models.get(ModelSpec("toy", label="stable")).number == 1


def test_models_come_and_go(tmp_path):
    make(tmp_path / "a", 1)
    make(tmp_path / "b", 7)
    a, b = ModelSettings("a", tmp_path / "a"), ModelSettings("b", tmp_path / "b")
    models = models_of(a)
    models.configure([a, b])
    assert models.get(ModelSpec("b")).number == 7
    models.configure([b])
    assert models.names() == ["b"]
    assert error_of(models.get, ModelSpec("a")).code is Code.NOT_FOUND
    moved = ModelSettings("b", tmp_path / "a")
    models.configure([moved])
    assert models.get(ModelSpec("b")).number == 1


def test_a_reload_tells_of_a_new_model_that_does_not_load(tmp_path):
    make(tmp_path / "a", 1)
    make(tmp_path / "b", 1, broken=True)
    a, b = ModelSettings("a", tmp_path / "a"), ModelSettings("b", tmp_path / "b")
    models = models_of(a)
    error = error_of(models.reload, [a, b])
    assert (error.code, error.message) == (
        Code.UNAVAILABLE,
        "1 servable(s) did not become available: b",
    )
    assert models.get(ModelSpec("a")).number == 1


def written(file, *entries):
    file.write_text("model_config_list {" + "".join(entries) + "}")


def test_a_configuration_is_followed_whatever_happens_to_its_file(tmp_path, caplog):
    make(tmp_path / "toy", 1, 2)
    file = tmp_path / "models.config"
    models = ModelSet(Version)
    entry = (
        f'config {{ name: "toy" base_path: "{tmp_path}/toy" model_platform: "tensorflow" '
        "model_version_policy { specific { versions: %d } } "
        'version_labels { key: "stable" value: %d } }'
    )
    stable = ModelSpec("toy", label="stable")
    look = []
    # The looks are made by hand here: no pause to wait for.
    models._repeat = lambda work, seconds, name: look.append(work)  # type: ignore[method-assign]
    models.follow(file, 1)
    assert models.names() == []
    written(file, entry % (1, 1))
    look[0]()
    assert models.get(stable).number == 1
    for broken in ("model_config_list {", "model_config_list { config { } }", "", "\x00"):
        file.write_text(broken)
        look[0]()
        assert models.get(stable).number == 1
        assert f"{file} changes nothing" in caplog.text
    file.unlink()
    look[0]()
    assert models.get(stable).number == 1
    written(file, entry % (2, 2))
    look[0]()
    assert models.get(stable).number == 2
