"""The report tells what training under attack won and lost, in numbers that stand in model.json."""

import pytest
from jinja2 import Environment, PackageLoader, StrictUndefined

from graftflow.report.training_trade import training_trade


def model_of(chosen: str = "fine-tuned", *, accuracy: float = 0.93, collapsed: int | None = None) -> dict:
    figures = {"head": (0.98, 0.0), "standard": (0.99, 0.012), "adversarial": (accuracy, 0.37)}
    return {
        "chosen": chosen,
        "recipe": {"adversarial_training": "fgsm"},
        "history": [
            {"epoch": 1, "validation_accuracy": 0.95, "validation_robust_accuracy": 0.1},
            {"epoch": 2, "validation_accuracy": accuracy, "validation_robust_accuracy": 0.37},
        ],
        "trade": {
            "attack": "PGD",
            "steps": 10,
            "epsilon": 2.0,
            "pictures": 120,
            "models": [
                {"name": name, "accuracy": clean, "robust_accuracy": robust}
                for name, (clean, robust) in figures.items()
            ],
            "least_accuracy": 0.92,
            "collapsed_epoch": collapsed,
        },
    }


def page_of(model: dict) -> str:
    environment = Environment(loader=PackageLoader("graftflow"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report_trade.jinja").render(trade=training_trade(model))
    return page.replace("\N{NO-BREAK SPACE}", " ")


def test_all_three_models_are_compared_and_the_delivered_one_is_marked() -> None:
    page = page_of(model_of())
    rows = [row for row in page.split("<tr") if "Fine-tuned under attack" in row]
    assert ["93.0 %" in rows[0], "37.0 %" in rows[0], "delivered" in rows[0]] == [True] * 3
    assert page.count('class="tag"') == 1
    assert "ε = 2/255" in page
    assert "from 0 % to 37.0 %" in page
    assert "1.2 %" in page
    assert "PGD with 10 steps, on 120 validation pictures" in page
    assert "Collapsed" not in page
    assert page.count("<polyline") == 2


@pytest.mark.parametrize(
    ("accuracy", "reason"),
    [(0.9, "Less than 92.0 % without attack is too little"), (0.95, "no gain beyond noise")],
)
def test_a_network_that_is_not_delivered_is_told_why(accuracy: float, reason: str) -> None:
    page = page_of(model_of("head", accuracy=accuracy))
    assert reason in page
    (delivered,) = [row for row in page.split("<tr") if 'class="tag"' in row]
    assert "Head alone" in delivered


def test_a_collapse_is_told() -> None:
    assert "In epoch 2 the network lost more than half" in page_of(model_of(collapsed=2))


def test_usual_training_has_no_trade() -> None:
    assert training_trade({**model_of(), "trade": None}) is None
    old = {name: value for name, value in model_of().items() if name != "trade"}
    assert training_trade(old) is None
