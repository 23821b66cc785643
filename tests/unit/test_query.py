"""The command that asks about pictures: what it prints, tells and returns, over both protocols."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from graftflow.serving import query
from graftflow.serving.answer_texts import Answer, shorten, shortest
from tests.unit.grpc_double import grpc_double
from tests.unit.scripted_server import RANKED, only_jpeg, scripted_server
from tests.unit.serving_model import CLASSES, ROOT, free_port, picture, running_server, save_model

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


class TestNames:
    def test_folders_patterns_and_files(self, run, pictures):
        code, out, err = run(pictures, "--format", "json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert [d["picture"].removeprefix(str(pictures)) for d in document] == [
            "/a.jpg",
            "/b [1].JPG",
            "/deep/c.jpeg",
        ]
        assert document[0]["predictions"][0] == {"class": "cat", "probability": 0.75}
        code, out, _ = run(f"{pictures}/*.jpg", pictures / "b [1].JPG", "--format=csv", "--top=1")
        rows = list(csv.DictReader(io.StringIO(out)))
        assert code == 0
        assert len(rows) == 2
        assert (rows[1]["rank"], rows[1]["class"], rows[1]["probability"]) == ("1", "cat", "0.75")

    def test_one_picture_on_standard_input(self, run, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(picture())))
        code, out, _ = run("-", "--format=csv", "--top=1")
        assert code == 0
        assert out.splitlines()[1].startswith("-,1,cat,")

    def test_a_list_of_paths_on_standard_input(self, run, pictures, monkeypatch):
        text = f"{pictures}/a.jpg\r\n\n{pictures}/b [1].JPG\n{pictures}/*.jpg\n{pictures}/deep"
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        code, out, err = run("--stdin-list", "--format=jsonl")
        told = [json.loads(line) for line in out.splitlines()]
        assert [t["picture"].rpartition("/")[2] for t in told] == ["a.jpg", "b [1].JPG", "*.jpg", "c.jpeg"]
        assert (code, told[2]["error"]) == (1, "no such file or folder")
        assert err == f"error: {pictures}/*.jpg: no such file or folder\n"

    def test_what_is_missing_or_empty_is_told(self, run, pictures, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty.jpg").write_bytes(b"")
        code, out, err = run(tmp_path / "empty", "x*.jpg", "no.jpg", tmp_path / "empty.jpg")
        assert (code, out) == (1, "")
        told = [line.rpartition(": ")[2] for line in err.splitlines()]
        assert told[0].startswith("the folder holds no picture (.jpg, ")
        assert told[1:] == ["no file matches the pattern", "no such file or folder", "is an empty file"]


class TestFormats:
    def test_the_table(self, run, pictures):
        code, out, _ = run(pictures / "a.jpg")
        assert code == 0
        assert str(pictures / "a.jpg") in out
        assert "0.7500" in out
        assert "dog" in out
        assert "█" * 18 in out or "#" * 18 in out

    @pytest.mark.parametrize("columns", [80, 120])
    def test_a_long_path_is_one_line_with_its_file_name(self, scripted, tmp_path, columns):
        folder = tmp_path / "/".join(["a rather long folder"] * 5)
        folder.mkdir(parents=True)
        (folder / "IMG_20260102.jpg").write_bytes(picture())
        (tmp_path / f"{'x' * 90}_end.jpg").write_bytes(picture())
        ours, theirs = pty.openpty()
        environment = {**ENVIRONMENT, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            command(tmp_path, "--url", scripted.url), stdout=theirs, stderr=subprocess.PIPE, timeout=30,
            env=environment, cwd=ROOT,
        )  # fmt: skip
        os.close(theirs)
        out = b""
        try:
            while piece := os.read(ours, 2**16):
                out += piece
        except OSError:  # Linux's way to say that the terminal is closed
            pass
        os.close(ours)
        assert (done.returncode, done.stderr) == (0, b"")
        lines = re.sub(r"\x1b\[[0-9;]*m", "", out.decode()).splitlines()
        assert {len(line) for line in lines if line} <= set(range(20, columns + 1))
        assert sum("…/IMG_20260102.jpg" in line for line in lines) == 1
        assert sum(re.search(r"x…x+_end\.jpg", line) is not None for line in lines) == 1
        assert len([line for line in lines if "0.75" in line or "0.25" in line]) == 4

    def test_json_lines_and_csv_come_as_soon_as_they_are_known(self, scripted, pictures):
        process = subprocess.Popen(
            command("--stdin-list", "--url", scripted.url, "--format=jsonl", "--batch-size=1", "--in-flight=1"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        try:
            for name in ("a.jpg", "notes.txt", "a.jpg"):
                process.stdin.write(f"{pictures}/{name}\n".encode())
                process.stdin.flush()
                # The next path is not written before.
                assert select.select([process.stdout], [], [], 20)[0]
                told = json.loads(process.stdout.readline())
                assert told["picture"] == f"{pictures}/{name}"
                assert ("error" in told) == (name == "notes.txt")
        finally:
            process.stdin.close()
            assert process.wait(20) == 1
            process.stdout.close()

    @pytest.mark.parametrize(
        ("path", "width", "expected"),
        [
            ("a/b.jpg", 10, "a/b.jpg"),
            ("aaaa/bbbb/cccc.jpg", 14, "aaaa…/cccc.jpg"),
            ("aaaa/bbbb/cccc.jpg", 10, "…/cccc.jpg"),
            ("aaaa/bbbb/cccccccc.jpg", 9, "cccc….jpg"),
            ("猫猫猫猫/猫.jpg", 10, "猫…/猫.jpg"),
        ],
    )
    def test_paths_are_cut_in_the_middle(self, path, width, expected):
        assert shorten(path, width) == expected

    def test_numbers_of_both_protocols_read_alike(self):
        assert shortest(0.10000000149011612) == 0.1
        assert shortest(0.1) == 0.1
        assert shortest(0.12345679104328156) == 0.12345679
        assert [shortest(v) for v in (0.0, 1.0, 1e300, float("inf"))] == [0.0, 1.0, 1e300, float("inf")]

    def test_every_format_takes_no_answer_and_odd_numbers(self):
        for kind in query.WRITERS.values():
            stream = io.StringIO()
            writer = kind(stream)
            writer.end()
            assert stream.getvalue() == ""
            writer.write(Answer("a", [("odd", float("nan"))]))
            writer.end()
            assert "odd" in stream.getvalue()


class TestFailures:
    def test_one_bad_picture_does_not_keep_the_others_from_an_answer(self, run, pictures):
        code, out, err = run(pictures / "notes.txt", "missing.jpg", pictures / "a.jpg", "--format=csv")
        assert code == 1
        assert len(out.splitlines()) == 3
        assert "a.jpg,1,cat" in out
        lines = err.splitlines()
        assert len(lines) == 2
        assert "notes.txt: is no JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM picture" in lines[0]
        assert lines[1] == "error: missing.jpg: no such file or folder"

    def test_sent_as_it_is_the_server_judges(self, scripted, run, pictures):
        code, _, err = run(pictures / "notes.txt", pictures / "a.jpg", "--as-is", "--format=csv")
        assert code == 1
        assert err == f"error: {pictures}/notes.txt: The server refuses: Unknown image file format.\n"
        assert len(scripted.requests) == 3

    def test_the_command_stops_at_once_where_no_model_answers(self, scripted, run, pictures):
        scripted.answers = [(404, {"error": "Servable not found for request: Latest(graftflow)"}, {})]
        code, out, err = run(pictures)
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert "serves no model 'graftflow'" in err
        assert len(scripted.requests) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                [],
                "Either IMAGE (file, folder, pattern or -) or --stdin-list must be given. Received: neither",
            ),
            (["a.jpg", "--stdin-list"], "Received: both"),
            (["-", "-"], "- must be given once"),
            (["a.jpg", "--top=0"], "--top must be 1 or more. Received: 0"),
            (["a.jpg", "--requests=3"], "--requests must be given with --watch"),
            (["a.jpg", "--watch", "--format=csv"], "--format must be table or json with --watch"),
            (["a.jpg", "--format=xml"], "invalid choice: 'xml'"),
            (["a.jpg", "--url=ftp://x"], "url must be like http://"),
            (["a.jpg", "--version=1", "--label=stable"], "Only one of version and label"),
            (["a.jpg", "--header=nothing"], "--header must be like 'Authorization: Bearer …'"),
            (["a.jpg", "--retry=nan"], "--retry must be 0 or more. Received: nan"),
            (["a.jpg", "--vers=1"], "unrecognized arguments: --vers=1"),
        ],
    )
    def test_wrong_usage_is_one_line_and_status_2(self, capsys, arguments, message):
        assert query.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err

    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_no_server_is_one_line(self, run, pictures, scheme):
        code, out, err = run(pictures, "--retry=0.2", url=f"{scheme}://127.0.0.1:{free_port()}")
        assert (code, out) == (1, "")
        assert err.startswith("error: No model server answers at ")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("in_flight", [1, 3])
    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_an_interruption_ends_at_once_with_status_130(self, scripted, pictures, scheme, in_flight):
        scripted.answers = [(200, lambda body: time.sleep(5) or only_jpeg(body), {})]
        with grpc_double() as double:
            double.delay = 5
            url = {"http": scripted.url, "grpc": double.url}[scheme]
            process = subprocess.Popen(
                command(
                    pictures, "--url", url, "--model=pets", f"--in-flight={in_flight}", "--batch-size=1"
                ),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=ROOT,
            )  # fmt: skip
            end = time.monotonic() + 20
            while not (scripted.requests or double.requests) and time.monotonic() < end:
                time.sleep(0.05)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, b"", b"")
        assert time.monotonic() - start < 3

    def test_progress_of_many_pictures_is_told_on_stderr(self, run, tmp_path):
        for index in range(120):
            (tmp_path / f"{index:03}.jpg").write_bytes(picture())
        code, out, err = run(tmp_path, "--format=csv", "--top=1", "--in-flight=3")
        assert (code, len(out.splitlines())) == (0, 121)
        assert err.splitlines()[-1] == "progress: answers 120/120 pictures"
        listed = [row["picture"] for row in csv.DictReader(io.StringIO(out))]
        assert listed == sorted(listed)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The embedded server, its model of two versions."""
    folder = tmp_path_factory.mktemp("real")
    for version, scale in ((1, 4.0), (2, -4.0)):
        save_model(folder / "toy" / str(version), scale=scale)
    (folder / "models.config").write_text(
        f'model_config_list {{ config {{ name: "toy" base_path: "{folder / "toy"}" model_platform: "tensorflow" '
        "model_version_policy { all {} } "
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } } }'
    )
    with running_server(None, folder / "log", f"--model_config_file={folder / 'models.config'}") as server:
        yield {"http": server.url, "grpc": f"grpc://{server.address}"}


