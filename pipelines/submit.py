"""Submits the pipeline to a Kubeflow cluster: ``python -m pipelines.submit``.

Settings come from the file of --settings (its mappings `cluster` and `parameters`), then from the environment
(KF_PIPELINES_ENDPOINT, GRAFTFLOW_HOST, GRAFTFLOW_NAMESPACE, GRAFTFLOW_TOKEN, ...), then from the flags: later ones win.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml

from pipelines import cluster as cluster_settings
from pipelines import follow, parameters, sent_parameters, transfer_learning
from pipelines import settings as settings_file
from pipelines.cron import parse_cron
from pipelines.kfp_api import Api, ApiError
from pipelines.pipeline_versions import ROOT, Version, compile_version

EXIT_CODES = """exit codes:
  0    submitted; with --wait or --follow: the run succeeded
  1    the run failed or was cancelled
  2    bad input: a flag, a setting, or something the cluster refuses
  3    the cluster cannot be reached, or does not accept the credentials
  124  --timeout is over; the run goes on
  130  Ctrl-C; the run goes on"""
FAILED, BAD_INPUT, NO_CLUSTER, TIMED_OUT, INTERRUPTED = 1, 2, 3, 124, 130
_CLUSTER_FLAGS = (
    "host",
    "namespace",
    "experiment",
    "auth",
    "token",
    "token_file",
    "cookie",
    "cookie_file",
    "user",
    "password_file",
    "ca_cert",
    "service_account",
)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be seconds above 0. Received: '{text}'")
    return seconds


def parser_of(pipeline: Any) -> argparse.ArgumentParser:
    """Return the command line: of submitting, of the cluster, and a flag a parameter of the pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.submit",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--settings", metavar="FILE", help="YAML; see pipelines/settings.cluster.example.yaml"
    )
    where = parser.add_argument_group("the cluster")
    where.add_argument("--host", help="address of KFP, e.g. http://localhost:8080")
    where.add_argument("--namespace", help="your profile, on a multi-user Kubeflow")
    where.add_argument("--experiment", help="made where it does not exist (default: graftflow)")
    where.add_argument(
        "--auth", choices=cluster_settings.AUTH_KINDS, help="default: what the credentials say"
    )
    where.add_argument(
        "--token", help="bearer token (others see it in the process list: prefer GRAFTFLOW_TOKEN)"
    )
    where.add_argument("--token-file", metavar="FILE", help="read again for every request")
    where.add_argument("--cookie", help="e.g. authservice_session=...; prefer GRAFTFLOW_COOKIE")
    where.add_argument("--cookie-file", metavar="FILE", help="holds the cookie")
    where.add_argument("--user", help="of Dex; the password is in GRAFTFLOW_PASSWORD or --password-file")
    where.add_argument("--password-file", metavar="FILE", help="holds Dex's password")
    where.add_argument("--ca-cert", metavar="FILE", help="certificate authority of the host, PEM")
    where.add_argument("--service-account", metavar="NAME", help="of the run's pods (default: KFP's)")
    what = parser.add_argument_group("the submission")
    what.add_argument("--run-name", help="default: the pipeline's name, the version and the time")
    what.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    what.add_argument("--no-cache", action="store_true", help="run every step, whatever KFP has in its cache")
    what.add_argument("--wait", action="store_true", help="follow the run to its end")
    what.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="of following; the run goes on")
    what.add_argument("--poll-seconds", type=_seconds, default=5.0, metavar="SECONDS", help="default: 5")
    kinds = what.add_mutually_exclusive_group()
    kinds.add_argument(
        "--schedule", type=parse_cron, metavar="CRON", help="a recurring run, e.g. '0 3 * * *'"
    )
    kinds.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    kinds.add_argument("--follow", metavar="RUN_ID", help="follow a run that is there")
    kinds.add_argument("--cancel", metavar="RUN_ID", help="end a run that is there")
    parameters.add_flags(parser.add_argument_group("the pipeline's parameters"), pipeline)
    return parser


def run_of(
    version: Version,
    values: dict[str, Any],
    *,
    name: str,
    experiment: str,
    ids: tuple[str, str],
    schedule: str = "",
    service_account: str = "",
) -> Any:
    """Return the run, or with a schedule the recurring run, as kfp's model of the request."""
    common = {
        "display_name": name,
        "description": version.description,
        "experiment_id": experiment,
        "pipeline_version_reference": kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=ids[0], pipeline_version_id=ids[1]
        ),
        "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=values),
    }
    if service_account:
        common["service_account"] = service_account
    if not schedule:
        return kfp_server_api.V2beta1Run(**common)
    return kfp_server_api.V2beta1RecurringRun(
        **common,
        mode=kfp_server_api.RecurringRunMode.ENABLE,
        max_concurrency="1",  # two runs at a time would push into one store
        no_catchup=True,
        trigger=kfp_server_api.V2beta1Trigger(
            cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=schedule)
        ),
    )


