"""The server's flags and the files that they name: TensorFlow Serving's own, refused with one line where wrong."""

import pytest

from graftflow.errors import InputError
from graftflow.serving import config_texts
from graftflow.serving.config_texts import ModelSettings, VersionPolicy
from graftflow.serving.flags import parse_flags


def error_of(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_are_tensorflow_servings(tmp_path):
    options = parse_flags(["--rest_api_port=1234", "--port", "0", "--model_base_path", str(tmp_path)])
    assert (options.rest_port, options.grpc_port, options.host) == (1234, 0, "127.0.0.1")
    assert options.model == ModelSettings("graftflow", tmp_path)
    assert (options.batching, options.tls, options.monitoring_path) == (None, None, None)
    assert (options.rest_timeout, options.load_retries, options.retry_seconds) == (30, 5, 60)


def test_switches_are_given_with_or_without_a_value(tmp_path):
    base = ["--model_base_path", str(tmp_path)]
    for given, expected in ((["--enable_batching"], True), (["--enable_batching=true"], True),
                            (["--enable_batching=false"], False), ([], False)):  # fmt: skip
        assert (parse_flags(base + given).batching is not None) is expected
    assert "true or false" in error_of(parse_flags, [*base, "--enable_batching=maybe"])


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--model_base_path=m", "--rest_api_port=-1"],
        ["--model_base_path=m", "--rest_api_port=x"],
        ["--model_base_path=m", "--port=65536"],
        ["--model_base_path=m", "--port=8501"],
        ["--model_base_path=m", "--port=0", "--rest_api_port=0"],
        ["--model_base_path=m", "--model_name=../x"],
        ["--model_base_path=m", "--file_system_poll_wait_seconds=-1"],
        ["--model_base_path=m", "--file_system_poll_wait_seconds=nan"],
        ["--model_base_path=m", "--max_num_load_retries=-1"],
        ["--model_base_path=m", "--rest_api_timeout_in_ms=0"],
        ["--model_base_path=m", "--unknown=1"],
        ["--model_base_path=m", "--model_config_file=n"],
        ["--model_base_path=m", "--batching_parameters_file=n"],
        ["--model_base_path=m", "--enable_batching", "--batching_parameters_file=missing"],
        ["--model_base_path=m", "--monitoring_config_file=missing"],
        ["--model_base_path=m", "--ssl_config_file=missing"],
        ["--model_base_path=gs://bucket/models"],
        ["--model_config_file=missing"],
        [f"--model_base_path={__file__}"],
    ],
)
def test_a_bad_flag_is_refused_with_one_line(flags):
    error_of(parse_flags, flags)


def test_a_configuration_that_is_followed_may_be_missing_at_first(tmp_path):
    flags = [f"--model_config_file={tmp_path}/models.config", "--model_config_file_poll_wait_seconds=1"]
    assert parse_flags(flags).config_file == tmp_path / "models.config"


def test_models_policies_and_labels_are_read(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(
        f"""
        # Comments are part of the format.
        model_config_list {{
          config {{ name: "a" base_path: "{tmp_path}/a" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 3 versions: 1 }} }}
            version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 3 }} }}
          config {{ name: "b" base_path: "file://{tmp_path}/b" model_platform: "tensorflow"
            model_version_policy {{ latest {{ num_versions: 2 }} }} }}
          config {{ name: "c" base_path: "{tmp_path}/c" model_version_policy {{ all {{ }} }} }}
          config {{ name: "d" base_path: "{tmp_path}/d" }}
        }}"""
    )
    assert config_texts.read_models(file) == [
        ModelSettings(
            "a", tmp_path / "a", VersionPolicy("specific", versions=(1, 3)), {"stable": 1, "canary": 3}
        ),
        ModelSettings("b", tmp_path / "b", VersionPolicy("latest", count=2)),
        ModelSettings("c", tmp_path / "c", VersionPolicy("all")),
        ModelSettings("d", tmp_path / "d"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a model_config_list"),
        ("model_config_list { config { name: 'a' } }", "must have a name and a base_path"),
        ("model_config_list { config { name: 'a' base: '/m' } }", 'no field named "base"'),
        ("model_config_list { config { name: 'a' base_path: '/m' }", "does not parse"),
        (
            "model_config_list { " + 2 * "config { name: 'a' base_path: '/m' } " + "}",
            "list model a multiple times",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/m' model_platform: 'caffe' } }",
            "Received: 'caffe'",
        ),
        ("model_config_list { config { name: 'a' base_path: 's3://m' } }", "Received: 's3://m'"),
        (
            "model_config_list { config { name: 'a' base_path: '/m' model_version_policy { specific { } } } }",
            "must list versions",
        ),
    ],
)
def test_a_wrong_configuration_is_told(tmp_path, text, said):
    (tmp_path / "models.config").write_text(text)
    assert said in error_of(config_texts.read_models, tmp_path / "models.config")


def test_batching_parameters_are_read_in_tensorflow_servings_form(tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 32 } batch_timeout_micros { value: 5000 } num_batch_threads { value: 3 }\n"
        "max_enqueued_batches { value: 7 } allowed_batch_sizes: 8 allowed_batch_sizes: 32\n"
        "pad_variable_length_inputs: true thread_pool_name { value: 'x' }"
    )
    read = config_texts.read_batching(file)
    assert (read.max_batch_size, read.batch_timeout_micros, read.num_batch_threads) == (32, 5000, 3)
    assert (read.max_enqueued_batches, read.allowed_batch_sizes) == (7, (8, 32))
    assert read.pad_variable_length_inputs
    assert config_texts.read_batching(None).max_batch_size == 1000


@pytest.mark.parametrize(
    "text",
    [
        "max_batch_size: 32",
        "max_batch_size { value: 0 }",
        "num_batch_threads { value: -1 }",
        "batch_timeout_micros { value: -5 }",
        "max_batch_size { value: 32 } allowed_batch_sizes: 8",
        "max_batch_size { value: 32 } allowed_batch_sizes: 32 allowed_batch_sizes: 8",
        "max_batch { value: 32 }",
    ],
)
def test_wrong_batching_parameters_are_told(tmp_path, text):
    (tmp_path / "batching.config").write_text(text)
    assert "--batching_parameters_file" in error_of(config_texts.read_batching, tmp_path / "batching.config")


def test_monitoring_and_tls_are_read(tmp_path):
    file = tmp_path / "file.config"
    file.write_text('prometheus_config { enable: true path: "/metrics" }')
    assert config_texts.read_monitoring(file) == "/metrics"
    file.write_text("prometheus_config { enable: true }")
    assert config_texts.read_monitoring(file) == "/monitoring/prometheus/metrics"
    file.write_text('prometheus_config { path: "/metrics" }')
    assert config_texts.read_monitoring(file) is None
    file.write_text('prometheus_config { enable: true path: "metrics" }')
    assert "Received: 'metrics'" in error_of(config_texts.read_monitoring, file)
    file.write_text('server_key: "k\\n" server_cert: "c"')
    tls = config_texts.read_tls(file)
    assert (tls.key, tls.certificate, tls.client_verify) == (b"k\n", b"c", False)
    file.write_text('server_key: "k" server_cert: "c" client_verify: true')
    assert "Missing: custom_ca" in error_of(config_texts.read_tls, file)
