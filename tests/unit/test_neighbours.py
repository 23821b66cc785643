"""Neighbours are the training pictures at the smallest angle, and the map keeps like pictures together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftflow.errors import InputError
from graftflow.feature_projections import project, write_projection
from graftflow.neighbours import nearest, read_features, write_neighbours
from graftflow.picture_files import read_by_path
from tests.conftest import Artifacts


def test_the_nearest_are_those_of_the_smallest_angle_whatever_their_length() -> None:
    among = np.array([[1, 0], [0, 5], [3, 3], [0, 0]], np.float32)
    rows, cosines = nearest(np.array([[2, 1.9], [0, 0]], np.float32), among, 3)
    assert rows[0].tolist() == [2, 0, 1]
    assert cosines[0, 0] == pytest.approx(3.9 / np.sqrt(2 * (4 + 3.61)), abs=1e-6)
    assert not cosines[1].any()
    assert nearest(among, among, 9)[0].shape == (4, 4)


def test_neighbours_of_a_picture_are_mostly_of_its_own_class(tmp_path: Path, artifacts: Artifacts) -> None:
    test = read_features(artifacts.features, "test")
    asked = [
        {"path": path, "label": path.split("/")[0], "predicted": "none", "probability": 0.5}
        for path in test["paths"].tolist()
    ]
    found = write_neighbours(
        tmp_path, dataset_path=artifacts.dataset, features_path=artifacts.features, mistakes=asked
    )
    same = [near["label"] == row["label"] for row in found for near in row["nearest"]]
    assert np.mean(same) > 0.9
    for row in found:
        cosines = [near["cosine"] for near in row["nearest"]]
        assert cosines == sorted(cosines, reverse=True)
        assert all(near["path"].startswith(near["label"] + "/") for near in row["nearest"])
        with Image.open(tmp_path / row["nearest"][0]["file"]) as picture:
            assert max(picture.size) <= 112


def test_pictures_that_are_not_there_are_named(tmp_path: Path, artifacts: Artifacts) -> None:
    asked = [{"path": "brick/none.png", "label": "brick", "predicted": "rocket", "probability": 1.0}]
    with pytest.raises(InputError, match="Missing: 'brick/none.png'"):
        write_neighbours(
            tmp_path, dataset_path=artifacts.dataset, features_path=artifacts.features, mistakes=asked
        )
    with pytest.raises(InputError, match="The train split must hold .* Missing: 'brick/none.png'"):
        read_by_path(artifacts.dataset, "train", ["brick/none.png"])
    with pytest.raises(InputError, match="must hold test.npz, as merge_features writes it"):
        read_features(tmp_path, "test")
    (tmp_path / "test.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="must hold test.npz"):
        read_features(tmp_path, "test")


@pytest.mark.parametrize(("count", "method"), [(90, "t-SNE"), (12, "PCA"), (1, "PCA")])
def test_clusters_stay_together_on_the_plane(count: int, method: str) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    features = (8 * np.eye(3, 40)[labels] + generator.normal(0, 0.5, (count, 40))).astype(np.float32)
    layout = project(features, seed=0)
    assert layout.method == method
    assert layout.places.shape == (count, 2)
    assert layout.places.min() >= 0
    assert layout.places.max() <= 1 + 1e-6
    assert 0.8 < layout.trustworthiness <= 1
    if count > 1:
        distances = np.linalg.norm(layout.places[:, None] - layout.places[None], axis=2) + 9 * np.eye(count)
        assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(project(features, seed=0).places, layout.places)


def test_thumbnails_of_the_map_do_not_cover_each_other(tmp_path: Path, artifacts: Artifacts) -> None:
    test = read_features(artifacts.features, "test")["paths"].tolist()
    mistaken = {test[0]: "rocket"}
    found = write_projection(
        tmp_path,
        dataset_path=artifacts.dataset,
        features_path=artifacts.features,
        mistaken=mistaken,
        seed=0,
    )
    places = [(row["x"], row["y"]) for row in found["thumbnails"]]
    for number, (x, y) in enumerate(places):
        assert all(max(abs(x - u), abs(y - v)) > 0.08 for u, v in places[:number])
    marked = [point for point in found["points"] if point["predicted"] is not None]
    assert [(point["path"], point["predicted"]) for point in marked] == list(mistaken.items())
    # A mistake has a thumbnail before others have.
    assert places[0] == (marked[0]["x"], marked[0]["y"])
