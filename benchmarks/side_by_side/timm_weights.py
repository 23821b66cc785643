"""The package's EfficientNet-Lite0 weights under timm's names, and a check that they are right.

``python -m benchmarks.side_by_side.timm_weights WEIGHTS FOLDER`` prints the top-1 accuracy on ImageNet pictures named
``NNN_….jpg`` by their class.
"""

import sys
from pathlib import Path
from typing import Any

ARCHITECTURE = "tf_efficientnet_lite0"


def under_timm_names(path: Path) -> dict[str, Any]:
    """Read the package's torch weights for timm's ``tf_efficientnet_lite0``: the same modules in the same order.

    Raises:
        ValueError: a tensor is of another kind or shape than timm's at its place.
    """
    import timm
    import torch

    ours = torch.load(path, map_location="cpu", weights_only=True)
    theirs = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    for (name, tensor), (place, wanted) in zip(ours.items(), theirs.items(), strict=True):
        if name.rsplit(".", 1)[1] != place.rsplit(".", 1)[1] or tensor.shape != wanted.shape:
            raise ValueError(f"{place} {tuple(wanted.shape)} cannot be {name} {tuple(tensor.shape)}")
    return dict(zip(theirs, ours.values(), strict=True))


def top1(weights: Path, folder: Path) -> float:
    """Return the top-1 accuracy of timm's model with these weights and timm's own transform, a fraction."""
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(ARCHITECTURE, pretrained=False).eval()
    model.load_state_dict(under_timm_names(weights))
    transform = create_transform(**resolve_data_config({}, model=model))
    files = sorted(folder.glob("*.jpg"))
    with torch.inference_mode():
        pixels = (transform(Image.open(file).convert("RGB"))[None] for file in files)
        hits = [int(model(x).argmax()) == int(f.name[:3]) for x, f in zip(pixels, files, strict=True)]
    return sum(hits) / len(hits)


if __name__ == "__main__":
    print(f"top-1 {top1(Path(sys.argv[1]), Path(sys.argv[2])):.3f}")
