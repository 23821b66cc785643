"""Abuse of the real server process with batches: messages, tensors and pictures that are not what they claim."""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import classification_pb2

from tests.unit.abused_server import (
    GOOD,
    MIB,
    Abused,
    encoded,
    mutated,
    photograph,
    png,
    predict_request,
    save_model,
)
from tests.unit.serving_model import running_server

REFUSED = {"INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}


@pytest.fixture(scope="module")
def abused(tmp_path_factory):
    """A server with batching that all tests here share."""
    folder = tmp_path_factory.mktemp("batching")
    save_model(folder / "toy" / "1")
    with running_server(folder / "toy", folder / "log", "--enable_batching") as server:
        abused = Abused(server)
        yield abused
        abused.channel.close()
        assert "Traceback" not in server.log()


def tensor(dtype="DT_FLOAT", dims=(), content=b"", **values):
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DataType.Value(dtype), tensor_content=content)
    for size in dims:
        proto.tensor_shape.dim.add(size=size)
    for name, given in values.items():
        getattr(proto, name).extend(given)
    return proto


def code_of(abused, signature, **inputs):
    """The status that a request ends with, ``OK`` where it is answered."""
    try:
        abused.stub.Predict(predict_request(signature, **inputs), timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize(
    ("signature", "lie"),
    [
        ("any_shape", tensor(dims=(2**40,), float_val=[1])),
        ("any_shape", tensor(dims=(2**40, 2**40, 2**40), float_val=[1])),
        ("any_shape", tensor(dims=(0, 2**40))),
        ("any_rows", tensor(dims=(2**31, 0))),
        ("any_rows", tensor(dims=(2**62, 0))),
        ("any_shape", tensor(dims=(-1,), float_val=[1])),
        ("any_shape", tensor(dims=(-1, -1), float_val=[1])),
        ("any_shape", tensor(dims=(1,) * 300, float_val=[1])),
        ("any_shape", tensor(dims=(1,), float_val=[1, 2, 3])),
        ("any_shape", tensor(dims=(2,), content=b"abc")),
        ("any_shape", tensor(dims=(2**40,), content=b"abcd")),
        ("any_shape", tensor("DT_RESOURCE", (1,))),
        ("any_shape", tensor("DT_VARIANT", (1,))),
        ("any_shape", tensor("DT_INVALID", (1,))),
        ("any_shape", tensor("DT_STRING", (1,), string_val=[b"1"])),
        ("lengths", tensor("DT_STRING", (1,), content=b"\xff\xff\xff\xff\xff\xff")),
        ("lengths", tensor("DT_STRING", (1,), content=b"\xff\xff\xff\x7f")),
        ("lengths", tensor("DT_STRING", (2**40,), string_val=[b"a"])),
        ("lengths", tensor("DT_STRING", (2**22,), string_val=[b"a" * MIB])),
        ("lengths", tensor("DT_STRING", (1,), string_val=[b"a", b"b"])),
    ],
)
def test_a_tensor_that_lies_about_itself_is_refused(abused, signature, lie):
    with abused.unharmed(peak=128, after=64):
        assert code_of(abused, signature, x=lie) == "INVALID_ARGUMENT"


def test_a_dtype_that_is_none_and_thousands_of_inputs_are_refused(abused):
    unknown = tensor(dims=(1,), float_val=[1])
    unknown.dtype = 9999
    assert code_of(abused, "any_shape", x=unknown) == "INVALID_ARGUMENT"
    many = {f"x{i}": tensor(dims=(1,), float_val=[1]) for i in range(5000)}
    assert code_of(abused, "any_shape", **many) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "name", ["x" * MIB, "漢" * 4000, "\0\r\n" * 2000, "../../etc/passwd", "%2e%2e%2f" * 999]
)
def test_a_long_or_strange_name_gets_its_own_status(abused, name):
    with abused.unharmed(peak=128, after=64):
        assert code_of(abused, name, x=tensor()) == "FAILED_PRECONDITION"
        request = predict_request()
        for field, code in (("name", "NOT_FOUND"), ("version_label", "INVALID_ARGUMENT")):
            request.model_spec.name = "toy"
            setattr(request.model_spec, field, name)
            with pytest.raises(grpc.RpcError) as caught:
                abused.stub.Predict(request, timeout=20)
            assert caught.value.code().name == code
            request.Clear()


def raw_call(abused, method="Predict", timeout=60):
    return lambda content: abused.channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")(
        content, timeout=timeout
    )


@pytest.mark.parametrize("method", ["Predict", "Classify", "MultiInference", "GetModelMetadata"])
def test_mutated_messages_harm_nobody(abused, method):
    rng = np.random.default_rng(1)
    whole = predict_request(image_bytes=tensor("DT_STRING", (1,), string_val=[GOOD])).SerializeToString()
    short = predict_request("any_shape", x=tensor(dims=(2, 2), float_val=[1, 2, 3, 4])).SerializeToString()
    sent = [mutated((whole, short)[i % 2], rng) for i in range(200)]
    sent += [short[:length] for length in range(0, len(short), 2)]
    call, codes = raw_call(abused, method), set()

    def send(content):
        try:
            call(content)
        except grpc.RpcError as error:
            codes.add(error.code().name)

    with abused.unharmed(peak=256, after=128), ThreadPoolExecutor(4) as pool:
        list(pool.map(send, sent))
    assert codes
    assert codes <= REFUSED | {"UNIMPLEMENTED"}


