"""The trade of adversarial training: what it withstands, and what that costs without attack."""

from collections.abc import Mapping, Sequence
from typing import Any

from graftflow.report import numbers
from graftflow.report.charts import Chart, Guide, Series, count_axis, percent_axis

_NAMES = {"head": "Head alone", "standard": "Fine-tuned as usual", "adversarial": "Fine-tuned under attack"}
_KINDS = {"fgsm": "FGSM from a random start", "pgd": "PGD"}


def training_trade(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tell what adversarial training won and lost, on validation pictures.

    Args:
        model: ``model.json``.

    Returns:
        What ``report_trade.jinja`` shows as ``trade``, or None where no network was trained so.
    """
    trade = model.get("trade")
    if not trade:
        return None
    delivered = {"fine-tuned": "adversarial"}.get(model["chosen"], model["chosen"])
    scores = {row["name"]: row for row in trade["models"]}
    epsilon = numbers.epsilon(trade["epsilon"])
    return {
        "epsilon": epsilon,
        "lead": _lead(model, scores, epsilon),
        "rows": [
            {
                "name": _NAMES[name],
                "accuracy": numbers.percent(row["accuracy"]),
                "robust": numbers.percent(row["robust_accuracy"]),
                "delivered": name == delivered,
            }
            for name, row in scores.items()
        ],
        "attack": f"{trade['attack']} with {numbers.plural(trade['steps'], 'step')}, "
        f"on {numbers.plural(trade['pictures'], 'validation picture')}",
        "collapsed": _collapse(trade["collapsed_epoch"]),
        "charts": _charts(model["history"], trade["least_accuracy"]) if model["history"] else [],
    }


def _lead(model: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]], epsilon: str) -> str:
    before, after = scores["head"], scores["adversarial"]
    robust, clean = (
        f"from {numbers.percent(before[key])} to {numbers.percent(after[key])}"
        for key in ("robust_accuracy", "accuracy")
    )
    kind = _KINDS[model["recipe"]["adversarial_training"]]
    change = (
        f"Training under attack ({kind}, ε = {epsilon}) took accuracy under attack {robust}, "
        f"and accuracy without one {clean}."
    )
    if model["chosen"] == "fine-tuned":
        return f"{change} The network trained so is delivered."
    if after["accuracy"] < model["trade"]["least_accuracy"]:
        least = numbers.percent(model["trade"]["least_accuracy"])
        return f"{change} Less than {least} without attack is too little: the head alone is delivered."
    return f"{change} That is no gain beyond noise: the head alone is delivered."


def _collapse(epoch: int | None) -> str:
    if epoch is None:
        return ""
    return (
        f"In epoch {epoch} the network lost more than half of what it had withstood (catastrophic overfitting to the "
        "attack that it was trained on); training ended there, and an earlier epoch counts."
    )


def _charts(history: Sequence[Mapping[str, float]], least: float) -> list[dict[str, Any]]:
    x = count_axis("epoch", [int(row["epoch"]) for row in history])
    clean, robust = (
        [row[key] for row in history] for key in ("validation_accuracy", "validation_robust_accuracy")
    )
    return [
        Chart(
            f"Accuracy {how}",
            f"Validation accuracy {how} over {numbers.plural(len(history), 'epoch')}: first "
            f"{numbers.percent(values[0])}, last {numbers.percent(values[-1])}, best {numbers.percent(max(values))}.",
            x,
            percent_axis("validation accuracy", [*values, low], numbers.short_percent),
            [Series(how, [(row["epoch"], v) for row, v in zip(history, values, strict=True)], colour)],
            guides,
        ).drawing()
        for how, values, low, colour, guides in (
            (
                "without attack",
                clean,
                least,
                0,
                (Guide((x.low, least), (x.high, least), "least that counts"),),
            ),
            ("under attack", robust, 1.0, 1, ()),
        )
    ]
