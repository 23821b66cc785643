"""The head: chosen on held-out pictures, equal to the regression it stands for, the same by its seed."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from graftflow import files, heads, logistic
from graftflow.errors import InputError
from graftflow.logistic import Scaling


def clusters(num_classes: int, count: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(9).normal(size=(num_classes, 20))
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    x = centres[labels] + spread * generator.normal(size=(count, 20))
    return (5 + 3 * x).astype(np.float32), labels.astype(np.int64)


def scores(head: heads.Head, data: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Log loss and accuracy."""
    logits = heads.predict_logits(head.layers, data[0])
    return heads.log_loss(logits, data[1]), float((logits.argmax(axis=1) == data[1]).mean())


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize(("num_classes", "count"), [(2, 200), (4, 200), (3, 15)])
def test_linear_head_is_logistic_regression_on_scaled_features(
    num_classes: int, count: int, class_weight: str
) -> None:
    # 15 pictures of 20 features: fitted in the space that they span.
    (x, y), validation = clusters(num_classes, count, 1.5, 0), clusters(num_classes, 100, 1.5, 1)
    kept = (y != 0) | (np.arange(len(y)) % 3 == 0)  # class 0 is rare
    x, y = x[kept], y[kept]
    head = heads.fit_head(
        (x, y), validation, num_classes=num_classes, strengths=(0.1,), class_weight=class_weight
    )
    variance = x.astype(np.float64).var(axis=0)
    deviation = np.sqrt(variance + variance.mean())
    model = LogisticRegression(
        C=0.1, max_iter=1000, tol=1e-6, class_weight=None if class_weight == "none" else "balanced"
    )
    model.fit((x - x.mean(axis=0)) / deviation, y)
    expected = model.predict_proba((validation[0] - x.mean(axis=0)) / deviation)
    (layer,) = head.layers
    ours = np.exp(heads.log_softmax(heads.predict_logits(head.layers, validation[0])))
    np.testing.assert_allclose(ours, expected, atol=5e-3)
    assert layer[0].shape == (20, num_classes)
    assert layer[0].dtype == layer[1].dtype == np.float32


def test_held_out_pictures_choose_the_penalty() -> None:
    train, validation = clusters(3, 45, 3.0, 0), clusters(3, 300, 3.0, 1)
    head = heads.fit_head(train, validation, num_classes=3)
    losses = {point["c"]: point["held_out_log_loss"] for point in head.path}
    assert head.chosen_c == min(losses, key=losses.get)
    assert [point["c"] for point in head.path] == list(heads.STRENGTHS)
    # Weaker penalties always fit the training pictures better; held-out pictures object.
    train_losses = [point["train_log_loss"] for point in head.path]
    assert train_losses == sorted(train_losses, reverse=True)
    assert head.chosen_c < heads.STRENGTHS[-1]


def test_folds_object_where_a_few_validation_pictures_do_not() -> None:
    train, everything = clusters(2, 60, 4.0, 0), clusters(2, 2000, 4.0, 1)
    weakest = heads.fit_head(train, everything, num_classes=2, strengths=(10.0,))
    logits = heads.predict_logits(weakest.layers, everything[0])
    margins = (logits[:, 1] - logits[:, 0]) * (2 * everything[1] - 1)
    easy = np.argsort(-margins)[:6]  # six pictures on which any boldness pays
    few = everything[0][easy], everything[1][easy]
    head = heads.fit_head(train, few, num_classes=2)
    by_validation = min(head.path, key=lambda point: point["validation_log_loss"])["c"]
    assert by_validation == heads.STRENGTHS[-1]
    assert head.chosen_c < by_validation
    assert scores(head, everything)[0] < 0.6 * scores(weakest, everything)[0]


def test_a_feature_that_hardly_varies_in_training_has_no_power_elsewhere() -> None:
    (x, y), (xv, yv) = clusters(3, 90, 1.0, 0), clusters(3, 90, 1.0, 1)
    silent = np.zeros((90, 1), np.float32)
    silent[:3, 0] = 1e-3 * (y[:3] == 0)
    loud = np.ones((90, 1), np.float32)
    head = heads.fit_head(
        (np.hstack([x, silent]), y), (np.hstack([xv, silent]), yv), num_classes=3, strengths=(1.0,)
    )
    (kernel, _), *_ = head.layers
    assert abs(kernel[-1]).max() < abs(kernel[:-1]).max()
    quiet = scores(head, (np.hstack([xv, silent]), yv))
    noisy = scores(head, (np.hstack([xv, loud]), yv))
    assert noisy == pytest.approx(quiet, abs=0.01)
    constant = Scaling.of(np.ones((4, 3), np.float32))
    assert np.isfinite(constant.apply(np.zeros((2, 3), np.float32))).all()


