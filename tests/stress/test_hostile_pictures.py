"""10,000 broken and lying pictures through `download_data` and the server: no crash, and both accept the same.

``GRAFTFLOW_SEED`` repeats a campaign, which prints its seed; ``GRAFTFLOW_PICTURES`` makes it shorter.
"""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf

from graftflow.errors import InputError
from graftflow.preprocessing import decode_batch
from graftflow.serving.client import Client, RefusedError
from graftflow.splits import SPLITS
from tests.conftest import SHARED
from tests.stress.hostile_pictures import hostile_pictures, photographs
from tests.unit.abused_server import SIDE, Abused, save_model
from tests.unit.pictures_on_disk import records, rows, write
from tests.unit.serving_model import running_server

COUNT = int(os.environ.get("GRAFTFLOW_PICTURES", "10000"))
SEED = int(os.environ.get("GRAFTFLOW_SEED", random.SystemRandom().randrange(10**6)))
MIB = 2**20
# As the commands do: what is wrong with a picture is told in their own words.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of two classes, and the kind of each picture."""
    print(f"\nGRAFTFLOW_SEED={SEED} repeats these pictures")
    root = tmp_path_factory.mktemp("hostile") / "pictures"
    photos = photographs(SHARED if SHARED.is_dir() else None)
    kinds = {}
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
    for number, (kind, suffix, data) in enumerate(hostile_pictures(photos, COUNT, seed=SEED)):
        name = f"{('cat', 'dog')[number // 13 % 2]}/{number:05}.{suffix}"
        (root / name).write_bytes(data)
        kinds[name] = kind
    return root, kinds


@pytest.fixture(scope="module")
def dataset(pictures: tuple[Path, dict[str, str]]) -> Path:
    process = psutil.Process()
    before = process.memory_info().rss
    written = write(pictures[0])[0]
    more = (process.memory_info().rss - before) / MIB
    print(f"download_data: {more:+.0f} MiB")
    assert more < 1500
    return written


@pytest.fixture(scope="module")
def stored(dataset: Path) -> dict[str, bytes]:
    return {path: data for split in SPLITS for path, _, data in records(dataset, split)}


def table(title: str, outcomes: dict[str, str], kinds: dict[str, str]) -> None:
    """Print how many pictures of each kind had each outcome."""
    counts = Counter((kinds[name], outcome) for name, outcome in outcomes.items())
    columns = sorted(set(outcomes.values()))
    print(f"\n{title}: {len(outcomes):,} pictures")
    for column in columns:
        print(f"  {sum(n for (_, o), n in counts.items() if o == column):>6,}  {column}")
    for kind in dict.fromkeys(kinds.values()):
        print(f"  {kind:<20}" + " ".join(f"{counts[kind, column]:>6}" for column in columns))


def test_every_picture_is_kept_or_left_out_with_a_reason(
    pictures: tuple[Path, dict[str, str]], dataset: Path, stored: dict[str, bytes]
) -> None:
    kinds = pictures[1]
    left_out = {row["path"]: row["reason"] for row in rows(dataset / "left_out.csv")}
    manifest = {row["path"]: row for row in rows(dataset / "manifest.csv")}
    assert len(kinds) == COUNT
    assert kinds.keys() == manifest.keys() | left_out.keys() == stored.keys() | left_out.keys()
    assert not manifest.keys() & left_out.keys()
    assert all(reason.isprintable() and reason for reason in left_out.values())
    outcomes = {path: f"left out: {reason.partition(':')[0]}" for path, reason in left_out.items()}
    outcomes |= {p: f"kept, {r['converted'] or 'as it is'}" for p, r in manifest.items()}
    table("download_data", outcomes, kinds)
    assert len(left_out) > COUNT / 10
    assert len(manifest) > COUNT / 10


def test_what_is_kept_decodes_to_pixels(stored: dict[str, bytes], dataset: Path) -> None:
    sizes = {row["path"]: (int(row["height"]), int(row["width"])) for row in rows(dataset / "manifest.csv")}
    names = sorted(stored)
    for start in range(0, len(names), 100):
        pixels = decode_batch(
            tf.constant([stored[name] for name in names[start : start + 100]]), SIDE
        ).numpy()
        assert np.isfinite(pixels).all()
        assert pixels.min() >= 0
        assert pixels.max() <= 1
    assert all(height and width for height, width in sizes.values())


def test_the_server_answers_or_refuses_and_accepts_what_was_kept(
    pictures: tuple[Path, dict[str, str]], stored: dict[str, bytes], tmp_path: Path
) -> None:
    root, kinds = pictures
    save_model(tmp_path / "toy" / "1")
    names = sorted(kinds)
    with running_server(tmp_path / "toy", tmp_path / "log", patience=300) as server:
        abused = Abused(server)
        with abused.unharmed(peak=1000, after=500):
            outcomes = {}
            for way, url in (("REST", server.url), ("gRPC", f"grpc://{server.address}")):
                with Client(url, "toy", as_is=True, batch_size=8, in_flight=2) as client:
                    answers = list(client.classify_each([(root / name).read_bytes for name in names]))
                outcomes[way] = {n: outcome(a) for n, a in zip(names, answers, strict=True)}
                table(f"the server over {way}, bytes as they are", outcomes[way], kinds)
            with Client(server.url, "toy", batch_size=8, in_flight=2) as client:
                answers = list(client.classify_each([(root / name).read_bytes for name in names]))
            told = dict(zip(names, answers, strict=True))
            table("the server, asked by our client", {n: outcome(a) for n, a in told.items()}, kinds)
        abused.channel.close()
        log = server.log()
    assert "Traceback" not in log
    assert {n: o == "answered" for n, o in outcomes["REST"].items()} == {
        n: o == "answered" for n, o in outcomes["gRPC"].items()
    }
    assert set(outcomes["REST"].values()) <= {"answered", "refused: HTTP 400"}
    assert set(outcomes["gRPC"].values()) <= {"answered", "refused: INVALID_ARGUMENT"}
    # No skew: what was trained on is answered, with what the model says of the stored bytes.
    model = tf.saved_model.load(str(tmp_path / "toy" / "1")).signatures["serving_default"]
    refused = [name for name in stored if isinstance(told[name], InputError)]
    assert refused == []
    kept = sorted(stored)
    for start in range(0, len(kept), 100):
        some = kept[start : start + 100]
        expected = model(image_bytes=tf.constant([stored[name] for name in some]))["probabilities"].numpy()
        served = [max(score for _, score in told[name]) for name in some]
        np.testing.assert_allclose(served, expected.max(axis=1), atol=1e-5)
    # And what was left out as no picture is not sent by our client.
    assert all(isinstance(told[name], InputError) for name in names if name not in stored)


def outcome(answer: object) -> str:
    if isinstance(answer, RefusedError):
        return f"refused: {answer.code}"
    return "not sent" if isinstance(answer, InputError) else "answered"
