"""Submitting to a cluster: what is sent, in which order of settings, and what is refused before."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from kfp_server import FakeKfp, serving
from submissions import compiled, compiled_once, one_line, prepare, run, settings_file

from pipelines import settings as settings_module
from pipelines import submit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kfp(monkeypatch):
    prepare(monkeypatch)
    with serving(FakeKfp()) as server:
        yield server


def test_a_submission_uploads_a_version_named_by_the_commit_and_starts_a_run_of_it(kfp, capsys):
    assert run(kfp, "--dataset", "archive:https://example.org/pets.zip", "--run-name", "pets") == 0
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    (sent,) = kfp.runs.values()
    version = kfp.versions[sent["pipeline_version_reference"]["pipeline_version_id"]]
    assert version["display_name"].startswith(commit)
    assert [p["display_name"] for p in kfp.pipelines.values()] == ["transfer-learning"]
    assert sent["display_name"] == "pets"
    assert kfp.experiments[sent["experiment_id"]]["display_name"] == "graftflow"
    assert sent["runtime_config"]["parameters"]["dataset"] == "archive:https://example.org/pets.zip"
    assert sent["runtime_config"]["parameters"]["store"] == "/mnt/models"
    assert f"{kfp.url}/#/runs/details/{sent['run_id']}" in capsys.readouterr().out


def test_a_second_submission_of_the_same_commit_reuses_version_and_experiment(kfp, capsys):
    assert run(kfp) == run(kfp) == 0
    first, second = kfp.runs.values()
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    assert first["experiment_id"] == second["experiment_id"]
    assert sum("upload_version" in path for _, path in kfp.requests) == 1
    assert "Found    transfer-learning" in capsys.readouterr().out


def test_without_cache_a_version_of_its_own_has_caching_off_in_every_task(kfp):
    assert run(kfp) == run(kfp, "--no-cache") == 0
    cached, uncached = (
        kfp.versions[sent["pipeline_version_reference"]["pipeline_version_id"]] for sent in kfp.runs.values()
    )
    assert cached["display_name"] != uncached["display_name"]

    def caching(version):
        spec = version["pipeline_spec"]
        dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
        return [
            t.get("cachingOptions", {}).get("enableCache", False) for d in dags for t in d["tasks"].values()
        ]

    assert any(caching(cached))
    assert not any(caching(uncached))


def test_settings_that_change_the_compiled_pipeline_make_another_version(kfp, tmp_path):
    where = {"host": kfp.url}
    plain = settings_file(tmp_path, cluster=where, parameters={"seed": 1})
    assert submit.main(["--settings", plain]) == 0
    changed = settings_file(
        tmp_path, cluster=where, images={"cpu": "registry.example/graftflow-python-cpu:1"}
    )
    assert submit.main(["--settings", changed]) == 0
    first, second = (
        kfp.versions[sent["pipeline_version_reference"]["pipeline_version_id"]] for sent in kfp.runs.values()
    )
    assert first["display_name"] != second["display_name"]
    assert "registry.example" in json.dumps(second["pipeline_spec"])


def test_flags_win_over_the_environment_and_that_over_the_file(kfp, tmp_path, monkeypatch):
    given = settings_file(
        tmp_path,
        cluster={"host": "http://127.0.0.1:1", "experiment": "from-file"},
        parameters={"seed": 1, "learning_rate": "1e-4", "min_accuracy": 1, "backbone": "vgg16"},
    )
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:2")
    monkeypatch.setenv("GRAFTFLOW_HOST", kfp.url)
    monkeypatch.setenv("GRAFTFLOW_EXPERIMENT", "from-environment")
    assert submit.main(["--settings", given, "--param", "seed=2", "--param", "fine-tune-blocks=1"]) == 0
    assert submit.main(["--settings", given, "--experiment", "from-flag", "--seed", "3"]) == 0
    assert [e["display_name"] for e in kfp.experiments.values()] == ["from-environment", "from-flag"]
    first, second = (sent["runtime_config"]["parameters"] for sent in kfp.runs.values())
    assert (first["seed"], second["seed"]) == (2, 3)
    assert first["fine_tune_blocks"] == 1
    assert (first["learning_rate"], first["min_accuracy"], first["backbone"]) == (1e-4, 1.0, "vgg16")


def test_pods_get_the_service_account_and_the_cache_volume_that_the_settings_name(kfp, tmp_path):
    given = settings_file(
        tmp_path,
        cluster={"service_account": "from-file"},
        cache_volume={"claim": "cache", "mount_path": "/mnt/kept"},
    )
    assert run(kfp, "--settings", given) == 0
    assert run(kfp, "--settings", given, "--service-account", "trainer", "--cache", "/data/cache") == 0
    assert run(kfp, "--settings", given, "--schedule", "@daily") == 0
    first, second = kfp.runs.values()
    assert (first["service_account"], second["service_account"]) == ("from-file", "trainer")
    caches = [sent["runtime_config"]["parameters"]["cache"] for sent in (first, second)]
    assert caches == ["/mnt/kept", "/data/cache"]
    (recurring,) = kfp.recurring.values()
    assert recurring["service_account"] == "from-file"


def test_a_schedule_is_sent_in_kfps_six_fields(kfp, capsys):
    assert run(kfp, "--schedule", "0 3 * * *") == 0
    (sent,) = kfp.recurring.values()
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert not kfp.runs
    assert f"{kfp.url}/#/recurringrun/details/{sent['recurring_run_id']}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["*/15 8-18 * * MON-FRI", "0 30 2 1,15 * ?", "@daily"])
def test_schedules_that_kfp_takes(text):
    assert submit.parse_cron(text)


@pytest.mark.parametrize(
    "text", ["", "3 * * *", "61 * * * *", "* 24 * * *", "*/0 * * * *", "0 3 * * FOO", "@noon"]
)
def test_a_schedule_that_is_no_cron_is_refused(kfp, capsys, text):
    with pytest.raises(SystemExit) as exit_code:
        run(kfp, "--schedule", text)
    assert exit_code.value.code == 2
    assert f"Received: '{text}'" in capsys.readouterr().err
    assert not kfp.requests


def test_a_dry_run_needs_no_network_and_shows_no_secret(capsys, monkeypatch):
    monkeypatch.setenv("GRAFTFLOW_TOKEN", "secret-of-mine")
    assert submit.main(["--host", "http://127.0.0.1:1/#/runs", "--dry-run", "--seed", "7"]) == 0
    shown = capsys.readouterr()
    assert "secret-of-mine" not in shown.out + shown.err
    request = json.loads(shown.out)
    assert request["credentials"] == "bearer token ***"
    assert request["host"] == "http://127.0.0.1:1/apis/v2beta1"
    assert request["run"]["runtime_config"]["parameters"]["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--param", "sed=1"], "Did you mean 'seed'?"),
        (["--param", "seed"], "--param must be name=value"),
        (["--param", "seed=one"], "seed must be a whole number. Received: 'one'"),
        (["--backbone", "resnet5000"], "Received: 'resnet5000'"),
        (["--min-accuracy", "1.5"], "min_accuracy must be a fraction from 0 to 1"),
        (["--dataset", "directory:photos"], "dataset must be an absolute path in the pods"),
        (["--store", "models"], "store must be an absolute path in the pods"),
        (["--host", "localhost:8080"], "host must be an address such as"),
        (["--host", "http://me:word@localhost"], "host must carry no user and password"),
        (["--token-file", "/nowhere"], "token_file must be a file"),
        (["--auth", "token"], "auth 'token' needs a token: GRAFTFLOW_TOKEN or token_file"),
        (["--auth", "dex", "--user", "me"], "auth 'dex' needs a password: GRAFTFLOW_PASSWORD"),
        (["--auth", "service-account"], "needs a projected token"),
        (["--token", "a\nb"], "token must be one line"),
        (["--service-account", "My_Account"], "service_account must be the name of one"),
        (["--settings", "/nowhere.yaml"], "The settings file must exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(kfp, capsys, arguments, said):
    assert run(kfp, *arguments) == 2
    line = one_line(capsys.readouterr().err)
    assert said in line
    assert "word" not in line.replace("password", "")
    assert not kfp.requests


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"cluster": {"hots": "x"}}, "a key of cluster must be one of host"),
        ({"cluster": {"token": "secret"}}, "cluster.token must not stand in a settings file"),
        ({"cluster": ["http://x"]}, "cluster must hold a mapping"),
        ({"cluster": {"auth": "kerberos"}}, "auth must be one of none, token"),
        ({"parameters": {"sed": 1}}, "Did you mean 'seed'?"),
        ({"parameters": {"seed": True}}, "parameters.seed must be a whole number"),
        ({"parameters": {"attack_target": 3}}, "parameters.attack_target must be text"),
    ],
)
def test_a_settings_file_that_breaks_a_rule_is_told(kfp, capsys, tmp_path, content, said):
    assert run(kfp, "--settings", settings_file(tmp_path, **content)) == 2
    line = one_line(capsys.readouterr().err)
    assert said in line
    assert "secret" not in line
    assert not kfp.requests


def test_paths_of_the_cluster_are_not_looked_for_here(kfp):
    paths = ["--dataset", "directory:/data/pets", "--weights", "/data/w.h5", "--store", "/data/store"]
    assert run(kfp, *paths, "--cache", "/data/cache") == 0
    (sent,) = kfp.runs.values()
    assert sent["runtime_config"]["parameters"]["dataset"] == "directory:/data/pets"


def test_the_example_of_the_settings_says_what_it_seems_to(capsys, monkeypatch):
    prepare(monkeypatch)
    assert (
        submit.main(["--settings", str(ROOT / "pipelines" / "settings.cluster.example.yaml"), "--dry-run"])
        == 0
    )
    request = json.loads(capsys.readouterr().out)
    assert (request["host"], request["credentials"]) == ("http://localhost:8080/apis/v2beta1", "none")
    assert request["run"]["runtime_config"]["parameters"]["dataset"] == "closeups"


def test_make_passes_what_its_command_line_says():
    command = ["make", "--dry-run", "submit", "SETTINGS=my.yaml", "SEED=3", "FLAGS=--wait --no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    last = " ".join(done.stdout.replace("\\\n", " ").split())
    assert "-m pipelines.submit --settings='my.yaml' --seed='3' --wait --no-cache" in last


def test_a_version_is_named_by_the_commit_and_a_changed_checkout_by_its_digest_too(kfp, tmp_path):
    def named(**options):
        return compiled_once(settings_module.load(), root=tmp_path, **{"changed": False, **options}).name

    def git(*arguments):
        who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        command = ["git", *who, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    digest = named().removeprefix("source-")
    assert re.fullmatch("[0-9a-f]{8}", digest)
    git("init")
    (tmp_path / "code.py").write_text("1", encoding="utf-8")
    git("add", "code.py")
    git("commit", "--message", "Begin")
    commit = git("rev-parse", "--short=12", "HEAD")
    compiled.clear()
    assert named() == commit
    assert named(changed=True) == f"{commit}-{digest}"
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    compiled.clear()
    assert named() == f"{commit}-dirty-{digest}"
