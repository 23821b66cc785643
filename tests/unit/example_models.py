"""SavedModels that take ``tf.Example``: one with TensorFlow 1's method names, one of TensorFlow 2."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSIFY, REGRESS, PREDICT = (f"tensorflow/serving/{name}" for name in ("classify", "regress", "predict"))


@dataclass(frozen=True)
class LoadedModel:
    """What a server knows of a model: its ``SignatureDef`` by name, and how to run one."""

    definitions: Mapping[str, Any]
    run: Callable[[str, Mapping[str, Any]], dict[str, Any]]


def save_graph_model(path: Path) -> None:
    """Write a model of TensorFlow 1's kind: half of feature ``x`` plus 2 or 3, in signatures good and bad.

    All signatures but ``other_input`` share one input tensor, as MultiInference wants.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        examples, others = (v1.placeholder(tf.string, [None], name=n) for n in ("tf_example", "others"))
        x = _feature(examples)  # (n, 1)
        halved = v1.get_variable("factor", initializer=0.5, use_resource=True) * x
        scores = tf.concat([halved + 2.0, halved + 3.0], 1)
        classes = tf.tile(tf.constant([["two", "drei ✓"]]), [tf.shape(x)[0], 1])
        columns = {"classes": classes, "scores": scores}
        signatures = {
            "serving_default": (CLASSIFY, {"inputs": examples}, columns),
            "classes_only": (CLASSIFY, {"inputs": examples}, {"classes": classes}),
            "scores_only": (CLASSIFY, {"inputs": examples}, {"scores": scores}),
            "regress": (REGRESS, {"inputs": examples}, {"outputs": halved + 2.0}),
            "regress_flat": (REGRESS, {"inputs": examples}, {"outputs": (halved + 3.0)[:, 0]}),
            "other_input": (REGRESS, {"inputs": others}, {"outputs": _feature(others)}),
            "predict": (PREDICT, {"inputs": examples}, columns),
            # What no request for examples may use, or whose outputs break their rules:
            "named_x": (CLASSIFY, {"x": examples}, columns),
            "two_inputs": (CLASSIFY, {"inputs": examples, "others": others}, columns),
            "no_known_output": (CLASSIFY, {"inputs": examples}, {"y": scores}),
            "three_outputs": (CLASSIFY, {"inputs": examples}, {**columns, "y": scores}),
            "renamed": (REGRESS, {"inputs": examples}, {"y": halved}),
            "flat_scores": (CLASSIFY, {"inputs": examples}, {"scores": halved[:, 0]}),
            "wide": (REGRESS, {"inputs": examples}, {"outputs": scores}),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        describe = v1.saved_model.utils.build_tensor_info
        builder.add_meta_graph_and_variables(
            session,
            [v1.saved_model.tag_constants.SERVING],
            signature_def_map={
                name: v1.saved_model.build_signature_def(
                    {key: describe(tensor) for key, tensor in inputs.items()},
                    {key: describe(tensor) for key, tensor in outputs.items()},
                    method,
                )
                for name, (method, inputs, outputs) in signatures.items()
            },
        )
        builder.save()


def save_module(path: Path) -> None:
    """Write a ``tf.Module`` with the signatures ``classify`` and ``regress``: their method is predict."""
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def classify(self, inputs: Any) -> dict[str, Any]:
            x = _feature(inputs)
            classes = tf.tile(tf.constant([["no", "yes"]]), [tf.shape(x)[0], 1])
            return {"classes": classes, "scores": tf.concat([1.0 - x, x], 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def regress(self, inputs: Any) -> dict[str, Any]:
            return {"outputs": 2.0 * _feature(inputs)}

    module = Module()
    tf.saved_model.save(
        module, str(path), signatures={"classify": module.classify, "regress": module.regress}
    )


def load_model(path: Path) -> LoadedModel:
    """Read a model's signatures as written, and load it."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    definitions = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    model = tf.saved_model.load(str(path))

    def run(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        tensors = {key: tf.constant(value, tf.string) for key, value in inputs.items()}
        return {key: value.numpy() for key, value in model.signatures[name](**tensors).items()}

    return LoadedModel(dict(definitions.meta_graphs[0].signature_def), run)


def _feature(serialized: Any) -> Any:
    """The float feature ``x`` of every example, 0 where there is none: float32 of shape (n, 1)."""
    import tensorflow as tf

    default = np.zeros(1, np.float32)
    return tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32, default)})["x"]
