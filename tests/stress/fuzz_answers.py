"""Fuzz what the client makes of answers: ``python tests/stress/fuzz_answers.py -max_total_time=300 CORPUS``.

The first byte chooses: a JSON row of a REST answer, a tensor of a gRPC answer, a Retry-After, or a request of JSON.
"""

import json
import sys

import atheris

with atheris.instrument_imports(include=["graftflow", "email", "json"]):
    from google.protobuf.message import DecodeError

    from graftflow.errors import InputError, one_line
    from graftflow.serving import json_inputs, rest_client, tensor_values
    from graftflow.serving.messages import TensorProto
    from graftflow.serving.rankings import ranking
    from graftflow.serving.status import ServingError


def test_one_input(data: bytes) -> None:
    """Read the bytes in one of four ways; anything but a value, an InputError or a ServingError is a finding."""
    kind, rest = data[:1], data[1:]
    try:
        match kind:
            case b"j":
                try:
                    row = json.loads(rest)
                except (ValueError, RecursionError):
                    return
                ranking(row)
            case b"t":
                try:
                    proto = TensorProto.FromString(rest)
                except DecodeError:
                    return
                tensor_values.read(proto)
            case b"r":
                rest_client.retry_after(rest.decode("latin-1"))
            case _:
                document = json_inputs.parse_object(rest)
                json_inputs.read_inputs(
                    document, {"x": "float"} if kind == b"f" else {"x": "string", "y": "int64"}
                )
    except InputError as error:
        if str(error) != one_line(str(error)):
            raise RuntimeError(f"more than a line: {error!r}") from error
    except ServingError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
