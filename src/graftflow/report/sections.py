"""The page's sections about the run: verdict, training, use. Each returns what the template shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftflow.epsilons import parse_epsilon
from graftflow.report import numbers
from graftflow.report.artifacts import Artifacts
from graftflow.report.charts import (
    Axis,
    Chart,
    Guide,
    Series,
    count_axis,
    log_axis,
    percent_axis,
    power_of_ten,
)
from graftflow.report.learning import learning_curve_chart


@dataclass(frozen=True)
class RobustGate:
    """The gate on accuracy under attack.

    Attributes:
        least: its threshold, a fraction; 0 for no gate.
        epsilon: its L-infinity radius, a fraction or ``k/255``; empty for the largest that was tried.
    """

    least: float = 0.0
    epsilon: str = ""

    def judge(self, adversarial: Mapping[str, Any]) -> tuple[bool, str]:
        """Return whether a model passes, and the reason in a sentence, or ``""`` where there is no gate."""
        if not self.least:
            return True, ""
        wanted = round(255 * parse_epsilon(self.epsilon), 6) if self.epsilon else adversarial["epsilons"][-1]
        if not adversarial.get("believable", True):
            return False, "the checks of the attacks failed, which counts as an accuracy of 0 under attack"
        reached = adversarial["worst_case"]["accuracy"][adversarial["epsilons"].index(wanted)]
        passed = reached >= self.least
        shown, asked = numbers.percents_apart(reached, self.least)
        where = f"under attack at ε = {numbers.epsilon(wanted)}"
        return passed, f"{shown} {where} is {'at least' if passed else 'below'} the {asked} asked for"


def verdict(
    artifacts: Artifacts, min_accuracy: float, robust_gate: RobustGate = RobustGate()
) -> dict[str, Any]:
    """What a person sees first: accuracy, gates, model, version."""
    evaluation, model = artifacts["evaluation"], artifacts["model"]
    accuracy, classes = evaluation["metrics"]["accuracy"], evaluation["classes"]
    passed = accuracy["value"] >= min_accuracy
    reached, asked = numbers.percents_apart(accuracy["value"], min_accuracy)
    withstands, under_attack = robust_gate.judge(artifacts["adversarial"])
    gate = f"{reached} is {'at least' if passed else 'below'} the {asked} asked for"
    few = len(classes) <= 3 and sum(map(len, classes)) <= 30
    return {
        "title": f"{numbers.names(classes) if few else numbers.plural(len(classes), 'class')} "
        f"told apart with {numbers.percent(accuracy['value'])} accuracy",
        "accuracy": numbers.percent(accuracy["value"]),
        "interval": numbers.interval(accuracy),
        "confidence": numbers.short_percent(evaluation.get("confidence", 0.95)),
        "pictures": numbers.plural(evaluation["pictures"], "test picture"),
        "passed": passed and withstands,
        "gate": "; ".join(filter(None, (gate, under_attack))),
        "asked": asked,
        "gauge": _gauge(accuracy, min_accuracy),
        "note": artifacts["dataset"]["note"],
        "tuned": model["chosen"] == "fine-tuned",
        "unfrozen": numbers.plural(model["unfrozen_blocks"], "block"),
        "backbone": artifacts["saved_model"]["backbone"]["name"],
        "classes": numbers.plural(len(classes), "class"),
        "all_pictures": numbers.plural(
            sum(sum(split.values()) for split in artifacts["dataset"]["counts"].values()), "picture"
        ),
        "version": str(artifacts["saved_model"]["version"]),
    }


def worst_case(adversarial: Mapping[str, Any]) -> list[float]:
    """Return accuracy at each ε under the best of all attacks."""
    if worst := adversarial.get("worst_case"):
        return list(worst["accuracy"])
    curves = [attack["accuracy"] for attack in adversarial["attacks"] if not attack["targeted"]]
    return [min(values) for values in zip(*curves, strict=True)]


def _gauge(accuracy: Mapping[str, Any], min_accuracy: float) -> dict[str, Any]:
    """Places, in percent of its width, on a scale from a round number below everything to 100 %."""
    value = accuracy["value"]
    low = value if accuracy["low"] is None else accuracy["low"]
    high = value if accuracy["high"] is None else accuracy["high"]
    axis = percent_axis("", [low, min_accuracy - 0.01, value], numbers.short_percent)
    places = {
        name: round(100 * axis.place(v), 2)
        for name, v in (("low", low), ("high", high), ("value", value), ("gate", min_accuracy))
    }
    ticks = [{"at": round(100 * axis.place(t), 2), "label": axis.write(t)} for t in axis.ticks]
    return {**places, "ticks": ticks}


def training(artifacts: Artifacts) -> dict[str, Any]:
    """How the head was fitted and whether fine-tuning made it better."""
    head, model = artifacts["head"], artifacts["model"]
    tuned = model.get("fine_tuned")
    kind = "Perceptron" if head.get("type") == "mlp" else "Linear head"
    rows = [(f"{kind} on the frozen backbone", model["head"], model["chosen"] == "head")]
    if tuned:
        label = f"Last {numbers.plural(model['unfrozen_blocks'], 'block')} fine-tuned"
        rows.append((label, tuned, model["chosen"] == "fine-tuned"))
    return {
        "strengths": numbers.plural(len(head["path"]), "strength"),
        "chosen_c": power_of_ten(head["chosen_c"]),
        "path": _path_charts(head["path"], head["chosen_c"]),
        "rows": [
            {
                "name": name,
                "accuracy": numbers.percent(scores["accuracy"]),
                "log_loss": numbers.decimal(scores["log_loss"]),
                "delivered": delivered,
            }
            for name, scores, delivered in rows
        ],
        "outcome": _outcome(model, tuned),
        "learning_curve": learning_curve_chart(head.get("learning_curve", [])),
        "history": _history_charts(model) if model["history"] else [],
    }


def _outcome(model: Mapping[str, Any], tuned: Mapping[str, Any] | None) -> str:
    if not tuned:
        return "The backbone was not fine-tuned: the linear head is what is delivered."
    before, after = (numbers.decimal(s["log_loss"]) for s in (model["head"], tuned))
    change = f"log loss on the validation pictures went from {before} to {after}"
    if model["chosen"] == "fine-tuned":
        return f"Fine-tuning helped: {change}, so the fine-tuned network is delivered."
    return f"Fine-tuning did not help: {change}, so the head was kept and is what is delivered."


def _path_charts(path: Sequence[Mapping[str, float]], chosen: float) -> list[dict[str, Any]]:
    strengths = [point["c"] for point in path]
    losses = [point[key] for point in path for key in ("train_log_loss", "validation_log_loss")]
    accuracies = [point["validation_accuracy"] for point in path]
    x = log_axis("C, the inverse strength of the penalty", strengths, power_of_ten)
    loss_axis = log_axis("log loss", losses, _plain)
    accuracy_axis = percent_axis("validation accuracy", accuracies, numbers.short_percent)
    written = power_of_ten(chosen)
    best = next(point for point in path if point["c"] == chosen)

    def mark(y: Axis) -> tuple[Guide]:
        return (Guide((chosen, y.low), (chosen, y.high), "chosen"),)

    return [
        Chart(
            "Log loss",
            f"Log loss of the training and validation pictures over C. Chosen: C = {written}, "
            f"validation log loss {numbers.decimal(best['validation_log_loss'])}.",
            x,
            loss_axis,
            (
                _line("training", path, "c", "train_log_loss", colour=1, dashed=True),
                _line("validation", path, "c", "validation_log_loss"),
            ),
            mark(loss_axis),
        ).drawing(),
        Chart(
            "Accuracy",
            f"Validation accuracy over C. Chosen: C = {written}, "
            f"{numbers.percent(best['validation_accuracy'])}.",
            x,
            accuracy_axis,
            (_line("validation", path, "c", "validation_accuracy"),),
            mark(accuracy_axis),
        ).drawing(),
    ]


def _history_charts(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    history, before = model["history"], model["head"]
    epochs = [row["epoch"] for row in history]
    x = count_axis("epoch", epochs)
    losses = [row[key] for row in history for key in ("train_loss", "validation_log_loss")]
    accuracies = [row["validation_accuracy"] for row in history]
    best = min(history, key=lambda row: row["validation_log_loss"])

    def level(value: float) -> tuple[Guide]:
        return (Guide((x.low, value), (x.high, value), "head alone, validation"),)

    return [
        Chart(
            "Log loss",
            f"Training and validation loss over {len(epochs)} epochs; the validation loss is lowest "
            f"after epoch {best['epoch']}: {numbers.decimal(best['validation_log_loss'])}.",
            x,
            log_axis("log loss", [*losses, before["log_loss"]], _plain),
            (
                _line("training", history, "epoch", "train_loss", colour=1, dashed=True),
                _line("validation", history, "epoch", "validation_log_loss"),
            ),
            level(before["log_loss"]),
        ).drawing(),
        Chart(
            "Accuracy",
            f"Validation accuracy over {len(epochs)} epochs, from "
            f"{numbers.percent(accuracies[0])} to {numbers.percent(accuracies[-1])}; the head alone "
            f"has {numbers.percent(before['accuracy'])}.",
            x,
            percent_axis("validation accuracy", [*accuracies, before["accuracy"]], numbers.short_percent),
            (_line("validation", history, "epoch", "validation_accuracy"),),
            level(before["accuracy"]),
        ).drawing(),
    ]


def _line(
    name: str,
    rows: Sequence[Mapping[str, float]],
    x: str,
    y: str,
    *,
    colour: int = 0,
    dashed: bool = False,
) -> Series:
    return Series(name, [(row[x], row[y]) for row in rows], colour, dashed)


def _plain(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def provenance(artifacts: Artifacts) -> dict[str, Any]:
    """Versions, seeds and digests, and what does not fit together."""
    dataset, exported = artifacts["dataset"], artifacts["saved_model"]
    backbone = exported["backbone"]
    rows = [
        ("Data", dataset["source"]),
        ("Digest of the data's manifest", dataset["digest"]),
        ("Seed", str(dataset["seed"])),
        ("Backbone", f"{backbone['name']}, {backbone['input_size']} × {backbone['input_size']} px"),
        ("Weights", str(backbone["weights"])),
        ("SHA-256 of the weights", str(backbone["weights_sha256"] or numbers.NOTHING)),
        ("Preprocessing", backbone["preprocessing"]),
        ("Keras", backbone["keras"]),
        ("Version of the exported model", str(exported["version"])),
        ("SHA-256 of the exported model", exported["sha256"]),
    ]
    return {"rows": rows, "doubts": _doubts(artifacts)}


def _doubts(artifacts: Artifacts) -> list[str]:
    """Artifacts that come from different runs would make the page tell a story that never was."""
    digest, backbone = artifacts["dataset"]["digest"], artifacts["saved_model"]["backbone"]
    doubts = [
        f"The {name} artifact was made from another data set than the one shown here."
        for name in ("features", "head")
        if artifacts[name].get("dataset_digest", digest) != digest
    ]
    doubts += [
        f"The {name} artifact has another backbone than the exported model."
        for name in ("features", "head", "model")
        if artifacts[name].get("backbone", backbone) != backbone
    ]
    classes = artifacts["evaluation"]["classes"]
    if artifacts["saved_model"].get("classes", classes) != classes:
        doubts.append("The exported model has other classes than the ones evaluated here.")
    return doubts