def test_scaling_is_exact_for_many_pictures_far_from_zero() -> None:
    features = np.random.default_rng(0).normal(1000, 0.1, (20_000, 3)).astype(np.float32)
    scaling, exact = Scaling.of(features), features.astype(np.float64)
    np.testing.assert_allclose(scaling.mean, exact.mean(axis=0), rtol=1e-12)
    variance = exact.var(axis=0)
    np.testing.assert_allclose(scaling.deviation, np.sqrt(variance + variance.mean()), rtol=1e-9)


def test_folds_judge_pictures_by_models_that_never_saw_them() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(62, 200)).astype(np.float32), np.arange(62) % 2
    y[[7, 11]], y[20] = 2, 3  # a class of two pictures, and one of a single picture
    common = {"num_classes": 4, "strengths": (0.01, 100.0), "class_weight": "none"}
    with logistic.one_thread():
        held, logits = logistic.out_of_fold(x, y, seed=0, **common)
        *_, (kernel, bias) = logistic.fit_path(x, y, **common)
        again, other = (logistic.out_of_fold(x, y, seed=seed, **common)[1] for seed in (0, 1))
    assert held.tolist() == [i for i in range(62) if i != 20]
    assert [of.shape for of in logits] == [(61, 4)] * 2
    assert ((x @ kernel + bias).argmax(axis=1) == y).all()
    # The labels are drawn by lot: whoever did not see them knows nothing.
    assert (logits[1].argmax(axis=1) == y[held]).mean() < 0.7
    assert np.array_equal(again, logits)
    assert not np.array_equal(other, logits)


def test_from_5000_pictures_on_validation_alone_chooses() -> None:
    (x, y), validation = clusters(2, 5000, 3.0, 0), clusters(2, 100, 3.0, 1)
    (all_of,) = heads.fit_head((x, y), validation, num_classes=2, strengths=(1.0,)).path
    assert all_of["held_out_log_loss"] == pytest.approx(all_of["validation_log_loss"], rel=1e-6)
    (fewer,) = heads.fit_head((x[:-1], y[:-1]), validation, num_classes=2, strengths=(1.0,)).path
    assert fewer["held_out_log_loss"] != pytest.approx(fewer["validation_log_loss"], rel=1e-3)


def rings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that no plane divides: near the centre, or around it."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    directions = generator.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = directions * (1 + 2 * labels[:, None]) + 0.2 * generator.normal(size=(count, 3))
    return (5 + 3 * x).astype(np.float32), labels.astype(np.int64)


def test_perceptron_divides_what_no_plane_does() -> None:
    train, validation, test = rings(600, 0), rings(200, 1), rings(500, 2)
    plane = heads.fit_head(train, validation, num_classes=2)
    head = heads.fit_head(train, validation, num_classes=2, head_type="mlp")
    assert scores(plane, test)[1] < 0.75
    assert scores(head, test)[1] > 0.97
    (hidden_kernel, hidden_bias), (kernel, bias) = head.layers
    width = hidden_kernel.shape[1]
    assert (hidden_kernel.shape, hidden_bias.shape) == ((3, width), (width,))
    assert (kernel.shape, bias.shape) == ((width, 2), (2,))
    assert {array.dtype for layer in head.layers for array in layer} == {np.dtype(np.float32)}
    assert {point["width"] for point in head.path} <= {32, 128}
    # The figures of the path are those of the folded layers on plain features.
    chosen = next(point for point in head.path if point["c"] == head.chosen_c)
    figures = chosen["validation_log_loss"], chosen["validation_accuracy"]
    assert scores(head, validation) == pytest.approx(figures, abs=1e-4)


@pytest.mark.parametrize("head_type", heads.HEAD_TYPES)
def test_balanced_classes_find_the_rare_one(head_type: str) -> None:
    def uneven(seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = clusters(2, 1200, 4.0, seed)
        kept = (y == 0) | (np.arange(len(y)) % 20 == 1)
        return x[kept], y[kept]

    def recall(class_weight: str) -> float:
        head = heads.fit_head(
            uneven(0), uneven(1), num_classes=2, head_type=head_type, class_weight=class_weight
        )
        x, y = clusters(2, 1000, 4.0, 2)
        return float((heads.predict_logits(head.layers, x[y == 1]).argmax(axis=1) == 1).mean())

    assert recall("balanced") > recall("none") + 0.2


def test_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(heads.class_weights([3, 1, 2], "balanced"), expected)
    np.testing.assert_array_equal(heads.class_weights([3, 1, 2], "none"), np.ones(3))
    np.testing.assert_allclose(heads.class_weights([3, 0, 1], "balanced"), [2 / 3, 0, 2])


@pytest.mark.parametrize("head_type", heads.HEAD_TYPES)
def test_the_same_seed_writes_the_same_bytes(artifacts, tmp_path: Path, head_type: str) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        heads.write_head(tmp_path / name, features_path=artifacts.features, head_type=head_type, seed=seed)
    first, same, other = ((tmp_path / name / "head.json").read_text() for name in "abc")
    assert first == same
    assert first != other
    for ours, theirs in zip(
        heads.read_layers(tmp_path / "a"), heads.read_layers(tmp_path / "b"), strict=True
    ):
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1].tobytes() == theirs[1].tobytes()


