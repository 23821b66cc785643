"""The exported model answers as the original, from bytes and from pixels; evaluation uses that very model."""

import csv
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow_serving.apis import prediction_log_pb2

from graftflow import datasets, evaluation, export, files, metrics
from graftflow.errors import InputError
from graftflow.preprocessing import decode_batch
from graftflow.training import load_classifier


@pytest.fixture(scope="module")
def signatures(artifacts):
    return export.load_signatures(export.version_folder(artifacts.saved_model))


@pytest.fixture(scope="module")
def model(artifacts):
    return load_classifier(artifacts.model)


@pytest.fixture(scope="module")
def pictures(artifacts) -> list[bytes]:
    return [record["image"].numpy() for record in datasets.read_split(artifacts.dataset, "test")]


def test_reloaded_equals_original(model, signatures, pictures: list[bytes]) -> None:
    pixels = decode_batch(tf.constant(pictures), 224)
    expected = model(pixels, training=False).numpy()
    from_pixels = signatures["pixels"](pixels=pixels)
    from_bytes = signatures["serving_default"](image_bytes=tf.constant(pictures))
    for answer in (from_pixels, from_bytes):
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["class_index"].dtype == tf.int64
        np.testing.assert_array_equal(answer["class_index"], expected.argmax(axis=1))
        classes = ["brick", "coffee", "rocket"]
        assert [label.decode() for label in answer["label"].numpy()] == [
            classes[i] for i in expected.argmax(axis=1)
        ]


@pytest.mark.parametrize("name", ["serving_default", "ranked", "pixels"])
def test_a_signature_takes_any_number_of_pictures_of_one_form(signatures, name: str) -> None:
    """What servers show as metadata, and check requests by."""
    _, given = signatures[name].structured_input_signature
    expected = (
        {"pixels": tf.TensorSpec((None, 224, 224, 3), tf.float32, "pixels")}
        if name == "pixels"
        else {"image_bytes": tf.TensorSpec((None,), tf.string, "image_bytes")}
    )
    assert given == expected


def test_ranked_lists_every_class_best_first(signatures, pictures: list[bytes]) -> None:
    ranked = signatures["ranked"](image_bytes=tf.constant(pictures))
    answer = signatures["serving_default"](image_bytes=tf.constant(pictures))
    scores = ranked["scores"].numpy()
    np.testing.assert_allclose(scores, -np.sort(-answer["probabilities"].numpy(), axis=1))
    np.testing.assert_array_equal(ranked["classes"].numpy()[:, 0], answer["label"].numpy())
    assert {name.decode() for name in ranked["classes"].numpy()[0]} == {"brick", "coffee", "rocket"}


def test_batch_and_single_answers_agree(signatures, pictures: list[bytes]) -> None:
    together = signatures["serving_default"](image_bytes=tf.constant(pictures))["probabilities"]
    for index, picture in enumerate(pictures[:3]):
        alone = signatures["serving_default"](image_bytes=tf.constant([picture]))["probabilities"]
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "grey"])
def test_any_common_picture_is_served(signatures, tmp_path: Path, kind: str) -> None:
    mode = "L" if kind == "grey" else "RGB"
    path = tmp_path / ("picture.png" if kind == "PNG" else "picture.jpg")
    Image.new(mode, (300, 200), 128 if mode == "L" else (10, 200, 90)).save(path)
    answer = signatures["serving_default"](image_bytes=tf.constant([path.read_bytes()]))
    assert float(tf.reduce_sum(answer["probabilities"])) == pytest.approx(1.0, abs=1e-5)


def test_the_folder_is_what_tensorflow_serving_polls(artifacts) -> None:
    folder = artifacts.saved_model / "3"
    assert (folder / "saved_model.pb").is_file()
    assert (folder / "assets" / "classes.txt").read_text() == "brick\ncoffee\nrocket\n"
    records = list(
        tf.data.TFRecordDataset(
            str(folder / "assets.extra" / "tf_serving_warmup_requests")
        ).as_numpy_iterator()
    )
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    first = next(iter(datasets.read_split(artifacts.dataset, "validation")))["image"].numpy()
    assert [(r.model_spec.signature_name, list(r.inputs["image_bytes"].string_val)) for r in requests] == [
        (name, [first] * batch) for name in ("serving_default", "ranked") for batch in (1, 8)
    ]
    assert files.read_json(folder / "assets.extra" / "lineage.json")["version"] == 3
    written = files.read_json(artifacts.saved_model / "export.json")
    assert written["sha256"] == files.sha256_directory(folder)
    trained = files.read_json(artifacts.model / "model.json")
    for fact in ("backbone", "classes", "temperature"):
        assert written[fact] == trained[fact]
    assert (written["version"], written["input_size"]) == (3, 224)


