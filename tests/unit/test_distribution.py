"""What several devices train is what one trains: the same steps, up to the order of floating-point sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graftflow import distribution, files
from graftflow.errors import InputError
from tests.unit.virtual_devices import CASES

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.virtual_devices", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: object) -> str:
    with start(*arguments) as process:
        output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    for count in (1, 2):
        run(folder, count, "all")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_devices_train_what_one_trains(trained: Path, case: str) -> None:
    one, two = (np.load(trained / f"{case}-{count}.npz") for count in (1, 2))
    # 16 bits have 11 of mantissa, and Adam's first steps go by the sign alone.
    tolerance = {"float16": 2e-2, "fgsm": 1e-4, "pgd": 1e-4}.get(case, 2e-5)
    assert set(one.files) == set(two.files)
    for name in set(one.files) - {"history"}:
        np.testing.assert_allclose(two[name], one[name], atol=tolerance, err_msg=name)
    histories = [json.loads(str(each["history"])) for each in (one, two)]
    assert len(histories[0]) == len(histories[1]) == 4
    for first, second in zip(*histories, strict=True):
        assert second == pytest.approx(first, abs=tolerance)


def test_a_whole_step_on_two_devices_writes_the_same_model(artifacts, tmp_path: Path) -> None:
    recipe = {"epochs": 2, "learning_rate": 1e-4, "batch_size": 7, "num_views": 0, "precision": "float32"}
    given = {"dataset_path": str(artifacts.dataset), "head_path": str(artifacts.head)}
    files.write_json(
        tmp_path / "given.json", {**given, "weights": "imagenet", "num_blocks": 1, "recipe": recipe}
    )
    for count in (1, 2):
        run(tmp_path, count, "model")
    one, two = (files.read_json(tmp_path / f"model-{count}" / "model.json") for count in (1, 2))
    assert one["chosen"] == two["chosen"]
    for name in ("head", "fine_tuned", "calibrated"):
        assert two[name] == pytest.approx(one[name], abs=1e-4)
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second == pytest.approx(first, abs=1e-3)
    from graftflow import training

    pixels = np.random.default_rng(0).random((2, 224, 224, 3), dtype="f4")
    answers = [training.load_classifier(tmp_path / f"model-{count}")(pixels).numpy() for count in (1, 2)]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-3)


def test_a_batch_smaller_than_the_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "num_replicas", lambda: 4)
    distribution.check_batch_size(4)
    with pytest.raises(
        InputError, match=r"batch_size must be at least the number of devices .*\(4\)"
    ) as caught:
        distribution.check_batch_size(3)
    assert str(caught.value).endswith("Received: 3")


def test_one_device_keeps_the_default_strategy_and_its_layers() -> None:
    import keras
    import tensorflow as tf

    assert distribution.strategy_of(["CPU:0"]) is tf.distribute.get_strategy()
    layer = keras.layers.Dropout(0.2)
    assert distribution.whole_batch(layer) is layer
    assert distribution.writes()
    assert distribution.agreed([0.5]) == [0.5]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"A device must be one of .*CPU:0.*Received: 'GPU:7'"):
        distribution.strategy_of(["CPU:0", "GPU:7"])


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": 3}}'])
def test_an_unreadable_tf_config_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG must be JSON such as"):
        distribution.strategy_of()
