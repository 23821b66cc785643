"""Labels of a model store: what a server is told to load, and what comes back after what."""

import os
from collections.abc import Iterator

import pytest

from graftflow import releases
from graftflow.errors import InputError
from graftflow.serving.config_texts import read_models
from tests.unit.labelled_stores import KINDS, Store, open_store


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Iterator[Store]:
    with open_store(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_first_version_is_all_that_a_server_loads(folder, tmp_path):
    released = folder.deploy(1)
    assert (released.changed, released.replaced, released.standing.previous) == (True, None, None)
    entry = folder.entry()
    assert entry.base_path == str(tmp_path / "store" / "pets")
    assert entry.model_platform == "tensorflow"
    assert folder.served() == ([1], {"stable": 1})
    # The embedded server reads the same.
    (settings,) = read_models(tmp_path / "store" / "models.config")
    assert (settings.policy.versions, settings.labels) == ((1,), {"stable": 1})
    assert sorted(os.listdir(tmp_path / "store")) == ["models.config", "pets", "releases.json"]


def test_versions_come_and_go_back_one_by_one(store):
    store.deploy(1)
    store.deploy(2)
    assert store.served() == ([1, 2], {"stable": 2})
    store.deploy(3)
    assert store.served() == ([2, 3], {"stable": 3})
    store.deploy(4, "canary")
    assert store.served() == ([2, 3, 4], {"stable": 3, "canary": 4})
    assert releases.promote(**store.where).replaced == 3
    assert store.served() == ([3, 4], {"stable": 4})
    for version, loaded in ((3, [2, 3]), (2, [1, 2]), (1, [1])):
        back = releases.rollback(**store.where)
        assert (back.version, back.replaced) == (version, version + 1)
        assert store.served() == (loaded, {"stable": version})
    before = store.text("models.config"), store.text("releases.json")
    with pytest.raises(InputError, match=r"stable before\. Received: version 1 is the first") as caught:
        releases.rollback(**store.where)
    assert "Versions there: 1, 2, 3, 4" in str(caught.value)
    assert (store.text("models.config"), store.text("releases.json")) == before
    assert store.actions() == [
        ("deploy", 1, None),
        ("deploy", 2, 1),
        ("deploy", 3, 2),
        ("canary", 4, None),
        ("promote", 4, 3),
        ("rollback", 3, 4),
        ("rollback", 2, 3),
        ("rollback", 1, 2),
    ]


def test_requests_without_a_label_never_get_the_version_before(store):
    """They get the newest loaded one: a previous version with a higher number is not kept loaded."""
    store.deploy(7)
    store.deploy(3)
    assert store.served() == ([3], {"stable": 3})
    assert releases.rollback(**store.where).version == 7
    assert store.served() == ([7], {"stable": 7})


def test_after_a_rollback_a_new_version_goes_back_to_the_good_one(store):
    for version in (1, 2):
        store.deploy(version)
    releases.rollback(**store.where)
    store.deploy(3)
    assert store.served() == ([1, 3], {"stable": 3})
    assert releases.rollback(**store.where).version == 1


def test_a_version_that_was_rolled_back_comes_back_only_by_its_number(store):
    for version in (1, 2):
        store.deploy(version)
    releases.rollback(**store.where)
    for ask in (releases.check_release, releases.release):
        with pytest.raises(InputError, match="was rolled back must not become stable by a deployment"):
            ask(**store.where, version=2, label="stable")
    assert store.served() == ([1], {"stable": 1})
    assert releases.promote(**store.where, version=2).replaced == 1
    assert store.served() == ([1, 2], {"stable": 2})
    assert not store.deploy(2).changed


def test_the_same_again_changes_nothing(store):
    store.deploy(1)
    store.deploy(2)
    before = store.text("models.config"), store.text("releases.json")
    assert not store.deploy(2).changed
    assert (store.text("models.config"), store.text("releases.json")) == before


def test_a_canary_that_is_replaced_stays_loaded_until_its_label_has_moved(store):
    store.deploy(1)
    store.deploy(2, "canary")
    store.deploy(3, "canary")
    assert store.served() == ([1, 2, 3], {"stable": 1, "canary": 3})
    assert releases.withdraw(**store.where).version == 3
    assert store.served() == ([1], {"stable": 1})
    with pytest.raises(InputError, match="Received: no canary of 'pets'"):
        releases.withdraw(**store.where)
    with pytest.raises(InputError, match="promote needs a canary") as caught:
        releases.promote(**store.where)
    assert "one of the versions 1, 2, 3" in str(caught.value)


def test_a_rollback_leaves_the_canary_alone(store):
    for version in (1, 2):
        store.deploy(version)
    store.deploy(3, "canary")
    releases.rollback(**store.where)
    assert store.served() == ([1, 3], {"stable": 1, "canary": 3})


def test_a_canary_that_is_deployed_as_stable_is_promoted(store):
    store.deploy(1)
    store.deploy(2, "canary")
    store.deploy(2)
    assert store.served() == ([1, 2], {"stable": 2})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda w: releases.release(**w, version=1, label="canary"), "another version than the stable one"),
        (lambda w: releases.release(**w, version=9), "Received: version 9 of 'pets', which .* lacks"),
        (lambda w: releases.promote(**w, version=9), "Versions there: 1$"),
        (lambda w: releases.release(**w, version=1, label="latest"), "label must be one of canary, stable"),
        (lambda w: releases.rollback(store=w["store"], model_name="../pets"), "model_name must be"),
        (lambda w: releases.rollback(store=w["store"], model_name="dogs"), "Received: none is stable"),
        (lambda w: releases.list_versions(store=w["store"], model_name="dogs"), "Received: 'dogs'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_changes_nothing(store, act, message):
    store.deploy(1)
    before = store.text("models.config"), store.text("releases.json")
    with pytest.raises(InputError, match=message) as caught:
        act(store.where)
    assert "\n" not in str(caught.value)
    assert (store.text("models.config"), store.text("releases.json")) == before


def test_a_rollback_to_a_folder_that_is_gone_is_refused(store):
    for version in (1, 2, 3):
        store.deploy(version)
    store.remove(2)
    with pytest.raises(InputError, match=r"version 2 of 'pets', which .* lacks\. Versions there: 1, 3"):
        releases.rollback(**store.where)
    assert store.served()[1] == {"stable": 3}
    assert releases.promote(**store.where, version=1).replaced == 3
    assert store.served() == ([1], {"stable": 1})


def test_what_is_no_longer_there_is_not_asked_for(store):
    store.deploy(1)
    store.deploy(2)
    store.remove(1)
    store.deploy(2)
    assert store.served() == ([2], {"stable": 2})


def test_a_store_without_labels_keeps_serving_what_it_served(store):
    """Versions of before: a server without models.config serves the newest."""
    store.add(7, 10)
    store.deploy(11, "canary")
    assert store.served() == ([10, 11], {"stable": 10, "canary": 11})
    releases.promote(**store.where)
    assert releases.rollback(**store.where).version == 10


def test_models_of_one_store_share_the_files(store):
    store.deploy(1)
    store.add(5, model="dogs")
    releases.release(store=store.uri, model_name="dogs", version=5)
    assert store.served() == ([1], {"stable": 1})
    assert list(store.entry("dogs").model_version_policy.specific.versions) == [5]
    assert releases.list_versions(store=store.uri, model_name="dogs")[0].label == "stable"
