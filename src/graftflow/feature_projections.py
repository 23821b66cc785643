"""A map of the features: every picture a point on a plane, like pictures near each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graftflow.files import read_json
from graftflow.neighbours import read_features
from graftflow.picture_files import read_by_path, save_thumbnail

MOST_TRAIN, MOST_TEST, MOST_THUMBNAILS = 600, 400, 28
THUMBNAIL_SIDE = 56
# Below this many pictures t-SNE has too few neighbours to keep.
_FEW = 30
_COMPONENTS = 50


class Projection(NamedTuple):
    """Points on a plane.

    Attributes:
        places: ``float32 (n, 2)``, each axis in [0, 1], its aspect kept.
        method: ``"t-SNE"`` or ``"PCA"``.
        trustworthiness: how far neighbours on the plane are neighbours in the features too, in [0, 1] (Venna and
            Kaski 2001, equation 1, 5 neighbours).
    """

    places: npt.NDArray[np.float32]
    method: str
    trustworthiness: float


def project(features: npt.NDArray[np.float32], *, seed: int) -> Projection:
    """Lay features out on a plane: t-SNE on 50 principal components (van der Maaten and Hinton 2008), or PCA of few.

    Rows are scaled to length 1 first, so that distances go with the cosines by which neighbours are found.

    Args:
        features: ``float32 (n, d)``, n ≥ 1.
        seed: fixes the principal components' solver; t-SNE starts from them, not from noise.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE, trustworthiness
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    rows = features / np.where(lengths > 0, lengths, 1)
    count = len(rows)
    components = min(_COMPONENTS, count, rows.shape[1])
    if count == 1:  # whose variance is undefined
        return Projection(np.full((1, 2), 0.5, np.float32), "PCA", 1.0)
    main = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(rows)
    # The sign of a component is arbitrary: the longest coordinate is made positive.
    main = main * np.where(main[np.abs(main).argmax(0), range(components)] < 0, -1, 1)
    if count < _FEW or components < 2:
        places, method = np.pad(main, ((0, 0), (0, max(0, 2 - components))))[:, :2], "PCA"
    else:
        perplexity = min(30.0, count / 4)
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
        # Its threads wait for each other: measured 2 s with one, 8 s with two on a machine that has other work.
        with threadpool_limits(1):
            places, method = tsne.fit_transform(main), "t-SNE"
    kept = float(trustworthiness(rows, places, n_neighbors=min(5, (count - 1) // 2))) if count > 4 else 1.0
    low, high = places.min(0), places.max(0)
    span = max(float((high - low).max()), 1e-9)
    centred = (places - (low + high) / 2) / span + 0.5
    return Projection(np.asarray(centred, np.float32), method, kept)


def write_projection(
    folder: Path,
    *,
    dataset_path: str | Path,
    features_path: str | Path,
    mistaken: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Lay training and test pictures out on a plane and write thumbnails of test pictures that lie apart.

    Args:
        folder: an existing folder; receives ``map-<number>.jpg``.
        dataset_path: the ``dataset`` artifact.
        features_path: the ``features`` artifact made of it.
        mistaken: path of a test picture → the class that was wrongly predicted for it.
        seed: fixes which pictures are taken where there are more than 600 of training or 400 of test (mistakes come
            first).

    Returns:
        ``{"method","trustworthiness","classes","points": [{"x","y" in [0, 1],"class","split","path","predicted": of a
        mistake, else null}],"thumbnails": [{"file","x","y","class"}]}``.
    """
    classes = read_json(Path(features_path) / "features.json")["classes"]
    generator = np.random.default_rng(seed)
    rows, about = [], []
    for split, most in (("train", MOST_TRAIN), ("test", MOST_TEST)):
        found = read_features(features_path, split)
        paths = found["paths"].tolist()
        order = generator.permutation(len(paths))
        # A stable sort: mistakes come first, the rest keep their random order.
        order = order[np.argsort([paths[i] not in mistaken for i in order], kind="stable")][:most]
        rows.append(found["features"][order])
        for place in order:
            wrong = mistaken.get(paths[place]) if split == "test" else None
            label = classes[found["labels"][place]]
            about.append({"class": label, "split": split, "path": paths[place], "predicted": wrong})
    layout = project(np.concatenate(rows), seed=seed)
    points = [
        {"x": round(float(x), 4), "y": round(float(y), 4), **said}
        for (x, y), said in zip(layout.places, about, strict=True)
    ]
    shown = _apart([point for point in points if point["split"] == "test"])
    images = read_by_path(dataset_path, "test", [point["path"] for point in shown])
    thumbnails = []
    for number, point in enumerate(shown):
        file = f"map-{number}.jpg"
        save_thumbnail(folder / file, images[point["path"]], THUMBNAIL_SIDE)
        thumbnails.append({"file": file, "x": point["x"], "y": point["y"], "class": point["class"]})
    return {
        "method": layout.method,
        "trustworthiness": round(layout.trustworthiness, 4),
        "classes": classes,
        "points": points,
        "thumbnails": thumbnails,
    }


def _apart(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose points so that their thumbnails do not cover each other, mistakes first."""
    chosen: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: point["predicted"] is None):
        if len(chosen) < MOST_THUMBNAILS and all(
            max(abs(point["x"] - other["x"]), abs(point["y"] - other["y"])) > 0.085 for other in chosen
        ):
            chosen.append(point)
    return chosen