@pytest.mark.parametrize("head_type", heads.HEAD_TYPES)
def test_written_head_gives_the_figures_it_names(artifacts, tmp_path: Path, head_type: str) -> None:
    summary = heads.write_head(
        tmp_path, features_path=artifacts.features, head_type=head_type, class_weight="balanced"
    )
    assert summary == files.read_json(tmp_path / "head.json")
    assert (summary["type"], summary["class_weight"]) == (head_type, "balanced")
    assert summary["chosen_c"] in [point["c"] for point in summary["path"]]
    layers = heads.read_layers(tmp_path)
    assert len(layers) == 1 + (head_type == "mlp")
    with np.load(artifacts.features / "validation.npz") as arrays:
        logits = heads.predict_logits(layers, arrays["features"])
        labels = arrays["labels"]
    assert logits.dtype == np.float32
    assert heads.log_loss(logits, labels) == pytest.approx(summary["validation_log_loss"], abs=1e-4)
    assert (logits.argmax(axis=1) == labels).mean() == summary["validation_accuracy"] >= 0.8
    curve = summary["learning_curve"]
    assert [point["pictures"] for point in curve] == [12, 24]
    assert curve[-1]["accuracy"]["mean"] == pytest.approx(summary["validation_accuracy"])
    assert curve[-1]["log_loss"]["mean"] == pytest.approx(summary["validation_log_loss"], abs=1e-4)


def test_log_loss_of_known_logits() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert heads.log_loss(logits, np.array([0, 1])) == pytest.approx(-np.log([0.5, 0.1]).mean())
    assert heads.log_loss(logits, np.array([0, 1]), np.array([3, 1])) == pytest.approx(
        -(3 * np.log(0.5) + np.log(0.1)) / 4
    )
    far_apart = np.array([[[1e4, -1e4], [0, 0]], [[-1e4, -1e4], [1, 1]]])
    expected = np.full((2, 2, 2), np.log(0.5))
    expected[0, 0] = 0, -2e4
    np.testing.assert_allclose(heads.log_softmax(far_apart), expected)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    x, y = clusters(3, 30, 1.0, 0)
    with pytest.raises(InputError, match=r"none for: \[2\]"):
        heads.fit_head((x[y < 2], y[y < 2]), (x, y), num_classes=3)
    with pytest.raises(InputError, match="strengths must hold at least one number"):
        heads.fit_head((x, y), (x, y), num_classes=3, strengths=())
    with pytest.raises(
        InputError, match=r"head_type must be one of linear, mlp. Received: 'lineal'. Did you"
    ):
        heads.write_head(tmp_path, features_path=tmp_path, head_type="lineal")
    with pytest.raises(InputError, match="class_weight must be one of balanced, none. Received: 'even'"):
        heads.write_head(tmp_path, features_path=tmp_path, class_weight="even")
    with pytest.raises(InputError, match=r"must hold features.json and its .npz files, .* Received: "):
        heads.write_head(tmp_path, features_path=tmp_path)
    with pytest.raises(InputError, match="must hold head.npz, as train_head writes it. Received: "):
        heads.read_layers(tmp_path)
    (tmp_path / "head.npz").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="must hold head.npz"):
        heads.read_layers(tmp_path)


def test_features_cut_short_are_refused(artifacts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts.features, tmp_path / "features"))
    (folder / "train.npz").write_bytes((folder / "train.npz").read_bytes()[:5000])
    with pytest.raises(InputError, match="A features artifact must hold"):
        heads.write_head(tmp_path, features_path=folder)


def test_a_class_with_one_picture_can_be_trained() -> None:
    (x, y), validation = clusters(3, 31, 1.0, 0), clusters(3, 30, 1.0, 1)
    kept = (y != 2) | (np.cumsum(y == 2) == 1)
    for head_type in heads.HEAD_TYPES:
        head = heads.fit_head((x[kept], y[kept]), validation, num_classes=3, head_type=head_type)
        assert np.isfinite(scores(head, validation)[0])


def test_written_head_carries_the_identity_of_its_features(artifacts) -> None:
    source = files.read_json(artifacts.features / "features.json")
    head = files.read_json(artifacts.head / "head.json")
    assert head["backbone"] == source["backbone"]
    assert head["backbone"]["name"] == "efficientnet_lite0"
    assert head["classes"] == ["brick", "coffee", "rocket"]
    with np.load(artifacts.head / "head.npz") as arrays:
        assert arrays["kernel"].shape == (1280, 3)
    assert head["validation_accuracy"] >= 0.8


def test_a_fit_without_memory_for_blas_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenBLAS alone would ask for it again and again, under ``ulimit -v`` for instance."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(logistic.mmap, "mmap", refuse)
    (x, y), validation = clusters(3, 40, 1.0, 0), clusters(3, 40, 1.0, 1)
    with pytest.raises(MemoryError, match="64 MiB more. Received: Cannot allocate memory"):
        heads.fit_head((x, y), validation, num_classes=3)