@pytest.fixture(scope="module")
def unscaled(artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, without a version, of a model that knows nothing of a temperature."""
    root = tmp_path_factory.mktemp("unscaled")
    shutil.copytree(artifacts.model, root / "model")
    trained = files.read_json(root / "model" / "model.json")
    del trained["temperature"]
    files.write_json(root / "model" / "model.json", trained)
    (root / "saved_model").mkdir()
    export.write_saved_model(root / "saved_model", model_path=root / "model", dataset_path=artifacts.dataset)
    return root / "saved_model"


def test_version_zero_is_the_time_of_export(unscaled: Path) -> None:
    summary = files.read_json(unscaled / "export.json")
    assert abs(summary["version"] - time.time()) < 1200
    assert (unscaled / str(summary["version"]) / "saved_model.pb").is_file()
    assert not (unscaled / "classes.txt").exists()


def test_a_model_that_was_never_scaled_has_the_temperature_one(unscaled: Path) -> None:
    assert files.read_json(unscaled / "export.json")["temperature"] == 1.0


def test_a_saved_model_is_named_by_its_content(artifacts, tmp_path: Path) -> None:
    """The name that TensorFlow draws by chance is replaced by one that the same content gets again."""
    written = (artifacts.saved_model / "3" / "fingerprint.pb").read_bytes()

    def named(**changes: object) -> fingerprint_pb2.FingerprintDef:
        fingerprint = fingerprint_pb2.FingerprintDef.FromString(written)
        for name, value in changes.items():
            setattr(fingerprint, name, value)
        (tmp_path / "fingerprint.pb").write_bytes(fingerprint.SerializeToString())
        export._name_by_content(tmp_path)
        return fingerprint_pb2.FingerprintDef.FromString((tmp_path / "fingerprint.pb").read_bytes())

    named(uuid="12345")
    assert (tmp_path / "fingerprint.pb").read_bytes() == written
    again, other = named(), named(checkpoint_hash=1)
    assert 0 < int(again.uuid) < 2**128
    assert int(other.uuid) != int(again.uuid)


@pytest.mark.parametrize("name", ["pixels", "serving_default"])
@pytest.mark.parametrize("apart", [2e-5, math.nan])
def test_an_export_that_answers_otherwise_is_refused(
    model, signatures, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch, name: str, apart: float
) -> None:
    def otherwise(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": signatures[name](**given)["probabilities"] + apart}

    loaded = {known: signatures[known] for known in ("pixels", "serving_default")}
    monkeypatch.setattr(export, "load_signatures", lambda folder: {**loaded, name: otherwise})
    with pytest.raises(InputError, match=rf"within 1e-05\. Received: .* from signature '{name}'"):
        export._compare(Path("3"), model, pictures[:2])


@pytest.mark.parametrize("version", [-1, 2**63])
def test_a_version_that_servers_cannot_name_is_refused(artifacts, tmp_path: Path, version: int) -> None:
    with pytest.raises(InputError, match="version must be a whole number from 0"):
        export.write_saved_model(
            tmp_path, model_path=artifacts.model, dataset_path=artifacts.dataset, version=version
        )


@pytest.mark.parametrize("version", [0, 1, 2**31, 2**63 - 1])
def test_versions_that_servers_can_name_are_taken(version: int) -> None:
    export.check_version(version)


def test_evaluation_is_of_the_served_model_on_the_whole_test_split(artifacts, signatures) -> None:
    summary = files.read_json(artifacts.evaluation / "evaluation.json")
    with open(artifacts.evaluation / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = list(datasets.read_split(artifacts.dataset, "test"))
    assert [row["path"] for row in rows] == [r["path"].numpy().decode() for r in records]
    assert summary["pictures"] == len(rows) == datasets.split_size(artifacts.dataset, "test")
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert summary["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert np.trace(summary["confusion"]) == round(right * len(rows))
    answer = signatures["serving_default"](image_bytes=tf.stack([r["image"] for r in records]))
    told = np.array([[float(row[c]) for c in summary["classes"]] for row in rows])
    np.testing.assert_allclose(told, answer["probabilities"], atol=1e-6)
    labels = np.array([summary["classes"].index(row["label"]) for row in rows])
    ones = np.ones((1, len(rows)))
    assert summary["metrics"]["log_loss"]["value"] == pytest.approx(
        metrics.log_loss(ones, told, labels)[0], rel=1e-5
    )
    assert len(summary["mistakes"]) == sum(row["label"] != row["predicted"] for row in rows)


def test_mistakes_are_the_most_confident_ones_with_their_pictures(artifacts, tmp_path: Path) -> None:
    """A model whose classes are swapped is wrong on everything: its mistakes are all there, worst first."""
    swapped = tmp_path / "dataset"
    shutil.copytree(artifacts.dataset, swapped)
    original = datasets.read_split(artifacts.dataset, "test")
    with tf.io.TFRecordWriter(str(next(swapped.glob("test-*.tfrecord")))) as writer:
        for record in original:
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[record["image"].numpy()])),
                "label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[(int(record["label"]) + 1) % 3])
                ),
                "path": tf.train.Feature(bytes_list=tf.train.BytesList(value=[record["path"].numpy()])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    out = tmp_path / "evaluation"
    out.mkdir()
    summary = evaluation.write_evaluation(
        out, saved_model_path=artifacts.saved_model, dataset_path=swapped, num_mistakes=4
    )
    assert summary["metrics"]["accuracy"]["value"] <= 0.2
    mistakes = summary["mistakes"]
    assert len(mistakes) == 4
    chances = [mistake["probability"] for mistake in mistakes]
    assert chances == sorted(chances, reverse=True)
    for mistake in mistakes:
        assert mistake["label"] != mistake["predicted"]
        with Image.open(out / mistake["picture"]) as picture:
            assert max(picture.size) <= 320


def test_what_the_temperature_changed_is_told(artifacts) -> None:
    summary = files.read_json(artifacts.evaluation / "evaluation.json")
    before, temperature = summary["before_scaling"], summary["before_scaling"]["temperature"]
    assert temperature == files.read_json(artifacts.model / "model.json")["temperature"] != 1.0
    with (artifacts.evaluation / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    served = np.array([[float(row[name]) for name in summary["classes"]] for row in rows])
    labels = np.array([summary["classes"].index(row["label"]) for row in rows])
    plain = served**temperature
    plain /= plain.sum(axis=1, keepdims=True)
    expected = -np.log(plain[np.arange(len(labels)), labels]).mean()
    assert before["log_loss"] == pytest.approx(expected, rel=1e-4)
    assert sum(part["count"] for part in before["calibration"]) == len(labels)
