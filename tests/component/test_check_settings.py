"""A bad setting is refused by the first step, in one line."""

import pytest

from components.check_settings import check_settings
from graftflow.errors import InputError
from pipelines import parameters

GOOD = {**parameters.defaults(parameters.local_pipeline("python")), "store": "memory://models"}


def check(**changes: object) -> list[int]:
    inputs = check_settings.component_spec.inputs
    return check_settings.python_func(**{name: {**GOOD, **changes}[name] for name in inputs})


def test_the_defaults_are_in_order() -> None:
    assert check() == [0]


def test_it_lists_the_shards_that_the_graph_loops_over() -> None:
    assert check(shards=3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"epsilons": "-1/255"}, "-1/255"),
        ({"min_accuracy": 1.5}, "min_accuracy must be a fraction from 0 to 1. Received: 1.5"),
        ({"backbone": "resnet51"}, "backbone must be one of .*resnet50"),
        ({"dataset": "photos"}, "photos"),
        ({"ideal_classes": "zebra, Siamese cet"}, "Siamese cat"),
        ({"attack_pictures": 0}, "attack_pictures must be a whole number from 1"),
        ({"head_type": "forest"}, "head_type must be one of linear, mlp. Received: 'forest'"),
        ({"class_weight": "cat=2"}, "class_weight must be one of balanced, none"),
        ({"fine_tune_views": -1}, "fine_tune_views must be a whole number from 0"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1. Received: 0"),
        ({"mixup": -0.1}, "mixup must be 0 or a positive number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
        ({"precision": "float8"}, "precision must be one of"),
        ({"augmentation": "wild"}, "augmentation must be one of light, none, strong"),
        ({"mirrors": "not an address"}, "not"),
        ({"shards": 0}, "shards must be a whole number from 1 to 1024. Received: 0"),
        ({"cache": "/dev/null/cache"}, "cache must be a folder that can be written"),
        ({"test_fraction": 0.0}, "test_fraction must be a fraction between 0 and 1"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(change: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        check(**change)
    assert "\n" not in str(caught.value)
