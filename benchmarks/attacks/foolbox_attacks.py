"""Foolbox' attacks on a TensorFlow model: as its manual says, or with the model compiled (``foolbox-compiled``)."""

from typing import Any

from benchmarks.attacks.worker import Array, Attack, Bench


def attacks_of(bench: Bench, library: str) -> dict[str, Attack]:
    """Return the attacks by name. Foolbox has neither Square nor APGD."""
    import foolbox
    import tensorflow as tf

    model = bench.model
    if library.endswith("compiled"):
        model = tf.function(lambda x: bench.model(x, training=False), reduce_retracing=True)
    fmodel = foolbox.TensorFlowModel(model, bounds=(0, 1))

    def attack(kind: Any, radius: float) -> Attack:
        def run(pixels: Array, labels: Array) -> Any:
            tf.random.set_seed(bench.seed)
            criterion = foolbox.criteria.Misclassification(tf.constant(labels))
            return kind(fmodel, tf.constant(pixels), criterion, epsilons=radius)[1].numpy()

        return run

    found = {"FGSM": attack(foolbox.attacks.LinfFastGradientAttack(), bench.epsilon)}
    for steps in (10, 40):
        pgd = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps, random_start=True)
        found[f"PGD-{steps}"] = attack(pgd, bench.epsilon)
    l2 = foolbox.attacks.L2PGD(rel_stepsize=2.5 / 40, steps=40, random_start=True)
    found["PGD-40 L2"] = attack(l2, bench.l2_radius)
    return found
