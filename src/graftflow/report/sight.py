"""The page's section about what the network sees: ideal images, feature maps, explanations, neighbours and the map."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from graftflow.report import numbers
from graftflow.report.artifacts import Artifacts
from graftflow.report.images import Album

MOST_IDEAL, MOST_MAPS, MOST_EXPLAINED, MOST_NEIGHBOURS = 24, 24, 8, 8
MOST_POINTS, MOST_THUMBNAILS = 1200, 40
MAP_WIDTH, MAP_HEIGHT, MAP_PAD, THUMBNAIL = 920, 640, 34, 48
# Animations are carried as they are; more than this is left out.
MOST_ANIMATION_BYTES = 320_000
# Hue and, for every second dozen of classes, another shape.
_HUES = 12
_METHODS = {"grad_cam": "Grad-CAM", "integrated_gradients": "Integrated gradients"}


def sight(artifacts: Artifacts, album: Album) -> dict[str, Any]:
    """Ideal images, feature maps, explanations, nearest training pictures and the map of the features.

    A ``visuals`` artifact of an earlier version has ideal images and feature maps alone.
    """
    said = artifacts["visuals"]

    def add(row: Mapping[str, Any], side: int) -> int:
        return album.add("visuals", artifacts.file("visuals", row["file"]), side)

    picture = said.get("picture")
    room = MOST_ANIMATION_BYTES
    ideal = []
    for row in said["ideal"][:MOST_IDEAL]:
        animation = ""
        if row.get("animation"):
            data = artifacts.file("visuals", row["animation"]).read_bytes()
            if len(data) <= room:
                room -= len(data)
                animation = f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"
        ideal.append(
            {
                "name": row["class"],
                "network": row["network"],
                "probability": numbers.percent(row["probability"]),
                "steps": numbers.count(row["steps"]),
                "picture": add(row, 288 if row["network"] == "ImageNet" else 200),
                "animation": animation,
            }
        )
    return {
        "note": said.get("note") or "",
        "ideal": ideal,
        "animated": any(row["animation"] for row in ideal),
        "maps": [
            {
                "layer": row["layer"],
                "shape": " × ".join(str(side) for side in row["shape"]),
                "picture": add(row, 464),
            }
            for row in said["feature_maps"][:MOST_MAPS]
        ],
        "source": {
            "label": picture["label"],
            "path": picture["path"],
            "picture": add(picture, 320),
        }
        if picture
        else None,
        "explanations": _explanations(said.get("explanations"), add),
        "neighbours": _neighbours(said.get("neighbours") or [], add),
        "map": _map(said.get("map"), add),
    }


def _explanations(said: Mapping[str, Any] | None, add: Any) -> dict[str, Any] | None:
    if not said:
        return None
    sanity = said["sanity"]
    rows = [
        {
            "picture": add(row, 600),
            "label": row["label"],
            "predicted": row["predicted"],
            "probability": numbers.percent(row["probability"]),
            "mistake": row["label"] != row["predicted"],
            "path": row["path"],
        }
        for row in said["pictures"][:MOST_EXPLAINED]
    ]
    return {
        "rows": rows,
        "layer": said["layer"],
        "steps": said["steps"],
        "error": numbers.percent(max(row["error"] for row in said["pictures"])),
        "shuffled": add(sanity, 600),
        "passed": sanity["passed"],
        "correlations": [
            {"name": shown, "value": f"{round(sanity[name], 2) + 0.0:.2f}".replace("-", "−")}
            for name, shown in _METHODS.items()
        ],
    }


def _neighbours(said: Sequence[Mapping[str, Any]], add: Any) -> list[dict[str, Any]]:
    rows = []
    for row in said[:MOST_NEIGHBOURS]:
        near = [
            {
                "picture": add(one, 112),
                "label": one["label"],
                "cosine": f"{one['cosine']:.2f}",
                "like": "predicted"
                if one["label"] == row["predicted"]
                else "true"
                if one["label"] == row["label"]
                else "",
            }
            for one in row["nearest"]
        ]
        rows.append(
            {
                "picture": add(row, 112),
                "label": row["label"],
                "predicted": row["predicted"],
                "probability": numbers.percent(row["probability"]),
                "path": row["path"],
                "nearest": near,
            }
        )
    return rows


def _map(said: Mapping[str, Any] | None, add: Any) -> dict[str, Any] | None:
    """Return the map's coordinates on the drawing; test pictures over training pictures, mistakes on top."""
    if not said:
        return None
    classes = said["classes"]
    looks = {name: {"hue": place % _HUES, "shape": place // _HUES % 3} for place, name in enumerate(classes)}
    ranked = sorted(
        said["points"], key=lambda point: (point["predicted"] is not None, point["split"] == "test")
    )
    points = [
        {
            "x": _across(point["x"]),
            "y": _down(point["y"]),
            **looks[point["class"]],
            "test": point["split"] == "test",
            "mistake": point["predicted"] is not None,
            "note": f"{point['path']}: {point['class']}"
            + (f", taken for {point['predicted']}" if point["predicted"] is not None else ""),
        }
        for point in ranked[-MOST_POINTS:]
    ]
    thumbnails = [
        {
            "x": round(_across(one["x"]) - THUMBNAIL / 2, 1),
            "y": round(_down(one["y"]) - THUMBNAIL / 2, 1),
            **looks[one["class"]],
            "label": one["class"],
            "picture": add(one, THUMBNAIL),
        }
        for one in said["thumbnails"][:MOST_THUMBNAILS]
    ]
    wrong = sum(point["mistake"] for point in points)
    return {
        "width": MAP_WIDTH,
        "height": MAP_HEIGHT,
        "side": THUMBNAIL,
        "points": points,
        "thumbnails": thumbnails,
        "classes": [{"name": name, **looks[name]} for name in classes[:60]],
        "more_classes": max(0, len(classes) - 60),
        "method": said["method"],
        "trustworthiness": numbers.percent(said["trustworthiness"], 0),
        "alt": f"Map of {numbers.plural(len(points), 'picture')} of {numbers.plural(len(classes), 'class')} by "
        f"{said['method']}; {numbers.plural(wrong, 'mistake')} marked.",
    }


def _across(share: float) -> float:
    return round(MAP_PAD + share * (MAP_WIDTH - 2 * MAP_PAD), 1)


def _down(share: float) -> float:
    return round(MAP_HEIGHT - MAP_PAD - share * (MAP_HEIGHT - 2 * MAP_PAD), 1)
