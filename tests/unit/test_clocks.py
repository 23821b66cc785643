"""A clock that is wrong, or set while a run goes on, costs nothing but its own dates."""

import os
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from graftflow import feature_cache, release_histories, releases
from graftflow.feature_cache import FeatureCache
from graftflow.header_values import retry_after
from graftflow.serving.client import Client
from tests.unit.scripted_server import scripted_server


def test_rows_that_took_long_are_kept_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path, width=2)
    row = np.ones((1, 2), np.float32)
    cache.add([bytes(32)], row)
    assert not list(tmp_path.iterdir())
    later = time.monotonic() + feature_cache._FLUSH_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    cache.add([bytes([1]) * 32], row)
    assert len(FeatureCache(tmp_path, width=2)) == 2
    cache.add([bytes([2]) * 32], row)
    assert len(FeatureCache(tmp_path, width=2)) == 2, "the wait begins anew with each file"


@pytest.mark.parametrize("days", [-2, 2])
def test_what_a_killed_process_left_goes_although_its_date_lies_in_the_future(
    tmp_path: Path, days: int
) -> None:
    left, young = tmp_path / ".a.x.partial.rows", tmp_path / ".b.x.partial.rows"
    for path, moment in ((left, time.time() + days * 24 * 3600), (young, time.time())):
        path.write_bytes(b"half")
        os.utime(path, (moment, moment))
    FeatureCache(tmp_path, width=2)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_a_server_is_waited_for_by_its_own_clock(ahead: int) -> None:
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=ahead)
    then = format_datetime(now + timedelta(seconds=7), usegmt=True)
    assert retry_after(then, format_datetime(now, usegmt=True)) == 7.0
    assert retry_after("7", "") == 7.0
    assert retry_after("soon", format_datetime(now, usegmt=True)) is None


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_the_query_client_waits_by_the_servers_clock(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=ahead)
    monkeypatch.setattr(
        BaseHTTPRequestHandler, "date_time_string", lambda *_: format_datetime(now, usegmt=True)
    )
    then = format_datetime(now + timedelta(seconds=1), usegmt=True)
    with scripted_server() as server:
        server.answers = [(503, {"error": "busy"}, {"Retry-After": then}), *server.answers]
        started = time.monotonic()
        Client(server.url, timeout=9).predict([1.0])
    assert 1 <= time.monotonic() - started < 9


def test_labels_follow_the_order_of_changes_not_their_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (5, 9):
        (tmp_path / "pets" / str(version)).mkdir(parents=True)
        (tmp_path / "pets" / str(version) / "saved_model.pb").write_bytes(b"graph")
    moments = iter([datetime(2030, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)])

    class SetBack(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return next(moments)

    monkeypatch.setattr(release_histories, "datetime", SetBack)
    monkeypatch.setattr(releases._Open, "adopt", lambda self, but: None)
    for version in (9, 5):
        releases.release(store=str(tmp_path), model_name="pets", version=version)
    rows = releases.list_versions(store=str(tmp_path), model_name="pets")
    assert {row.version: row.label for row in rows} == {5: "stable", 9: ""}
    monkeypatch.setattr(release_histories, "datetime", datetime)
    assert releases.rollback(store=str(tmp_path), model_name="pets").version == 9
