"""Settings files and parsers of settings, of any text: what they mean, or one line of refusal."""

import argparse
import contextlib
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graftflow.checks import check_run
from graftflow.epsilons import parse_epsilon, parse_epsilons
from graftflow.errors import InputError, one_line
from graftflow.label_tables import read_table
from graftflow.sources import check_mirrors, check_source, parse_source
from pipelines import cluster, settings
from pipelines.cron import parse_cron
from pipelines.setting_rules import SettingsError
from tests.unit.properties import changed, examples, refusal_or

DEFAULT = yaml.safe_load(settings.DEFAULT.read_text(encoding="utf-8"))
EXAMPLE = (settings.DEFAULT.parent / "settings.cluster.example.yaml").read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "own.yaml"


def load(file: Path, content: bytes) -> object:
    """Load a settings file by both of its readers; returns the settings, or the refusal's one line."""
    file.write_bytes(content)
    found: list[object] = []
    for read in (lambda: settings.load(file), lambda: cluster.load(file, {}, {"host": "http://localhost"})):
        with contextlib.suppress(SettingsError, cluster.ClusterSettingsError):
            found.append(read())
            continue
        with pytest.raises((SettingsError, cluster.ClusterSettingsError)) as caught:
            read()
        found.append(str(caught.value))
        assert found[-1] == one_line(str(caught.value))
        assert len(str(caught.value)) < 2500
    return found[0]


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["30s", "4Gi", "500m", "/mnt/x", "nvidia.com/gpu", "NoSchedule", "٣Gi", "9" * 5000, 10**30, "a\nb"]
    ),
    st.dates(),
    st.binary(max_size=3),
)


def _like(value: object) -> st.SearchStrategy:
    """What stands in a settings file, with anything in the place of any value."""
    if isinstance(value, dict):
        inner = st.fixed_dictionaries({}, optional={key: _like(item) for key, item in value.items()})
        return st.one_of(inner, inner, inner, _SCALARS, st.dictionaries(_SCALARS, _SCALARS, max_size=2))
    if isinstance(value, list):
        return st.one_of(st.lists(_SCALARS, max_size=3), st.just(value), _SCALARS)
    return st.one_of(st.just(value), _SCALARS)


_POD = {
    "node_selector": {"a": "b"},
    "tolerations": [],
    "node_affinity": [],
    "secrets": [],
    "volumes": [],
    "labels": {"a": "b"},
    "annotations": {},
    "env": {"A": "b"},
    "timeout": "1h",
    "security": {"run_as_user": 1000},
    "image_pull_policy": "Always",
    "image_pull_secrets": [],
}
_FILES = _like({**DEFAULT, "pods": {"default": _POD, "fine_tune": _POD}, "cluster": {"host": "http://x"}})


@given(value=_FILES)
@examples(0.7)
def test_any_values_make_settings_or_one_line(file: Path, value: object) -> None:
    found = load(file, yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))
    if isinstance(found, settings.Settings):
        assert 0 <= found.retry_count < 2**31
        for step in settings.STEPS:
            found.pod_of(step, ["store", "cache"])
            for amount in found.resources_of(step).values():
                assert amount.isascii()


@given(data=st.data())
@examples(0.7)
def test_any_changed_file_makes_settings_or_one_line(file: Path, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([settings.DEFAULT.read_bytes(), EXAMPLE]))
    load(file, data.draw(changed(start)))


def _bomb() -> str:
    levels = ["retries:", "  count:", "    a: &a [x, x, x, x, x, x, x, x, x]"]
    levels += [
        f"    {b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(levels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(), "retries.count must be a whole number"),
        ("retries: &a {count: *a}", "retries.count must be a whole number"),
        ("retries: " + "[" * 1000, "nested too deeply"),
        ("retries: {count: 2020-99-99}", "must be YAML"),
        ("retries: {count: !!timestamp x}", "must be YAML"),
        ("retries: {count: !!bool x}", "must be YAML"),
        ("retries: {count: !!int ''}", "must be YAML"),
        ("retries: {count: !!python/object/apply:os.system [id]}", "must be YAML"),
        (f"retries: {{count: {'9' * 5000}}}", "must be YAML"),
        (f"retries: {{count: 0x{'f' * 5000}}}", "must be at most 2147483647"),
        (f"pods: {{default: {{env: {{A: 0x{'f' * 5000}}}}}}}", "must be a text"),
        ("pods: {default: {timeout: 99999d}}", "of at most 2147483647 seconds"),
        ("resources: {default: {memory: 9Ei}}", "must be a whole number above 0"),
        ("resources: {default: {cpu: \u0663}}", "must be a number of cores"),
        ('images: {cpu: "a\\e[2J"}', "images.cpu must be an image"),
    ],
    ids=["anchors", "itself", "deep", "date", "timestamp", "bool", "int", "python", "digits", "hexadecimal", "text",
         "seconds", "bytes", "digit of another script", "escape"],
)  # fmt: skip
def test_what_yaml_can_be_made_to_do_is_one_short_line(file: Path, text: str, said: str) -> None:
    started = time.monotonic()
    found = load(file, text.encode())
    assert isinstance(found, str)
    assert said in found
    assert time.monotonic() - started < 30


_LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["~nobody/x", "a" * 5000, "\0", "http://[", "\x1b[2J", "\udcff", "x#sha256=", "@daily\n", ""]
    ),
)


@given(text=_LINES)
@examples(2)
def test_any_source_is_checked_or_refused(text: str) -> None:
    for source in (text, *(f"{kind}:{text}" for kind in ("directory", "archive", "tfds"))):
        found = refusal_or(lambda source=source: parse_source(source))
        if not isinstance(found, InputError):
            kind, value = found
            assert source.strip().startswith(f"{kind}:{value}" if value else kind)
            if kind != "tfds":
                refusal_or(lambda source=source: check_source(source))
    refusal_or(lambda: check_mirrors(text))
    refusal_or(lambda: check_mirrors(f"https://{text}"))


_TEXT_SETTINGS = (
    "dataset", "backbone", "weights", "head_type", "class_weight", "augmentation", "precision", "mirrors", "cache",
    "adversarial_training", "adversarial_epsilon", "robust_epsilon", "epsilons", "ideal_classes", "store",
    "model_name", "label",
)  # fmt: skip
_WHOLE_SETTINGS = (
    "seed", "fine_tune_blocks", "fine_tune_epochs", "fine_tune_views", "shards", "attack_steps", "attack_pictures",
    "version",
)  # fmt: skip
_FRACTIONS = (
    "validation_fraction", "test_fraction", "learning_rate", "layer_decay", "mixup", "ema_decay", "min_accuracy",
    "weight_decay",
)  # fmt: skip


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(_TEXT_SETTINGS, _LINES),
            **dict.fromkeys(_WHOLE_SETTINGS, st.one_of(st.integers(), st.just(10**400), st.just(2**63))),
            **dict.fromkeys(_FRACTIONS, st.floats()),
        },
    )
)
@examples(1.5)
def test_any_parameters_are_checked_or_refused(values: dict[str, object]) -> None:
    for name, value in values.items():
        refusal_or(lambda name=name, value=value: check_run({name: value}))
    refusal_or(lambda: check_run(values))


@given(
    above=st.integers(0, 300), tenths=st.integers(0, 9), below=st.integers(0, 300), text=st.text(max_size=9)
)
@examples(2)
def test_a_radius_means_its_quotient_or_is_refused(above: int, tenths: int, below: int, text: str) -> None:
    refusal_or(lambda: parse_epsilons(text))
    found = refusal_or(lambda: parse_epsilon(f" {above}.{tenths} / {below}"))
    quotient = (above + tenths / 10) / below if below else 2
    if quotient <= 1:
        assert found == pytest.approx(quotient)
        assert parse_epsilons(f"{found!r},0") == sorted({found, 0.0})
    else:
        assert isinstance(found, InputError)


_FIELD = st.one_of(
    st.sampled_from(["*", "?", "0", "1", "59", "60", "*/5", "1-5", "5-1", "MON", "\u017fun", "\u00b2", "1,2"]),
    st.text(max_size=4),
)  # fmt: skip


@given(fields=st.lists(_FIELD, min_size=1, max_size=7))
@examples(3)
def test_a_schedule_stays_itself_or_is_refused(fields: list[str]) -> None:
    text = " ".join(fields)
    with contextlib.suppress(argparse.ArgumentTypeError):
        found = parse_cron(text)
        assert parse_cron(found) == found
        assert found.isascii()
        assert len(found.split()) in (1, 6)
        return
    with pytest.raises(argparse.ArgumentTypeError, match="a schedule must be cron") as caught:
        parse_cron(text)
    assert str(caught.value) == one_line(str(caught.value))


_CELLS = st.one_of(st.sampled_from(["1.jpg", "2.jpg", "cat", "train", "", "../1.jpg", "a" * 300, "\0", "\x1b[2J"]),
                   st.text(max_size=5))  # fmt: skip


@given(
    rows=st.lists(st.lists(_CELLS, max_size=5), max_size=4),
    head=st.sampled_from(
        ["path,label", "label,path,split", "path,label,group,split", "path", "path,label,x"]
    ),
    data=st.data(),
)
@examples(1)
def test_any_table_of_labels_is_read_or_refused(
    file: Path, rows: list[list[str]], head: str, data: st.DataObject
) -> None:
    folder = file.parent
    for name in ("1.jpg", "2.jpg"):
        (folder / name).touch()
    text = "\n".join([head, "1.jpg,cat", *(",".join(row) for row in rows)]).encode("utf-8", "surrogatepass")
    for content in (text, data.draw(changed(text))):
        (folder / "labels.csv").write_bytes(content)
        found = refusal_or(lambda: read_table(folder / "labels.csv"))
        if not isinstance(found, InputError):
            assert all((folder / row.path).is_file() and row.label.isprintable() for row in found)
            assert len({row.path for row in found}) == len(found)