class TestRealServer:
    """The embedded server, over both protocols: they must not differ by a digit."""

    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "blue.png").write_bytes(picture((20, 30, 220), "PNG"))
        (tmp_path / "broken.jpg").write_bytes(picture()[:200])
        (tmp_path / "red.jpg").write_bytes(picture((200, 30, 30)))
        (tmp_path / "red.webp").write_bytes(picture((200, 30, 30), "WEBP"))
        return tmp_path

    def test_rest_and_grpc_print_the_same(self, real, run, files):
        printed = {
            scheme: run(files, "--model=toy", "--label=stable", "--format=jsonl", url=url)
            for scheme, url in real.items()
        }
        assert printed["http"] == printed["grpc"]
        code, out, err = printed["grpc"]
        assert code == 1
        assert err.startswith(f"error: {files}/broken.jpg: ")
        told = {t["picture"].rpartition("/")[2]: t for t in map(json.loads, out.splitlines())}
        best = {name: t["predictions"][0]["class"] for name, t in told.items() if "predictions" in t}
        assert best == {"blue.png": "blue", "red.jpg": "red", "red.webp": "red"}
        assert {p["class"] for p in told["red.jpg"]["predictions"]} == set(CLASSES)

    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_versions_and_labels_choose(self, real, run, files, scheme):
        def best(*choice):
            code, out, err = run(
                files / "red.jpg", "--model=toy", "--format=csv", "--top=1", *choice, url=real[scheme]
            )
            return out.splitlines()[1].split(",")[2] if code == 0 else err

        assert best("--version=1") == best("--label=stable") == "red"
        assert best("--version=2") == best("--label=canary") == best() == "blue"
        assert "serves no version 9 of model 'toy'" in best("--version=9")
        assert "It serves 1, 2." in best("--label=old")
        assert best("--signature=no").count("\n") == 1

    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_a_watch_has_no_errors(self, real, run, files, scheme):
        code, out, _ = run(
            files / "red.jpg", "--watch", "--requests=30", "--model=toy", "--format=json", url=real[scheme]
        )
        assert (code, json.loads(out)["errors"]) == (0, {})


def test_grpcs_double_is_asked_by_the_command_too(run, pictures):
    with grpc_double() as double:
        code, out, _ = run(pictures, "--model=pets", "--format=json", url=double.url)
    assert code == 0
    assert json.loads(out)[0]["predictions"] == [
        {"class": c, "probability": p} for c, p in zip(*RANKED.values(), strict=True)
    ]
