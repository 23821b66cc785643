"""graftflow as a user gets it: the steps up to the model, with the pipeline's defaults, in one process."""

import numpy as np

from benchmarks.side_by_side.stopwatch import Stopwatch, arguments

BACKBONE = "efficientnet_lite0"


def main() -> None:
    """Run the recipe and write its record."""
    settings = arguments()
    watch = Stopwatch(settings.started)
    from graftflow import datasets, features, heads, passes, training
    from graftflow.recipes import Recipe

    defaults = settings.defaults
    paths = {name: settings.scratch / name for name in ("dataset", "features", "head", "model")}
    for path in paths.values():
        path.mkdir()

    watch.enter("data")
    datasets.write_dataset(
        paths["dataset"],
        source=f"directory:{settings.data}",
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
    )
    watch.enter("train")
    features.write_features(
        paths["features"], dataset_path=paths["dataset"], backbone=BACKBONE, weights="imagenet"
    )
    head = heads.write_head(paths["head"], features_path=paths["features"])
    watch.validated("head", 1, head["validation_accuracy"], head["validation_log_loss"])
    result = watch.ready("graftflow, head")
    with watch.excluded():
        weights, test = (np.load(paths[p] / f) for p, f in (("head", "head.npz"), ("features", "test.npz")))
        logits = test["features"] @ weights["kernel"] + weights["bias"]
        watch.predicted(result, test["paths"].tolist(), np.exp(heads.log_softmax(logits)).tolist())
    model = training.write_model(
        paths["model"],
        dataset_path=paths["dataset"],
        head_path=paths["head"],
        weights="imagenet",
        num_blocks=defaults["fine_tune_blocks"],
        recipe=Recipe(
            epochs=1 if settings.quick else defaults["fine_tune_epochs"],
            learning_rate=defaults["learning_rate"],
            seed=settings.seed,
        ),
    )
    chosen = model["fine_tuned"] if model["chosen"] == "fine-tuned" else model["head"]
    watch.validated("fine-tuned", len(model["history"]), chosen["accuracy"], chosen["log_loss"])
    result = watch.ready("graftflow")

    watch.enter("evaluate")
    size = head["backbone"]["input_size"]
    function = passes.frozen_function(training.load_classifier(paths["model"]), size)
    names, probabilities = [], []
    for batch in features.pixels_of(paths["dataset"], "test", size, batch_size=64):
        names += [name.decode() for name in batch["path"].numpy()]
        probabilities += function(batch["pixels"]).numpy().tolist()
    watch.predicted(result, names, probabilities)
    watch.write(settings.record, distributions=("tensorflow", "keras"))


if __name__ == "__main__":
    main()
