"""visualise_model: limit, its gradient steps at the cost of bare ones; peer, the lesson's loop, step by step."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.rows import Row
from benchmarks.steps.clocks import Setting, bare_passes, clocked, each, median, total

_CLASSES, _STEPS = ("Siamese cat", "zebra"), 128
# Of the lesson: steps, rate, weight of the total variation; and how many are timed.
_LESSON_STEPS, _LESSON_RATE, _LESSON_VARIATION, _TIMED = 1000, 1.0, 0.005, 20


@contextmanager
def _pieces() -> Iterator[Counter[str]]:
    """Yield how many gradients the explanations take in the block."""
    from graftflow.saliency import Explainer

    counts: Counter[str] = Counter()
    kept = Explainer._slopes

    def slopes(self: Any, picture: Any, grey: Any, label: int, middles: Any) -> Any:
        counts.update(gradient=len(middles))
        return kept(self, picture, grey, label, middles)

    Explainer._slopes = slopes  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Explainer._slopes = kept  # type: ignore[method-assign]


def measure(setting: Setting) -> tuple[list[Row], dict[str, Any]]:
    """Run the step with the defaults of a run, its limit, and the lesson's loop, in turns."""
    from graftflow import backbones
    from graftflow.training import load_classifier
    from graftflow.visualisation import write_visuals

    paths = setting.artifacts
    classifier = load_classifier(paths["model"])
    _, gradient, given = bare_passes(classifier)
    ascend, lesson = (
        _bare_ascent(classifier),
        _lesson(backbones.build_imagenet_classifier("efficientnet_lite0")),
    )
    steps, limits, lessons, rounds = [], [], [], []
    for _ in range(setting.rounds):
        folder = setting.fresh("visuals")

        def step(folder: Any = folder) -> Any:
            return write_visuals(
                folder,
                model_path=paths["model"],
                dataset_path=paths["dataset"],
                features_path=paths["features"],
                evaluation_path=paths["evaluation"],
                backbone_weights="imagenet",
                ideal_classes=_CLASSES,
                steps=_STEPS,
                seed=0,
            )

        with _pieces() as counts:
            found, taken = clocked(step)
        drawn = sum(row["steps"] for row in found["ideal"])
        bare = each(ascend, *given, batches=(2, 8)), each(gradient, *given)
        limit = total([bare[0].times(drawn), bare[1].times(counts["gradient"])])
        slow = clocked(lambda: [lesson() for _ in range(_TIMED)])[1].times(_LESSON_STEPS / _TIMED)
        steps.append(taken)
        limits.append(limit)
        lessons.append(slow)
        rounds.append(
            {
                "steps": drawn,
                "explanations": counts["gradient"],
                "step": vars(taken),
                "limit": vars(limit),
                "ascent": vars(bare[0]),
                "gradient": vars(bare[1]),
                "lesson": vars(slow),
                "probabilities": {row["class"]: row["probability"] for row in found["ideal"]},
            }
        )
    taken, limit, slow = median(steps), median(limits), median(lessons)
    note = f"{drawn} steps of ideal images and {counts['gradient']} gradients of explanations at the cost of bare ones"
    drawing = _drawing()
    peer = f"the lesson's {_LESSON_STEPS} steps"
    rows = [
        Row("visualise_model", "s", taken.seconds, limit=limit.seconds, goal=0.8, note=note),
        Row("visualise_model, CPU", "s", taken.cpu, limit=limit.cpu, note="seconds of all cores"),
        Row(
            "one ideal image",
            "s",
            drawing["seconds"],
            peers={peer: slow.seconds},
            ahead=True,
            note=f"building and compiling included, to p = {drawing['probability']:.3f}; of the lesson {_TIMED} steps "
            "were timed",
        ),
    ]
    return rows, {"rounds": rounds, "drawing": drawing}


def _bare_ascent(classifier: Any) -> Callable[..., Any]:
    """Compile the gradient that an ideal image climbs, for pixels: the network's and that of its layers' statistics."""
    import tensorflow as tf

    from graftflow.ideal_images import judge_of

    judge, side = judge_of(classifier), int(classifier.input_shape[1])

    @tf.function(input_signature=[tf.TensorSpec((None, side, side, 3)), tf.TensorSpec((None,), tf.int64)])
    def ascend(x: Any, y: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits, unnatural = judge(x)
            loss = unnatural - tf.gather(logits, y, batch_dims=1)
        return tape.gradient(loss, x)

    return ascend


def _lesson(classifier: Any) -> Callable[[], Any]:
    """Return one step of the lesson (Microsoft, AI for Beginners, lesson 8, "Ideal cat"), as it is written: eager."""
    import tensorflow as tf

    side = int(classifier.input_shape[1])
    start = np.random.default_rng(0).uniform(0, 1, (1, side, side, 3)).astype(np.float32)
    x, target = tf.Variable(start), tf.constant([284])

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.keras.losses.sparse_categorical_crossentropy(target, classifier(x))
            loss = loss + _LESSON_VARIATION * tf.image.total_variation(x)
        x.assign_sub(_LESSON_RATE * tape.gradient(loss, x))
        x.assign(tf.clip_by_value(x, 0.0, 1.0))

    return step


def _drawing() -> dict[str, float]:
    """Draw one class as ``make ideal`` does."""
    from graftflow import ideal_images

    drawing, taken = clocked(lambda: ideal_images.draw(_CLASSES[0], steps=_STEPS))
    return {"probability": drawing.probability, "seconds": taken.seconds, "cpu": taken.cpu}
