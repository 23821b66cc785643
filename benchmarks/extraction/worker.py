"""One contender, in a process of its own: ``python -m benchmarks.extraction.worker KIND JOB.json``.

It gets ready, with a pass that warms up, prints ``ready``, and then for every line that it reads makes one round and
prints it as JSON: ``pictures``, ``wall`` and ``cpu`` seconds (user and system, of all its threads).
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
SIZE = 224
Round = Callable[[], int]


def graftflow(job: dict[str, Any]) -> Round:
    """The loop of ``write_features``, the network built and folded: records in, rows out."""
    import numpy as np

    from graftflow import backbones, datasets, features, passes

    if not job.get("threads_for_all"):
        passes.share_cores()
    function = passes.frozen_function(backbones.build("efficientnet_lite0"), SIZE)
    wanted = np.ones(sum(datasets.split_size(job["dataset"], split) for split in SPLITS), bool)
    how = {name: job.get(name) for name in ("batch_size", "at_once", "decode_ahead")}
    if not how["decode_ahead"]:
        function = passes.decoding(function, SIZE)

    def go() -> int:
        rows = features.computed(job["dataset"], function, wanted=wanted, **how)
        return sum(len(places) for places, _ in rows)

    return go


def whole(job: dict[str, Any]) -> Round:
    """``write_features`` from its call to its end, without a cache; TensorFlow is imported before."""
    import tempfile

    from graftflow.features import write_features
    from graftflow.passes import share_cores

    def go() -> int:
        share_cores()
        with tempfile.TemporaryDirectory() as folder:
            told = write_features(
                folder, dataset_path=job["dataset"], backbone="efficientnet_lite0", weights="imagenet"
            )
        return int(told["computed"])

    return go


def decode(job: dict[str, Any]) -> Round:
    """Records read, decoded and resized as the served model does it, by ``tf.data`` or ``in_passes``; none is kept."""
    import numpy as np
    import tensorflow as tf

    from graftflow import datasets, features, passes, preprocessing

    # As few threads as cost least: what they spend on waiting for each other is no part of a limit.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    if job.get("in_passes"):
        wanted = np.ones(sum(datasets.split_size(job["dataset"], split) for split in SPLITS), bool)
        corners = passes.decoding(lambda pixels: pixels[:, 0, 0], SIZE)

        def in_passes() -> int:
            rows = features.computed(job["dataset"], corners, wanted=wanted)
            return sum(len(places) for places, _ in rows)

        return in_passes

    def go() -> int:
        records, *others = [datasets.read_split(job["dataset"], split) for split in SPLITS]
        for other in others:
            records = records.concatenate(other)
        pixels = records.map(lambda r: preprocessing.decode(r["image"], SIZE), tf.data.AUTOTUNE)
        return int(pixels.reduce(0, lambda n, _: n + 1))

    return go


def forward(job: dict[str, Any]) -> Round:
    """The frozen network alone on pictures that are decoded already, at ``batch_size``, ``at_once`` passes."""
    import tensorflow as tf

    if job.get("bfloat16"):
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    if job.get("threads"):
        tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    from graftflow import backbones, features, passes

    batch_size, again = job["batch_size"], 4
    model = backbones.build("efficientnet_lite0")
    if job.get("xla"):
        compiled = tf.function(lambda pixels: model(pixels, training=False), jit_compile=True)
    pixels = features.pixels_of(job["dataset"], "train", SIZE, batch_size=128).take(1)
    batches = list(pixels.map(lambda batch: batch["pixels"]).unbatch().batch(batch_size, drop_remainder=True))
    function = compiled if job.get("xla") else passes.frozen_function(model, SIZE)
    if job.get("rows"):
        import numpy as np

        np.save(job["rows"], np.concatenate([function(batch).numpy() for batch in batches]))

    def go() -> int:
        todo = enumerate(batches * again)
        rows = passes.side_by_side(function, todo, at_once=job.get("at_once", 1))
        return sum(len(found) for _, found in rows)

    return go


def keras(job: dict[str, Any]) -> Round:
    """``keras.Model.predict`` on ``image_dataset_from_directory``: the same weights and size, the same files.

    ``jit_compile=False``: Keras' default may be XLA, which is far slower on a CPU. Antialiasing is left out, as
    is Keras' default: the peer has less to do.
    """
    import keras as k

    from graftflow import backbones

    pixels = k.Input((SIZE, SIZE, 3))
    model = k.Model(pixels, backbones.build("efficientnet_lite0")(k.layers.Rescaling(1 / 255)(pixels)))
    model.compile(jit_compile=False)

    def go() -> int:
        files = k.utils.image_dataset_from_directory(
            job["pictures"], labels=None, image_size=(SIZE, SIZE), batch_size=64, shuffle=False, verbose=False
        )
        return len(model.predict(files, verbose=0))

    return go


def timm(job: dict[str, Any]) -> Round:
    """torch and timm with the same weights, under ``inference_mode``, in channels-last order, by two threads.

    One ``DataLoader`` worker decodes and resizes (Pillow, bilinear: it antialiases) while two threads compute.
    """
    import numpy as np
    import timm as models
    import torch
    from PIL import Image

    from benchmarks.side_by_side.timm_weights import ARCHITECTURE, under_timm_names

    torch.set_num_threads(os.cpu_count() or 1)
    network = models.create_model(ARCHITECTURE, pretrained=False).eval()
    network.load_state_dict(under_timm_names(Path(job["weights"])))
    network.reset_classifier(0)
    network = network.to(memory_format=torch.channels_last)

    class Pictures(torch.utils.data.Dataset):  # type: ignore[misc]
        files = sorted(Path(job["pictures"]).glob("*/*.jpg"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            picture = Image.open(self.files[index])
            picture = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())

    def go() -> int:
        count = 0
        with torch.inference_mode():
            loader = torch.utils.data.DataLoader(Pictures(), batch_size=16, num_workers=1)
            for batch in loader:
                pixels = ((batch.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
                count += len(network(pixels).numpy())
        return count

    return go


KINDS = {function.__name__: function for function in (graftflow, whole, decode, forward, keras, timm)}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Get ready and make a round for every line of the standard input."""
    kind, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    go = KINDS[kind](job)
    if kind != "whole":
        go()
    print("ready", flush=True)
    for _ in sys.stdin:
        started, worked = time.perf_counter(), _cpu()
        pictures = go()
        told = {"pictures": pictures, "wall": time.perf_counter() - started, "cpu": _cpu() - worked}
        told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
