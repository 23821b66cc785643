"""scikit-learn on features: Keras' frozen network, then StandardScaler and LogisticRegressionCV with defaults."""

from typing import Any

import numpy as np

from benchmarks.side_by_side.keras_recipe import BATCH_SIZE, SIZE, base_model, pictures_of, rescaling
from benchmarks.side_by_side.stopwatch import Stopwatch, arguments


def main() -> None:
    """Run the recipe and write its record."""
    settings = arguments()
    watch = Stopwatch(settings.started)
    import keras
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    keras.utils.set_random_seed(settings.seed)
    watch.enter("data")
    splits = {name: pictures_of(settings.pictures / name) for name in ("train", "validation", "test")}

    watch.enter("train")
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(base_model(settings.weights)(rescaling()(inputs)))
    network = keras.Model(inputs, pooled)

    def arrays(split: str) -> tuple[Any, Any]:
        dataset, paths = splits[split]
        classes = sorted({path.split("/")[0] for path in paths})
        labels = np.array([classes.index(path.split("/")[0]) for path in paths])
        return network.predict(dataset.batch(BATCH_SIZE).prefetch(2), verbose=0), labels

    (train, labels), (validation, validation_labels) = arrays("train"), arrays("validation")
    one = make_pipeline(StandardScaler(), LogisticRegressionCV()).fit(train, labels)
    results = [watch.ready("sklearn")]
    with watch.excluded():
        guess = one.predict_proba(validation)
        correct = accuracy_score(validation_labels, guess.argmax(axis=1))
        watch.validated("fitted", 1, correct, log_loss(validation_labels, guess))
        # Cross-validation needs no validation split, so a user would fit on both.
        both = np.concatenate([train, validation]), np.concatenate([labels, validation_labels])
        two = make_pipeline(StandardScaler(), LogisticRegressionCV()).fit(*both)
        results.append(watch.ready("sklearn, on train and validation"))

    watch.enter("evaluate")
    test = arrays("test")[0]
    for result, model in zip(results, (one, two), strict=True):
        watch.predicted(result, splits["test"][1], model.predict_proba(test).tolist())
    watch.write(settings.record, distributions=("tensorflow", "keras", "scikit-learn"))


if __name__ == "__main__":
    main()