def submit(given: argparse.Namespace, cluster: cluster_settings.Cluster, pipeline: Any) -> int:
    """Check, compile, upload and start; returns the exit code.

    Raises:
        ValueError: bad input, found before anything is sent.
        ApiError: of the cluster.
    """
    values = sent_parameters.read(
        pipeline,
        from_file=cluster_settings.load_parameters(given.settings),
        pairs=given.param,
        flags=vars(given),
    )
    sent_parameters.check(values)
    settings = settings_file.load(given.settings)
    if "://" not in values["store"] and not settings.model_store_claim:
        print(
            "warning: model_store.claim is not set: the model is written into a pod and is gone with it. "
            f"Received store: '{values['store']}'",
            file=sys.stderr,
        )
    api = None if given.dry_run else Api(cluster)  # a cluster that cannot be reached is told before any work
    if settings.cache_claim and not values["cache"]:
        values["cache"] = settings.cache_path
    version = compile_version(settings, changed=_changed(given.settings), caching=not given.no_cache)
    name = given.run_name or f"{version.pipeline} {version.name} {datetime.now():%Y-%m-%d %H:%M:%S}"
    if api is None:
        run = run_of(
            version,
            values,
            name=name,
            experiment="(its id)",
            ids=("(its id)", "(its id)"),
            schedule=given.schedule or "",
            service_account=cluster.service_account,
        )
        _dry_run(cluster, version, run)
        return 0
    experiment = api.experiment_id(cluster.experiment)
    with tempfile.TemporaryDirectory(prefix="graftflow-") as folder:
        package = Path(folder) / f"{version.pipeline}.yaml"
        package.write_text(version.text, encoding="utf-8")
        *ids, uploaded = api.version_id(version.pipeline, version.name, str(package), version.description)
    _say(f"{'Uploaded' if uploaded else 'Found   '} {version.pipeline}, version {version.name}")
    run = run_of(
        version,
        values,
        name=name,
        experiment=experiment,
        ids=(ids[0], ids[1]),
        schedule=given.schedule or "",
        service_account=cluster.service_account,
    )
    if given.schedule:
        recurring_id = api.create_recurring_run(run)
        _say(f"Schedule {cluster.page(f'recurringrun/details/{recurring_id}')} ({given.schedule})")
        return 0
    run_id = api.create_run(run)
    _say(f"Run      {cluster.page(f'runs/details/{run_id}')}")
    if given.wait:
        return wait(api, run_id, given, pipeline)
    same = f"--settings {given.settings}" if given.settings else f"--host {cluster.host}"
    _say(f"Follow   python -m pipelines.submit {same} --follow {run_id}")
    return 0


def wait(api: Api, run_id: str, given: argparse.Namespace, pipeline: Any) -> int:
    """Follow a run to its end, tell what it found, and return the exit code."""
    steps = follow.step_names(pipeline)
    goes_on = f"the run goes on; --follow {run_id} follows it, --cancel {run_id} ends it"
    try:
        run = follow.follow(
            api,
            run_id,
            steps=steps,
            poll_seconds=given.poll_seconds,
            timeout=given.timeout,
            say=_say,
        )
    except KeyboardInterrupt:
        return fail(f"interrupted; {goes_on}", INTERRUPTED)
    except follow.FollowTimeoutError as error:
        return fail(f"{error}; {goes_on}", TIMED_OUT)
    except ApiError as error:
        return fail(
            f"{error}; nothing more is known of the run: --follow {run_id} looks again", _code_of(error)
        )
    if run.state == follow.SUCCEEDED:
        follow.tell_results(api, run, folder=ROOT / "runs" / "cluster", say=_say)
        _say(f"succeeded: {api.cluster.page(f'runs/details/{run_id}')}")
        return 0
    for line in follow.failures_of(run, steps):
        _say(line)
    return fail(
        f"the run was not successful: {str(run.state).lower()}; see {api.cluster.page(f'runs/details/{run_id}')}",
        FAILED,
    )


def _changed(path: str | None) -> bool:
    """Return whether a settings file says more than where to submit, and with which parameters."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    return bool(set(content) - {"cluster", "parameters"})


def _dry_run(cluster: cluster_settings.Cluster, version: Version, run: Any) -> None:
    request = {
        "host": f"{cluster.host}/apis/v2beta1",
        "credentials": cluster.credentials(),
        "namespace": cluster.namespace,
        "experiment": cluster.experiment,
        "pipeline": version.pipeline,
        "version": version.name,
        "description": version.description,
        "bytes": len(version.text.encode()),
        "run": kfp_server_api.ApiClient().sanitize_for_serialization(run),
    }
    print(json.dumps(request, indent=2, ensure_ascii=False))


def _say(line: str) -> None:
    print(line, flush=True)


def _code_of(error: ApiError) -> int:
    return BAD_INPUT if error.refused else NO_CLUSTER


def fail(message: str, code: int) -> int:
    """Print an error as one line and return its exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pipeline = transfer_learning.build(settings_file.load())
    parser = parser_of(pipeline)
    given = parser.parse_args(arguments)
    if given.wait and (given.schedule or given.dry_run or given.cancel):
        parser.error("--wait follows one run: not with --schedule, --dry-run or --cancel")
    if given.timeout and not (given.wait or given.follow):
        parser.error("--timeout goes with --wait or --follow")
    flags = {name: getattr(given, name) for name in _CLUSTER_FLAGS}
    try:
        cluster = cluster_settings.load(given.settings, os.environ, flags)
        if given.cancel:
            Api(cluster).terminate_run(given.cancel)
            _say(f"Cancelling {cluster.page(f'runs/details/{given.cancel}')}")
            return 0
        if given.follow:
            return wait(Api(cluster), given.follow, given, pipeline)
        return submit(given, cluster, pipeline)
    except KeyboardInterrupt:
        return fail("interrupted before a run was started", INTERRUPTED)
    except ApiError as error:
        return fail(str(error), _code_of(error))
    except (ValueError, OSError) as error:
        return fail(str(error), BAD_INPUT)


if __name__ == "__main__":
    sys.exit(main())
