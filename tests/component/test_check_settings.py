"""A bad setting is refused by the first step, in one line."""

import pytest

from components.check_settings import check_settings
from graftflow.errors import InputError
from pipelines import parameters

GOOD = {**parameters.defaults(parameters.local_pipeline("python")), "store": "memory://models"}


def check(**changes: object) -> int:
    inputs = check_settings.component_spec.inputs
    return check_settings.python_func(**{name: {**GOOD, **changes}[name] for name in inputs})


def test_the_defaults_are_in_order() -> None:
    assert check() == len(check_settings.component_spec.inputs)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"epsilons": "-1/255"}, "-1/255"),
        ({"min_accuracy": 1.5}, "min_accuracy must be a fraction from 0 to 1. Received: 1.5"),
        ({"backbone": "resnet51"}, "backbone must be one of .*resnet50"),
        ({"dataset": "photos"}, "photos"),
        ({"ideal_classes": "zebra, Siamese cet"}, "Siamese cat"),
        ({"attack_pictures": 0}, "attack_pictures must be a whole number from 1"),
        ({"test_fraction": 0.0}, "test_fraction must be a fraction between 0 and 1"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(change: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        check(**change)
    assert "\n" not in str(caught.value)
