"""The Adversarial Robustness Toolbox' attacks: as its manual says, or with the model compiled (``art-compiled``)."""

from typing import Any

import numpy as np

from benchmarks.attacks.worker import Array, Attack, Bench


def attacks_of(bench: Bench, library: str) -> dict[str, Attack]:
    """Return the attacks by name."""
    import tensorflow as tf
    from art.attacks import evasion
    from art.estimators.classification import TensorFlowV2Classifier

    model: Any = bench.model
    if library.endswith("compiled"):
        compiled = tf.function(lambda x: bench.model(x, training=False), reduce_retracing=True)

        def model(x: Any, training: bool = False) -> Any:
            return compiled(tf.cast(x, tf.float32))

    classifier = TensorFlowV2Classifier(
        model=model,
        nb_classes=bench.num_classes,
        input_shape=(bench.size, bench.size, 3),
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )

    def attack(make: Any) -> Attack:
        def run(pixels: Array, labels: Array) -> Any:
            np.random.seed(bench.seed)
            tf.random.set_seed(bench.seed)
            return make().generate(x=pixels, y=labels)

        return run

    epsilon, whole = bench.epsilon, {"batch_size": 32}
    quiet = {**whole, "verbose": False}

    def pgd(steps: int, radius: float, norm: Any) -> Attack:
        return attack(
            lambda: evasion.ProjectedGradientDescent(
                classifier,
                norm=norm,
                eps=radius,
                eps_step=2.5 * radius / steps,
                max_iter=steps,
                num_random_init=1,
                **quiet,
            )
        )

    def apgd(loss: str) -> Any:
        return evasion.AutoProjectedGradientDescent(
            classifier, norm=np.inf, eps=epsilon, eps_step=2 * epsilon, max_iter=40, nb_random_init=1,
            loss_type=loss, **quiet,
        )  # fmt: skip

    def square() -> Any:
        return evasion.SquareAttack(
            classifier, norm=np.inf, eps=epsilon, max_iter=bench.queries, nb_restarts=1, **quiet
        )

    def ensemble() -> Any:
        parts = [apgd("cross_entropy"), apgd("difference_logits_ratio"), square()]
        return evasion.AutoAttack(classifier, norm=np.inf, eps=epsilon, attacks=parts, batch_size=32)

    return {
        "FGSM": attack(lambda: evasion.FastGradientMethod(classifier, norm=np.inf, eps=epsilon, **whole)),
        "PGD-10": pgd(10, epsilon, np.inf),
        "PGD-40": pgd(40, epsilon, np.inf),
        "PGD-40 L2": pgd(40, bench.l2_radius, 2),
        "Square": attack(square),
        "ensemble": attack(ensemble),
    }
