"""The flags of the embedded model server: TensorFlow Serving's own, and ``--host``."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from graftflow.errors import InputError
from graftflow.serving import config_texts
from graftflow.serving.config_texts import BatchingParameters, ModelSettings, TlsSettings

MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DESCRIPTION = "Serve models as TensorFlow Serving does: its REST and gRPC protocol, its flags, its files."


@dataclass(frozen=True)
class Options:
    """What the server is told by its flags.

    Attributes:
        host: the address that both ports listen on.
        grpc_port: 0 for none.
        rest_port: 0 for none.
        model: the one model that the flags name, or ``None`` where ``config_file`` names them.
        config_file: a ``ModelServerConfig`` in text form.
        config_poll_seconds: pause between two looks at ``config_file``; 0 looks once.
        poll_seconds: pause between two looks for versions; 0 looks once.
        load_retries: how often a version that does not load is tried again.
        retry_seconds: pause between two such tries.
        batching: how requests are joined; ``None`` for not at all.
        rest_timeout: seconds that a request over REST may take.
        cors: whether REST answers may be read by pages of other origins.
        monitoring_path: where metrics are read; ``None`` for nowhere.
        tls: certificates of the gRPC port; ``None`` for plain text.
        threads: how many requests run at a time without batching.
        labels_before_load: whether a new label may name a version that is not loaded yet.
    """

    host: str
    grpc_port: int
    rest_port: int
    model: ModelSettings | None
    config_file: Path | None
    config_poll_seconds: float
    poll_seconds: float
    load_retries: int
    retry_seconds: float
    batching: BatchingParameters | None
    rest_timeout: float
    cors: bool
    monitoring_path: str | None
    tls: TlsSettings | None
    threads: int
    labels_before_load: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {text!r}")
    return text.lower() in ("true", "1")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m graftflow.serving", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument

    def add_switch(name: str, text: str) -> None:
        add(name, type=_switch, nargs="?", const=True, default=False, metavar="true|false", help=text)

    add("--port", type=int, default=8500, help="port of gRPC; 0 for none (8500)")
    add("--rest_api_port", type=int, default=8501, help="port of the REST API; 0 for none (8501)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one (127.0.0.1)")
    add("--model_name", default="graftflow", help="the model's name in requests (graftflow)")
    add("--model_base_path", help="the folder that holds the numbered versions")
    add(
        "--model_config_file",
        type=Path,
        help="several models, policies and labels: a ModelServerConfig in text form",
    )
    add(
        "--model_config_file_poll_wait_seconds",
        type=float,
        default=0.0,
        help="seconds between two looks at that file, which may then be missing at first; 0 reads it once (0)",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between two looks for new versions; 0 looks once (1)",
    )
    add(
        "--max_num_load_retries",
        type=int,
        default=5,
        help="further tries of a version that does not load (5)",
    )
    add(
        "--load_retry_interval_micros",
        type=int,
        default=60_000_000,
        help="microseconds between them (one minute)",
    )
    add_switch("--enable_batching", "join requests that come at the same time")
    add("--batching_parameters_file", type=Path, help="how they are joined: BatchingParameters in text form")
    add(
        "--rest_api_timeout_in_ms", type=int, default=30_000, help="time that a REST request may take (30000)"
    )
    add_switch("--rest_api_enable_cors_support", "let pages of other origins read the answers")
    add(
        "--monitoring_config_file",
        type=Path,
        help="where Prometheus reads metrics: a MonitoringConfig in text form",
    )
    add("--ssl_config_file", type=Path, help="certificates of the gRPC port: an SSLConfig in text form")
    add("--grpc_max_threads", type=int, default=0, help="requests that run at a time; 0 for one each CPU (0)")
    add_switch("--allow_version_labels_for_unavailable_models", "let new labels name versions not loaded yet")
    return parser


def parse_flags(arguments: Sequence[str] | None = None) -> Options:
    """Return the options that the command line gives.

    Args:
        arguments: flags, as ``--flag=value`` or ``--flag value``; ``None`` for the process's own.

    Raises:
        InputError: where a flag is unknown, its value breaks a rule, or a file that it names does.
    """
    flags = _parser().parse_args(arguments)
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise InputError(f"--{name} must be 0 (off) to 65535. Received: {getattr(flags, name)}")
    if flags.port == flags.rest_api_port:
        raise InputError(f"--port and --rest_api_port must differ. Received: {flags.port} for both")
    for name in ("model_config_file_poll_wait_seconds", "file_system_poll_wait_seconds"):
        if not 0 <= getattr(flags, name) < float("inf"):
            raise InputError(f"--{name} must be 0 or more. Received: {getattr(flags, name)}")
    for name, least in (
        ("max_num_load_retries", 0),
        ("load_retry_interval_micros", 0),
        ("rest_api_timeout_in_ms", 1),
        ("grpc_max_threads", 0),
    ):
        if getattr(flags, name) < least:
            raise InputError(f"--{name} must be {least} or more. Received: {getattr(flags, name)}")
    if flags.batching_parameters_file is not None and not flags.enable_batching:
        raise InputError("--batching_parameters_file supplied without --enable_batching")
    if (flags.model_base_path is None) == (flags.model_config_file is None):
        raise InputError(
            "Exactly one of --model_base_path (a folder of numbered versions) and --model_config_file must be given. "
            f"Received: {'neither' if flags.model_base_path is None else 'both'}"
        )
    if flags.model_config_file and not flags.model_config_file_poll_wait_seconds:
        config_texts.read_models(flags.model_config_file)
    return Options(
        host=flags.host,
        grpc_port=flags.port,
        rest_port=flags.rest_api_port,
        model=_one_model(flags) if flags.model_base_path else None,
        config_file=flags.model_config_file,
        config_poll_seconds=flags.model_config_file_poll_wait_seconds,
        poll_seconds=flags.file_system_poll_wait_seconds,
        load_retries=flags.max_num_load_retries,
        retry_seconds=flags.load_retry_interval_micros / 1e6,
        batching=config_texts.read_batching(flags.batching_parameters_file)
        if flags.enable_batching
        else None,
        rest_timeout=flags.rest_api_timeout_in_ms / 1e3,
        cors=flags.rest_api_enable_cors_support,
        monitoring_path=config_texts.read_monitoring(flags.monitoring_config_file),
        tls=config_texts.read_tls(flags.ssl_config_file),
        threads=flags.grpc_max_threads or os.cpu_count() or 1,
        labels_before_load=flags.allow_version_labels_for_unavailable_models,
    )


def _one_model(flags: argparse.Namespace) -> ModelSettings:
    if not MODEL_NAME.fullmatch(flags.model_name):
        raise InputError(
            f"--model_name must be letters, digits, '.', '_' or '-'. Received: {flags.model_name!r}"
        )
    return ModelSettings(flags.model_name, config_texts.base_path(flags.model_base_path))
