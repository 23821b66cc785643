"""The recipe does what it says, on a small tail of real layers; a broken training goes on as if it had not been."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from graftflow import fine_tuning, seals
from graftflow.errors import InputError
from graftflow.fine_tuning import Trainer, resolve_precision, score
from graftflow.recipes import Recipe
from tests.unit.damages import damage

NUM_PICTURES, NUM_CLASSES = 48, 3


class Clusters:
    """Training pictures as activations: three noisy clusters, in the order of their labels."""

    num_batches = 6

    def __init__(self, kill_at: int | None = None) -> None:
        generator = np.random.default_rng(0)
        centres = generator.normal(0, 1, (NUM_CLASSES, 4, 4, 2))
        self.labels = np.arange(NUM_PICTURES) % NUM_CLASSES
        noise = generator.normal(0, 1.5, (2, NUM_PICTURES, 4, 4, 2))
        self.values, others = (centres[self.labels] + noise).astype("f4")
        self.validation = (others, self.labels)
        self.epochs: list[int] = []
        self._kill_at = kill_at

    def epoch(self, number: int):
        self.epochs.append(number)
        order = np.random.default_rng(number).permutation(NUM_PICTURES)
        for batch in np.split(order, self.num_batches):
            yield self.values[batch], self.labels[batch]
        if number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def build_tail() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(6, 3, name="early")(inputs)
    x = keras.layers.ReLU()(keras.layers.Conv2D(6, 2, name="late")(x))
    x = keras.layers.Dropout(0.2, seed=0)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x))


def build_trainer(tail: keras.Model, weights: tuple[float, ...] = (1.0,) * 3, **changes) -> Trainer:
    recipe = Recipe(**{"epochs": 4, "learning_rate": 0.01, "batch_size": 8, "patience": 99, **changes})
    depths = {v.path: {"early": 2, "late": 1}.get(v.path.split("/")[0], 0) for v in tail.trainable_variables}
    return Trainer(tail, recipe, block_depths=depths, class_weights=np.array(weights), num_batches=6)


def fit(tail: keras.Model, folder: Path, source: Clusters | None = None, **changes) -> list[dict]:
    source = source or Clusters()
    trainer = build_trainer(tail, **changes)
    return trainer.fit(source, source.validation, checkpoint=folder / "checkpoint.npz")


def test_validation_gets_better_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    tail, source = build_tail(), Clusters()
    trainer = build_trainer(tail, epochs=12)
    before = score(trainer.logits(source.validation[0]), source.labels)
    history = trainer.fit(source, source.validation, checkpoint=tmp_path / "checkpoint.npz")
    after = score(trainer.logits(source.validation[0]), source.labels)
    assert after["log_loss"] < 0.8 * before["log_loss"]
    assert after["log_loss"] == pytest.approx(min(row["validation_log_loss"] for row in history), abs=1e-6)
    assert source.epochs == list(range(12))
    assert [row["epoch"] for row in history] == list(range(1, 13))


def test_early_blocks_move_less_by_the_layer_decay(tmp_path: Path) -> None:
    # Adam's first step is the learning rate, whatever the gradient: the ratio is exact.
    tail = build_tail()
    before = [v.numpy() for v in tail.trainable_variables]
    trainer = build_trainer(tail, layer_decay=0.1, warmup_fraction=0.0, weight_decay=0.0, ema_decay=0.0)
    source = Clusters()
    values, labels = next(source.epoch(0))
    one = np.float32(1.0)
    trainer._train_step(values, np.eye(3, dtype="f4")[labels], np.ones(8, "f4"), one, np.arange(8))
    moved = {
        v.path.split("/")[0]: float(np.abs(v.numpy() - old).max())
        for v, old in zip(tail.trainable_variables, before, strict=True)
        if v.path.endswith("kernel")
    }
    assert moved["logits"] == pytest.approx(0.01, rel=0.01)
    assert moved["late"] == pytest.approx(0.001, rel=0.01)
    assert moved["early"] == pytest.approx(0.0001, rel=0.01)


def test_the_rate_warms_up_and_then_falls_to_zero() -> None:
    trainer = build_trainer(build_tail(), epochs=10, warmup_fraction=0.2)
    schedule = trainer._optimizer._learning_rate
    rates = [float(schedule(step)) for step in range(61)]
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(0.01)
    assert rates.index(max(rates)) == 12
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[12:]))
    assert rates[60] == pytest.approx(0.0, abs=1e-9)


def test_kernels_decay_and_biases_do_not() -> None:
    tail = build_tail()
    decaying = build_trainer(tail, weight_decay=0.1)._optimizer
    decays = {v.path: decaying._use_weight_decay(v) for v in tail.trainable_variables}
    assert {path.rsplit("/")[-1] for path, does in decays.items() if does} == {"kernel"}


def test_averaged_weights_are_what_is_kept(tmp_path: Path) -> None:
    averaged, last = build_tail(), build_tail()
    averaged_history = fit(averaged, tmp_path / "a", ema_decay=0.9)
    last_history = fit(last, tmp_path / "b", ema_decay=0.0)
    # The same training, seen through two pairs of glasses.
    assert [r["train_loss"] for r in averaged_history] == [r["train_loss"] for r in last_history]
    assert [r["validation_log_loss"] for r in averaged_history] != [
        r["validation_log_loss"] for r in last_history
    ]


def test_training_stops_after_the_patience(tmp_path: Path) -> None:
    # A rate that ruins everything at once: no epoch after the first can be the best for long.
    source = Clusters()
    history = fit(build_tail(), tmp_path, source, epochs=60, learning_rate=0.3, patience=2, ema_decay=0.0)
    losses = [row["validation_log_loss"] for row in history]
    assert len(losses) < 60
    assert len(losses) - 1 - int(np.argmin(losses)) == 2


def test_a_training_that_diverges_ends_with_the_weights_it_began_with(tmp_path: Path) -> None:
    source = Clusters()
    source.values[:] = np.nan
    tail = build_tail()
    before = [v.numpy() for v in tail.trainable_variables]
    assert fit(tail, tmp_path, source) == []
    for variable, old in zip(tail.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_a_heavier_class_is_found_more_often(tmp_path: Path) -> None:
    found = {}
    for weights in ((1.0, 1.0, 1.0), (20.0, 1.0, 1.0)):
        tail, source = build_tail(), Clusters()
        trainer = build_trainer(tail, weights, epochs=8)
        trainer.fit(source, source.validation, checkpoint=tmp_path / f"{weights[0]}.npz")
        found[weights[0]] = int((trainer.logits(source.validation[0]).argmax(axis=1) == 0).sum())
    assert found[20.0] > found[1.0]


@pytest.mark.parametrize("change", [{"label_smoothing": 0.2}, {"mixup": 0.4}])
def test_softened_targets_give_less_certain_answers(tmp_path: Path, change: dict) -> None:
    certainty = []
    for number, changes in enumerate(({}, change)):
        tail, source = build_tail(), Clusters()
        trainer = build_trainer(tail, epochs=30, ema_decay=0.0, **changes)
        trainer.fit(source, (source.values, source.labels), checkpoint=tmp_path / f"{number}.npz")
        logits = trainer.logits(source.values)
        certainty.append(float((logits.max(axis=1) - logits.mean(axis=1)).mean()))
    assert certainty[1] < 0.9 * certainty[0]


def test_sixteen_bits_train_too_and_leave_the_layers_in_thirty_two(tmp_path: Path) -> None:
    for precision in ("mixed_bfloat16", "mixed_float16"):
        tail = build_tail()
        history = fit(tail, tmp_path / precision, precision=precision, epochs=8)
        assert history[-1]["validation_log_loss"] < history[0]["validation_log_loss"]
        assert {layer.dtype_policy.name for layer in tail.layers} == {"float32"}
        assert {str(v.dtype) for v in tail.trainable_variables} == {"float32"}
        computed = tail(np.zeros((1, 4, 4, 2), "f4"))
        assert computed.dtype == np.float32


def test_without_a_gpu_auto_means_thirty_two_bits(monkeypatch) -> None:
    monkeypatch.setattr(fine_tuning.tf.config, "list_physical_devices", lambda kind: [])
    assert resolve_precision("auto") == "float32"
    monkeypatch.setattr(fine_tuning.tf.config, "list_physical_devices", lambda kind: ["gpu"])
    for capability, expected in (((7, 5), "mixed_float16"), ((6, 1), "float32")):
        monkeypatch.setattr(
            fine_tuning.tf.config.experimental,
            "get_device_details",
            lambda device, capability=capability: {"compute_capability": capability},
        )
        assert resolve_precision("auto") == expected


def run_until_killed(folder: Path, kill_at: int) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "from pathlib import Path; import test_fine_tuning as t\n"
        f"t.fit(t.build_tail(), Path(sys.argv[2]), t.Clusters(kill_at={kill_at}), mixup=0.2)\n"
    )
    places = ":".join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", code, places, str(folder)], capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_a_killed_training_goes_on_with_the_result_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken = build_tail(), build_tail()
    expected = fit(whole, tmp_path / "whole", mixup=0.2)
    run_until_killed(tmp_path / "broken", kill_at=2)
    source = Clusters()
    assert fit(broken, tmp_path / "broken", source, mixup=0.2) == expected
    assert source.epochs == [2, 3]
    for one, other in zip(whole.get_weights(), broken.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[np.ndarray]]:
    """The folder of an unbroken training, with its checkpoints, its history and its weights."""
    folder, tail = tmp_path_factory.mktemp("trained"), build_tail()
    history = fit(tail, folder)
    return folder, history, tail.get_weights()


@pytest.mark.parametrize(("kind", "both"), [("flip", False), ("delete", False), ("cut", True)])
def test_a_damaged_checkpoint_is_told_of_and_the_earlier_one_used(
    trained, tmp_path: Path, kind: str, both: bool, capsys
) -> None:
    kept, expected, weights = trained
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    again, path = build_tail(), tmp_path / "checkpoint.npz"
    damaged = [path, path.with_name("checkpoint.npz.earlier")][: 2 if both else 1]
    for file in damaged:
        damage(file, kind, seed=4)
    source = Clusters()
    assert fit(again, tmp_path, source) == expected
    assert source.epochs == ([0, 1, 2, 3] if both else [3])
    for one, other in zip(weights, again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    told = capsys.readouterr().out
    for file in damaged:
        assert (f"The checkpoint '{file}' is cut or altered, and is not used." in told) == (kind != "delete")


def test_a_checkpoint_with_any_turned_bit_is_not_used(trained, tmp_path: Path) -> None:
    """Not all of these bits are in what a zip file's own checksums cover."""
    path = Path(shutil.copy(trained[0] / "checkpoint.npz", tmp_path))
    intact, model = path.read_bytes(), build_tail()
    trainer = build_trainer(model)
    for bit in np.random.default_rng(0).integers(0, 8 * len(intact), 60):
        changed = bytearray(intact)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert (
            fine_tuning._read_checkpoint(path, trainer._variables(), len(model.trainable_variables)) is None
        )
    path.write_bytes(intact)
    assert fine_tuning._read_checkpoint(path, trainer._variables(), len(model.trainable_variables))


@pytest.mark.parametrize("kind", ["nonsense", "foreign"])
def test_a_foreign_checkpoint_is_not_used(trained, tmp_path: Path, kind: str) -> None:
    expected, path = trained[1], tmp_path / "checkpoint.npz"
    path.write_bytes(b"nonsense")
    if kind == "foreign":
        np.savez(path, values=np.zeros(3))
        seals.end_with_digest(path)
    source = Clusters()
    assert fit(build_tail(), tmp_path, source) == expected
    assert source.epochs == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1. Received: 0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"num_views": -1}, "num_views must be a whole number from 0. Received: -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or a positive number"),
        ({"mixup": float("inf")}, "mixup must be 0 or a positive number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1"),
        ({"precision": "float8"}, "precision must be one of .*mixed_float16"),
        ({"augmentation": "wild"}, "augmentation must be one of light, none, strong"),
    ],
)
def test_bad_recipes_are_refused(change: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        Recipe(**{"epochs": 1, "learning_rate": 1e-3, **change}).check()
    assert "\n" not in str(caught.value)
