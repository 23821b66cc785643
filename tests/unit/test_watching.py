"""Asking again and again, and by several threads: what is counted, and in which order answers come."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from graftflow.serving import query
from graftflow.serving.latencies import Latencies
from graftflow.serving.windows import in_order
from tests.unit.scripted_server import only_jpeg, scripted_server
from tests.unit.serving_model import ROOT, free_port, picture

ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}


@pytest.fixture
def scripted():
    with scripted_server() as script:
        script.answers = [(200, only_jpeg, {})]
        yield script


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b [1].JPG", "deep/c.jpeg"):
        (folder / name).write_bytes(picture())
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(scripted, capsys):
    def call(*arguments, url=scripted.url):
        code = query.main([*map(str, arguments), "--url", url])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def command(*arguments):
    return [sys.executable, "-m", "graftflow.serving.query", *map(str, arguments)]


class TestWatch:
    def test_so_many_requests_are_summed_up(self, scripted, run, pictures):
        code, out, err = run(pictures, "--watch", "--requests=20", "--in-flight=3", "--format=json")
        assert (code, err) == (0, "")
        summary = json.loads(out)
        assert (summary["requests"], summary["errors"]) == (20, {})
        assert len(scripted.requests) == 21  # the first one connects, and does not count
        times = summary["milliseconds"]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"] < 5000
        assert summary["per_second"] == pytest.approx(20 / summary["seconds"])
        code, out, _ = run(pictures, "--watch", "--requests=5")
        assert re.fullmatch(r"5 requests in .* s · .*/s · p50 .* p90 .* p99 .* max .* ms · errors 0\n", out)

    def test_failures_are_counted_by_their_code_and_not_tried_again(self, scripted, run, pictures):
        fine = (200, only_jpeg, {})
        busy, broken = (503, {"error": "busy"}, {}), (500, {"error": "oh"}, {})
        scripted.answers = [fine, fine, busy, fine, busy, broken, fine]
        code, out, _ = run(pictures, "--watch", "--requests=10", "--in-flight=1", "--format=json")
        summary = json.loads(out)
        assert code == 1
        assert summary["errors"] == {"HTTP 503": 2, "HTTP 500": 1}
        assert summary["requests"] == 10
        assert len(scripted.requests) == 11

    def test_a_wrong_address_or_an_unusable_picture_ends_it_at_once(self, run, pictures):
        code, out, err = run(pictures, "--watch", url=f"http://127.0.0.1:{free_port()}")
        assert (code, out) == (1, "")
        assert "No model server answers" in err
        code, out, err = run(pictures / "notes.txt", "--watch")
        assert (code, out) == (1, "")
        assert "--watch must have a picture that can be sent. Received: none" in err
        code, out, err = run(pictures / "notes.txt", pictures / "a.jpg", "--watch", "--requests=2")
        assert (code, out.split()[0], err.count("\n")) == (1, "2", 1)

    def test_an_interruption_ends_it_with_the_summary(self, scripted, pictures):
        process = subprocess.Popen(
            command(pictures / "a.jpg", "--watch", "--url", scripted.url),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        end = time.monotonic() + 20
        while len(scripted.requests) < 20 and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, b"")
        assert int(out.split()[0]) >= 15

    def test_quantiles_are_right_to_a_percent(self):
        latencies = Latencies()
        for millisecond in range(1, 1001):
            latencies.answered(millisecond / 1e3)
        latencies.failed("UNAVAILABLE")
        summary = latencies.summary(10.0)
        assert (summary.requests, summary.per_second) == (1001, 100.0)
        for name, expected in {"p50": 500, "p90": 900, "p99": 990, "max": 1000}.items():
            assert summary.milliseconds[name] == pytest.approx(expected, rel=0.0101)
        assert summary.errors == {"UNAVAILABLE": 1}

    def test_without_an_answer_there_are_no_quantiles(self):
        assert Latencies().summary(1.0).line() == "0 requests in 1.0 s · 0.0/s · errors 0"


class TestOrder:
    def test_what_fails_ends_the_stream_in_its_place(self):
        def work(number):
            if number == 5:
                raise ValueError("five")
            return number

        found = []
        with pytest.raises(ValueError, match="five"):
            for result in in_order(work, iter(range(100)), 4):
                found.append(result)
        assert found == [0, 1, 2, 3, 4]

    def test_nothing_is_begun_after_a_failure(self):
        begun = []

        def work(number):
            begun.append(number)
            if number == 0:
                raise ValueError("zero")
            time.sleep(0.1)

        with pytest.raises(ValueError, match="zero"):
            list(in_order(work, iter(range(100)), 2))
        time.sleep(0.3)
        assert len(begun) <= 3

    def test_a_reader_that_fails_is_told_too(self):
        def items():
            yield 1
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            list(in_order(str, items(), 3))
