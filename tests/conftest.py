"""Real artifacts, made once a session by the library itself and shared by the tests that read them."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# gRPC's handlers of forks end, now and then, a fork of a process that talks at that moment.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_configure() -> None:
    """Heed Ctrl-C in tests and all that they start: what runs in a shell's background inherits that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Artifacts:
    """Folders of one small run: three classes of real photograph tiles, EfficientNet-Lite0 with its weights."""

    pictures: Path
    dataset: Path
    features: Path
    head: Path
    model: Path
    saved_model: Path
    evaluation: Path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared photographs are not there ({SHARED.name}/ beside the checkout)")
    return SHARED


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, 16 PNG tiles each, as a user would hand it over."""
    from graftflow.embedded import open_closeups

    root = tmp_path_factory.mktemp("pictures")
    counts = dict.fromkeys(("brick", "coffee", "rocket"), 0)
    for picture in open_closeups().pictures:
        if counts.get(picture.label, 16) < 16:
            folder = root / picture.label
            folder.mkdir(exist_ok=True)
            (folder / f"{counts[picture.label]:02}.png").write_bytes(picture.read())
            counts[picture.label] += 1
    return root


@pytest.fixture(scope="session")
def artifacts(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """One artifact of every kind up to the evaluation."""
    from graftflow import datasets, evaluation, export, features, heads, seals, training
    from graftflow.recipes import Recipe

    root = tmp_path_factory.mktemp("artifacts")
    names = ("dataset", "features", "head", "model", "saved_model", "evaluation")
    paths = {name: root / name for name in names}
    for path in paths.values():
        path.mkdir()
    datasets.write_dataset(
        paths["dataset"],
        source=f"directory:{picture_folder}",
        seed=0,
        validation_fraction=0.25,
        test_fraction=0.25,
    )
    features.write_features(
        paths["features"],
        dataset_path=paths["dataset"],
        backbone="efficientnet_lite0",
        weights="imagenet",
    )
    heads.write_head(paths["head"], features_path=paths["features"])
    training.write_model(
        paths["model"],
        dataset_path=paths["dataset"],
        head_path=paths["head"],
        weights="imagenet",
        num_blocks=1,
        recipe=Recipe(epochs=1, learning_rate=1e-4, batch_size=8),
    )
    export.write_saved_model(
        paths["saved_model"], model_path=paths["model"], dataset_path=paths["dataset"], version=3
    )
    evaluation.write_evaluation(
        paths["evaluation"], saved_model_path=paths["saved_model"], dataset_path=paths["dataset"]
    )
    for path in paths.values():
        seals.seal(path)
    return Artifacts(pictures=picture_folder, **paths)
