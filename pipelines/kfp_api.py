"""The calls to KFP's API that a submission makes, on kfp's generated client; every failure is one line."""

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import kfp_server_api
import requests
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api.exceptions import ApiException

from pipelines import dex
from pipelines.cluster import Cluster

_TIMEOUT = (10, 60)  # seconds to connect, and to read
_HINT = "is the port-forward up? kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"


def one_line(text: str) -> str:
    """Return text of a server as one line that a terminal takes for nothing but text."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class ApiError(Exception):
    """A call that failed; the message is one line and holds no secret.

    Attributes:
        status: of HTTP, 0 where there was no answer.
        transient: whether the same call may succeed in a moment.
        refused: whether the request is at fault (bad input), rather than the way to the cluster.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = False) -> None:
        super().__init__(one_line(message))
        self.status, self.transient = status, transient
        self.refused = status in (400, 404, 409, 413, 422)


class Api:
    """A connection to one KFP.

    Args:
        cluster: where, and with which credentials.

    Raises:
        ApiError: the login failed, or the host is no KFP that can be reached.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        configuration = kfp_server_api.Configuration(host=cluster.host)
        configuration.ssl_ca_cert = cluster.ca_cert or None
        # One attempt, whose failure is told at once; redirects (to a login) are answers, not ways.
        configuration.retries = urllib3.Retry(total=0, raise_on_redirect=False)
        if cluster.token:
            configuration.api_key["authorization"] = cluster.token
            configuration.api_key_prefix["authorization"] = "Bearer"
        elif cluster.token_file:
            credentials = ServiceAccountTokenVolumeCredentials(path=cluster.token_file)
            configuration.api_key["authorization"] = "read for every request"
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = credentials.refresh_api_key_hook
        cookie = self._login() if cluster.auth == "dex" else cluster.cookie
        self._client = kfp_server_api.ApiClient(configuration, cookie=cookie or None)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self._pipelines = kfp_server_api.PipelineServiceApi(self._client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(self._client)
        self._runs = kfp_server_api.RunServiceApi(self._client)
        self._recurring = kfp_server_api.RecurringRunServiceApi(self._client)
        health = self._call(kfp_server_api.HealthzServiceApi(self._client).healthz_service_get_healthz)
        # Single-user KFP refuses requests that name a namespace; multi-user KFP those that do not.
        self.multi_user = bool(health.multi_user)
        self.namespace = cluster.namespace if self.multi_user else None
        if self.multi_user and not cluster.namespace:
            raise ApiError(
                "namespace must name your profile on a multi-user Kubeflow: --namespace, GRAFTFLOW_NAMESPACE or "
                "cluster.namespace in --settings. Received: none",
                status=400,
            )

    def experiment_id(self, name: str) -> str:
        """Return the id of the experiment of this name, which is made where there is none."""
        listed = self._call(
            self._experiments.experiment_service_list_experiments, **self._in_namespace(), filter=_named(name)
        )
        for found in listed.experiments or []:
            if found.display_name == name:
                if found.storage_state == "ARCHIVED":
                    raise ApiError(
                        f"the experiment must not be archived. Received: '{name}' (restore it in the UI, or choose "
                        "another --experiment)",
                        status=409,
                    )
                return _identified(found.experiment_id, "experiment")
        wanted = kfp_server_api.V2beta1Experiment(display_name=name, **self._in_namespace())
        made = self._call(self._experiments.experiment_service_create_experiment, wanted)
        return _identified(made.experiment_id, "experiment")

    def version_id(
        self, pipeline: str, version: str, package: str, description: str
    ) -> tuple[str, str, bool]:
        """Return the ids of a pipeline and of its version, uploaded where they are not there, and whether they were.

        Args:
            pipeline: name of the pipeline.
            version: name of the version.
            package: path of the compiled YAML.
            description: of the version.
        """
        listed = self._call(
            self._pipelines.pipeline_service_list_pipelines, **self._in_namespace(), filter=_named(pipeline)
        )
        ids = [found.pipeline_id for found in listed.pipelines or [] if found.display_name == pipeline]
        if not ids:
            made = self._call(self._uploads.upload_pipeline, package, name=pipeline, **self._in_namespace())
            ids = [_identified(made.pipeline_id, "pipeline")]
        if there := self._version(ids[0], version):
            return ids[0], there, False
        try:
            uploaded = self._call(
                self._uploads.upload_pipeline_version,
                package,
                name=version,
                pipelineid=ids[0],
                description=description,
            )
        except ApiError as error:
            there = self._version(ids[0], version) if error.status == 409 else ""
            if not there:
                raise
            return ids[0], there, False  # somebody else was faster
        return ids[0], _identified(uploaded.pipeline_version_id, "pipeline version"), True

    def _version(self, pipeline_id: str, name: str) -> str:
        listed = self._call(
            self._pipelines.pipeline_service_list_pipeline_versions, pipeline_id, filter=_named(name)
        )
        versions = [v for v in listed.pipeline_versions or [] if v.display_name == name]
        return str(versions[0].pipeline_version_id) if versions else ""

    def create_run(self, run: kfp_server_api.V2beta1Run) -> str:
        """Start a run and return its id."""
        return _identified(self._call(self._runs.run_service_create_run, run).run_id, "run")

    def create_recurring_run(self, run: kfp_server_api.V2beta1RecurringRun) -> str:
        """Start a schedule and return its id."""
        made = self._call(self._recurring.recurring_run_service_create_recurring_run, run)
        return _identified(made.recurring_run_id, "recurring run")

    def get_run(self, run_id: str) -> kfp_server_api.V2beta1Run:
        """Return a run as it stands."""
        run = self._call(self._runs.run_service_get_run, run_id)
        _identified(run.run_id, "run")
        return run

    def terminate_run(self, run_id: str) -> None:
        """Ask for the end of a run."""
        self._call(self._runs.run_service_terminate_run, run_id)

    def artifact(self, artifact_id: str) -> dict[str, Any]:
        """Return what servers with an artifact API tell of one: ``uri``, ``download_url``, ``metadata``…

        kfp's generated client does not have these calls; servers without them answer 404.
        """
        answer = self._call(
            self._client.call_api,
            "/apis/v2beta1/artifacts/{artifact_id}",
            "GET",
            {"artifact_id": artifact_id},
            [("view", "DOWNLOAD")],
            {"Accept": "application/json"},
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
        return answer if isinstance(answer, dict) else {}

    def body_of(self, model: Any) -> Any:
        """Return the JSON that is sent for a model of kfp's client."""
        return self._client.sanitize_for_serialization(model)

    def _in_namespace(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _login(self) -> str:
        try:
            return dex.login(self.cluster)
        except dex.LoginError as error:
            raise ApiError(str(error), status=401) from error
        except requests.exceptions.SSLError as error:
            raise self._untrusted(error) from error
        except requests.RequestException as error:
            raise ApiError(f"cannot reach {self.cluster.host}: {_reason(error)}; {_HINT}") from error

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = function(*arguments, _request_timeout=_TIMEOUT, **options)
        except ApiException as error:
            raise self._explained(error) from error
        except urllib3.exceptions.HTTPError as error:
            if "SSL" in type(getattr(error, "reason", None)).__name__:
                raise self._untrusted(error) from error
            raise ApiError(
                f"cannot reach {self.cluster.host}: {_reason(error)}; {_HINT}", transient=True
            ) from error
        except OSError as error:
            raise ApiError(f"the token's file must stay readable. Received: {error}") from error
        except (
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # of kfp's client, on bodies that are not KFP's
            raise self._no_kfp(f"an answer that is not KFP's ({type(error).__name__})") from error
        kind = self._client.last_response.getheader("content-type") or ""
        if "html" in kind:
            raise self._login_page(f"a page ({kind})")
        body = str(self._client.last_response.data).strip()
        if body and not body.startswith("{"):
            raise self._no_kfp(f"an answer that is not KFP's ({kind or 'of no kind'})")
        return answer

    def _explained(self, error: ApiException) -> ApiError:
        host, status, said = self.cluster.host, int(error.status or 0), _message(error.body)
        kind = (error.headers or {}).get("Content-Type", "")
        if status in (301, 302, 303, 307, 308):
            return self._login_page(f"a redirect ({status})")
        if status == 401:
            return ApiError(
                f"{host} does not accept the credentials (auth: {self.cluster.auth}): they are missing, wrong or "
                f"expired{said and ': ' + said}",
                status=401,
            )
        if status == 403:
            return ApiError(
                f"{host} does not allow this to these credentials (auth: {self.cluster.auth}) in namespace "
                f"'{self.cluster.namespace}': does it exist, and are you a contributor?{said and ' It said: ' + said}",
                status=403,
            )
        if status == 404 and "json" not in kind:
            return self._no_kfp("404 Not Found")
        return ApiError(
            f"{host} answered {status} {error.reason or ''}{said and ': ' + said}",
            status=status,
            transient=status >= 500 or status == 429,
        )

    def _untrusted(self, error: Exception) -> ApiError:
        return ApiError(
            f"cannot trust {self.cluster.host}: {_reason(error)} (--ca-cert FILE names the certificate authority)"
        )

    def _login_page(self, seen: str) -> ApiError:
        return ApiError(
            f"{self.cluster.host} answered with {seen} instead of KFP's API: a login is needed "
            f"(auth is '{self.cluster.auth}'), or the host is another one (a Kubeflow's ends in /pipeline)",
            status=401,
        )

    def _no_kfp(self, seen: str) -> ApiError:
        return ApiError(
            f"{self.cluster.host} has no KFP API at /apis/v2beta1. Received: {seen}. The host is KFP's UI or API, "
            "e.g. http://localhost:8080 or https://kubeflow.example/pipeline"
        )


def _named(name: str) -> str:
    """Return KFP's filter for one display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _identified(found: str | None, what: str) -> str:
    if not found:
        raise ApiError(f"KFP must answer with the id of the {what}. Received: none")
    return str(found)


def _message(body: Any) -> str:
    """Return the sentence of a gRPC error in JSON, or nothing."""
    try:
        content = json.loads(body)
    except (ValueError, TypeError):
        return ""
    if not isinstance(content, dict):
        return ""
    return str(content.get("message") or content.get("error_message") or content.get("error") or "")[:500]


def _reason(error: Any) -> str:
    """Return the innermost reason of a connection error, without addresses of objects."""
    reason = error
    for _ in range(4):
        inner = getattr(reason, "reason", None) or (reason.args[0] if getattr(reason, "args", ()) else None)
        if not isinstance(inner, Exception):
            break
        reason = inner
    text = getattr(reason, "verify_message", "") or str(reason)
    return re.sub(r"^(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)): ", "", text) or type(reason).__name__
