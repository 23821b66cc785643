"""Load on a model server, in a process of its own: ``python -m benchmarks.serving.load``; prints one line of JSON.

Requests are made once and sent as bytes, so that the client costs as little as it can.
"""

import argparse
import asyncio
import base64
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

Send = Callable[[int], Awaitable[None]]


def body(document: list[object]) -> bytes:
    """Return a REST request for instances; ``bytes`` become base64."""
    encoded = [
        {"b64": base64.b64encode(item).decode()} if isinstance(item, bytes) else item for item in document
    ]
    return json.dumps({"instances": encoded}).encode()


async def drive(send: Send, clients: int, seconds: float, limit: int) -> list[float]:
    """Keep ``clients`` requests under way for so many seconds, or ``limit`` requests; returns their seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        turn = number
        while time.perf_counter() < end and (not limit or len(times) < limit):
            started = time.perf_counter()
            await send(turn)
            times.append(time.perf_counter() - started)
            turn += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times


async def over_grpc(address: str, requests: list[bytes], given: argparse.Namespace) -> list[float]:
    """Drive PredictionService.Predict."""
    import grpc

    channels = [
        grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        for _ in range(min(given.clients, 4))
    ]
    calls = [channel.unary_unary("/tensorflow.serving.PredictionService/Predict") for channel in channels]

    async def send(turn: int) -> None:
        await calls[turn % len(calls)](requests[turn % len(requests)], timeout=60)

    await send(0)
    times = await drive(send, given.clients, given.seconds, given.requests)
    for channel in channels:
        await channel.close()
    return times


async def over_rest(url: str, requests: list[bytes], given: argparse.Namespace) -> list[float]:
    """Drive ``:predict``."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=given.clients)) as session:

        async def send(turn: int) -> None:
            async with session.post(url, data=requests[turn % len(requests)]) as response:
                content = await response.read()
                if response.status != 200:
                    raise RuntimeError(content[:300])

        await send(0)
        return await drive(send, given.clients, given.seconds, given.requests)


def main() -> None:
    """Run the load and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=("grpc", "rest"))
    parser.add_argument("where", help="address of gRPC, or URL of :predict")
    parser.add_argument("folder", type=Path, help="files, each one request")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--requests", type=int, default=0, help="stop after so many; 0 for none")
    given = parser.parse_args()
    requests = [file.read_bytes() for file in sorted(given.folder.iterdir())]
    run = over_grpc if given.transport == "grpc" else over_rest
    started = time.perf_counter()
    times = asyncio.run(run(given.where, requests, given))
    taken = time.perf_counter() - started
    json.dump(
        {
            "requests": len(times),
            # Clients that wait share the time: the rate of each, times their number.
            "per_second": given.clients / float(np.mean(times)),
            "p50_ms": 1e3 * float(np.percentile(times, 50)),
            "p99_ms": 1e3 * float(np.percentile(times, 99)),
            "seconds": taken,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