def field(number, content):
    """A length-delimited field on the wire."""
    size, prefix = len(content), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes([size]) + content


def test_messages_that_grow_when_parsed_are_parsed_one_after_the_other(abused):
    """62 MiB of empty dimensions take 1.6 GB: four at the same time not four times as much."""
    spec = field(1, field(1, b"toy") + field(3, b"any_shape"))
    call = raw_call(abused)

    shape = field(2, b"\x08\x01" + field(2, b"\x12\x00" * (31 * MIB)))
    content = spec + field(2, field(1, b"x") + shape)

    def send(_):
        with pytest.raises(grpc.RpcError) as caught:
            call(content)
        return caught.value.code().name

    with abused.unharmed(peak=2600, after=600), ThreadPoolExecutor(3) as pool:
        assert list(pool.map(send, range(3))) == ["INVALID_ARGUMENT"] * 3


def test_messages_of_64_mib_are_answered_and_larger_ones_refused(abused):
    below = tensor("DT_STRING", (1,), string_val=[b"a" * (63 * MIB)])
    with abused.unharmed(peak=1200, after=600), ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: code_of(abused, "lengths", x=below), range(6))) == {"OK"}
        above = tensor("DT_STRING", (1,), string_val=[b"a" * (64 * MIB)])
        assert code_of(abused, "lengths", x=above) == "RESOURCE_EXHAUSTED"


def test_a_context_is_not_copied_for_ever(abused):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "toy", "example"
    listed = request.input.example_list_with_context
    listed.context.features.feature["c"].bytes_list.value.append(b"x" * MIB)
    for _ in range(20000):
        listed.examples.add()
    with abused.unharmed(peak=256, after=128), pytest.raises(grpc.RpcError, match="A context, once for each"):
        abused.stub.Classify(request, timeout=20)


def huge(kind):
    """Few bytes that claim 60,000 by 60,000 pixels."""
    if kind == "PNG":
        return png(60000, 60000, b"\0" * 99)
    if kind == "BMP":
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "BMP")
        data = bytearray(buffer.getvalue())
        data[18:26] = (60000).to_bytes(4, "little") * 2
        return bytes(data)
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "GIF" if kind == "GIF" else "JPEG")
    data = bytearray(buffer.getvalue())
    if kind == "GIF":
        data[6:10] = b"\xff\xff\xff\xff"
        at = data.index(b"\x2c")
        data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = b"\xea\x60\xea\x60"
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_thirty_two_bombs_are_refused_by_their_headers(abused, kind):
    bomb = huge(kind)
    assert len(bomb) < 2000
    with abused.unharmed(peak=256, after=128):
        status, document = abused.post({"instances": [encoded(bomb)] * 32})
        assert status == 400
        assert "picture must have at most 89,478,485 pixels" in document["error"]
        assert (
            code_of(abused, "", image_bytes=tensor("DT_STRING", (32,), string_val=[bomb] * 32))
            == "INVALID_ARGUMENT"
        )


def test_many_large_pictures_are_decoded_a_few_at_a_time(abused):
    """Each of 16 million pixels takes 48 MB as RGB; 32 would take 1.5 GB."""
    picture = png(4000, 4000)
    assert len(picture) < 20000
    with abused.unharmed(peak=700, after=400):
        status, document = abused.post({"instances": [encoded(picture)] * 32})
        assert status == 200, document
        assert len(document["predictions"]) == 32


def test_mutated_pictures_end_in_an_answer_or_an_error(abused):
    rng = np.random.default_rng(2)
    kinds = [GOOD, GOOD, png(40, 30, zlib.compress(rng.bytes(31 * 40)))]
    for kind in ("BMP", "GIF"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(GOOD)).save(buffer, kind)
        kinds.append(buffer.getvalue())
    sent = [mutated(kinds[i % len(kinds)], rng) for i in range(750)]
    sent += [GOOD[:length] for length in range(0, len(GOOD), 50)]
    with abused.unharmed(peak=700, after=400), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: abused.post({"instances": [encoded(data)]}), sent))
    assert {status for status, _ in answers} == {200, 400}
    for status, document in answers:
        assert list(document) == (["predictions"] if status == 200 else ["error"])


def test_a_bad_picture_is_its_own_requests_error_in_every_batch(abused):
    pictures = [photograph(seed) for seed in range(8)]
    alone = [abused.post({"instances": [encoded(p)]})[1]["predictions"] for p in pictures]
    bad = [GOOD[: len(GOOD) // 3], b"junk", huge("PNG"), b""]

    def ask(number):
        if number % 5 == 4:
            return abused.post({"instances": [encoded(GOOD), encoded(bad[number // 5 % 4])]})
        return abused.post({"instances": [encoded(pictures[number % 8])]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    for number, (status, document) in enumerate(answers):
        if number % 5 == 4:
            assert (status, list(document)) == (400, ["error"])
        else:
            assert status == 200
            for got, wanted in zip(document["predictions"], alone[number % 8], strict=True):
                np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], atol=1e-6)
