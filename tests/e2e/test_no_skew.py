"""A hundred pictures as users have them, asked of the real server, get the probabilities that were evaluated."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graftflow import datasets, deployment, evaluation, export, features, heads, training
from graftflow.embedded import open_closeups
from graftflow.errors import InputError
from graftflow.recipes import Recipe
from graftflow.serving.client import Client
from tests.unit.mixed_pictures import CLASSES, CORRUPT, COUNT, KEPT, write_mixed_pictures
from tests.unit.serving_model import Server, running_server

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """The pictures' folder, the exported version's store and, by path, what ``evaluate`` computed for each picture."""
    root = tmp_path_factory.mktemp("skew")
    pictures = root / "pictures"
    write_mixed_pictures(pictures / "test")
    # All hundred are tested: the classifier comes from other pictures, which need not be many to tell skew.
    tiles: dict[str, list[bytes]] = {name: [] for name in CLASSES}
    for picture in open_closeups().pictures:
        if picture.label in tiles:
            tiles[picture.label].append(picture.read())
    for name, found in tiles.items():
        for number, data in enumerate(found[-6:]):
            folder = pictures / ("train" if number < 4 else "validation") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(data)
    names = ("dataset", "features", "head", "model", "saved_model", "evaluation")
    paths = {name: root / name for name in names}
    for path in paths.values():
        path.mkdir()
    datasets.write_dataset(
        paths["dataset"], source=f"directory:{pictures}", seed=0, validation_fraction=0.2, test_fraction=0.2
    )
    features.write_features(
        paths["features"], dataset_path=paths["dataset"], backbone="efficientnet_lite0", weights="imagenet"
    )
    heads.write_head(paths["head"], features_path=paths["features"])
    training.write_model(
        paths["model"],
        dataset_path=paths["dataset"],
        head_path=paths["head"],
        weights="imagenet",
        num_blocks=0,
        recipe=Recipe(epochs=1),
    )
    export.write_saved_model(
        paths["saved_model"], model_path=paths["model"], dataset_path=paths["dataset"], version=7
    )
    evaluation.write_evaluation(
        paths["evaluation"], saved_model_path=paths["saved_model"], dataset_path=paths["dataset"]
    )
    deployment.deploy(paths["saved_model"], store=str(root / "store"), model_name="toy")
    classes = datasets.load_info(paths["dataset"]).classes
    with open(paths["evaluation"] / "predictions.csv", newline="") as file:
        told = {
            row["path"].replace("/test/", "/"): np.array([float(row[c]) for c in classes])
            for row in csv.DictReader(file)
        }
    return pictures / "test", root / "store" / "toy", told


@pytest.fixture(scope="module", params=["", "--enable_batching"])
def server(evaluated, request, tmp_path_factory) -> Iterator[Server]:
    """The real server process on the exported version, without and with batching."""
    log = tmp_path_factory.mktemp("log") / "log"
    with running_server(evaluated[1], log, *filter(None, [request.param])) as running:
        yield running


def clients(server: Server) -> dict[str, Client]:
    return {"REST": Client(server.url, "toy"), "gRPC": Client(f"grpc://{server.address}", "toy")}


@pytest.mark.parametrize("transport", ["REST", "gRPC"])
def test_the_users_own_files_get_the_evaluated_probabilities(server, evaluated, transport) -> None:
    """Every kind of picture: JPEG and PNG, grey, turned by EXIF, WebP, 16 bits, palette, alpha, CMYK."""
    pictures, _, told = evaluated
    assert len(told) == COUNT
    paths = sorted(told)
    with clients(server)[transport] as client:
        rankings = client.classify_images([(pictures / path).read_bytes() for path in paths])
    classes = sorted({name for name, _ in rankings[0]})
    for path, ranking in zip(paths, rankings, strict=True):
        assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)
        served = dict(ranking)
        np.testing.assert_allclose(
            [served[name] for name in classes], told[path], rtol=0, atol=TOLERANCE, err_msg=path
        )


@pytest.mark.parametrize("transport", ["REST", "gRPC"])
def test_bytes_that_no_client_of_ours_has_touched_get_them_too(server, evaluated, transport) -> None:
    """JPEGs, turned ones as well, and plain PNGs need no preparation: `curl` sends them as they are."""
    pictures, _, told = evaluated
    as_is = [path for path in sorted(told) if Path(path).name.startswith(KEPT)]
    assert len(as_is) >= 50
    with clients(server)[transport] as client:
        rows = client.predict([(pictures / path).read_bytes() for path in as_is])
    for path, row in zip(as_is, rows, strict=True):
        np.testing.assert_allclose(row["probabilities"], told[path], rtol=0, atol=TOLERANCE, err_msg=path)


@pytest.mark.parametrize("transport", ["REST", "gRPC"])
def test_the_corrupt_picture_is_refused_alone(server, evaluated, transport) -> None:
    pictures, _, told = evaluated
    good = sorted(told)[:5]
    sources = [pictures / good[0], pictures / CORRUPT, *(pictures / path for path in good[1:])]
    with clients(server)[transport] as client:
        answers = list(client.classify_each(source.read_bytes for source in sources))
    assert isinstance(answers[1], InputError)
    assert "Traceback" not in str(answers[1])
    del answers[1]
    for path, ranking in zip(good, answers, strict=True):
        assert not isinstance(ranking, InputError)
        assert max(s for _, s in ranking) == pytest.approx(told[path].max(), abs=TOLERANCE)


def test_the_command_gives_the_same_over_both(server, evaluated) -> None:
    pictures = evaluated[0]
    shown = {}
    for url in (server.url, f"grpc://{server.address}"):
        command = [
            sys.executable,
            "-m",
            "graftflow.serving.query",
            "--url",
            url,
            "--model=toy",
            "--format=csv",
        ]
        done = subprocess.run(
            [*command, str(pictures)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1  # the corrupt one
        (said,) = [line for line in done.stderr.splitlines() if not line.startswith("progress: ")]
        assert said.startswith("error: ")
        assert CORRUPT in said
        shown[url] = done.stdout
        answered = {row["picture"] for row in csv.DictReader(done.stdout.splitlines())}
        assert answered == {str(p) for p in pictures.rglob("*") if p.is_file()} - {str(pictures / CORRUPT)}
    first, second = shown.values()
    for one, other in zip(
        csv.DictReader(first.splitlines()), csv.DictReader(second.splitlines()), strict=True
    ):
        assert (one["picture"], one["class"]) == (other["picture"], other["class"])
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=TOLERANCE)
