"""Requests per second of OpenAI-compatible servers that run already, with several users at once.

    python -m eval.cost.serving --servers sparse=http://127.0.0.1:8000/v1 vllm=http://127.0.0.1:8001/v1

Each user sends one request after another: a question of easy-VQA about an image of its own, which no server has seen.
The servers get the same requests in turns, so a change of the machine's load affects all of them. They compete for
memory and cores while they wait, so stop what else runs. Writes FILE.json, FILE.md and FILE.png.
"""

import argparse
import base64
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import torch
from matplotlib.figure import Figure

from eval.benchmarks import easy_vqa
from eval.cost.arguments import add_output, add_repeats
from eval.cost.report import Section, check_report, publish
from sparse_vlm.command_line import CommandParser
from sparse_vlm.errors import UserError, one_line
from sparse_vlm.measure.timing import machine, require_positive, turns


@dataclass(frozen=True)
class Server:
    """A server to measure.

    Attributes:
        name: its name in the report.
        url: address of its API, which ends in /v1.
        model: the model's name in requests.
    """

    name: str
    url: str
    model: str


@dataclass
class Load:
    """What a server did with a number of users.

    Attributes:
        server: its name.
        users: number of users.
        seconds: seconds of each round.
        latencies: seconds of each request of all rounds.
        answers: the answer to each request of all rounds.
    """

    server: str
    users: int
    seconds: list[float]
    latencies: list[float]
    answers: list[str]

    @property
    def rate(self) -> float:
        """Requests per second over all rounds."""
        return len(self.answers) / sum(self.seconds)


def open_server(text: str) -> Server:
    """Ask the server that was typed as NAME=URL for its model.

    Raises:
        UserError: it is written otherwise, or does not answer.
    """
    name, equals, url = text.partition("=")
    if not equals or not name or not url.startswith(("http://", "https://")):
        raise UserError(f"A server is written NAME=URL, e.g. vllm=http://127.0.0.1:8000/v1, got {text!r}.")
    url = url.rstrip("/")
    try:
        reply = httpx.get(f"{url}/models", timeout=30).raise_for_status().json()
        return Server(name, url, reply["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"The server {name} does not list its models at {url}/models: {one_line(error)}.") from error


def requests_about(count: int) -> list[tuple[Path, str]]:
    """Choose `count` pairs of an image of easy-VQA and a question about it, each image once."""
    by_image: dict[Path, str] = {}
    for question in easy_vqa.load_questions(None, None):
        assert isinstance(question.image, Path)
        by_image.setdefault(question.image, question.text)
    if len(by_image) < count:
        raise UserError(f"easy-VQA has {len(by_image)} images, and {count} requests need one each: ask for fewer.")
    return list(by_image.items())[:count]


def ask(client: httpx.Client, server: Server, image: Path, question: str, new_tokens: int) -> tuple[str, float]:
    """Send one request. Returns the answer and its seconds.

    Raises:
        UserError: the server refuses it or fails.
    """
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": new_tokens,
        "temperature": 0,
    }
    start = time.perf_counter()
    try:
        reply = client.post(f"{server.url}/chat/completions", json=body)
        answer = reply.raise_for_status().json()["choices"][0]["message"]["content"]
    except httpx.HTTPStatusError as error:
        raise UserError(f"The server {server.name} refused a request: {error.response.text:.300}") from error
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise UserError(f"The server {server.name} did not answer: {one_line(error)}.") from error
    return answer.strip(), time.perf_counter() - start


def run_round(server: Server, users: int, asked: Sequence[tuple[Path, str]], new_tokens: int) -> Load:
    """Let users send all requests, each its next one as soon as it has an answer."""
    limits = httpx.Limits(max_connections=users)
    with httpx.Client(timeout=600, limits=limits) as client, ThreadPoolExecutor(users) as pool:
        start = time.perf_counter()
        replies = list(pool.map(lambda pair: ask(client, server, pair[0], pair[1], new_tokens), asked))
        seconds = time.perf_counter() - start
    return Load(server.name, users, [seconds], [each for _, each in replies], [answer for answer, _ in replies])


def measure(
    servers: Sequence[Server], users: Sequence[int], requests: int, new_tokens: int, repeats: int
) -> list[Load]:
    """Measure all servers with each number of users, in turns; one unrecorded round comes first."""
    pairs = requests_about(max(users) + requests * repeats * len(users))
    for server in servers:
        run_round(server, max(users), pairs[: max(users)], new_tokens)
    loads = []
    for place, count in enumerate(users):
        found = [Load(server.name, count, [], [], []) for server in servers]
        for number, index in turns(len(servers), repeats):
            first = max(users) + requests * (place * repeats + number)
            done = run_round(servers[index], count, pairs[first : first + requests], new_tokens)
            for field in ("seconds", "latencies", "answers"):
                getattr(found[index], field).extend(getattr(done, field))
        loads += found
    return loads


def section_of(loads: Sequence[Load], title: str) -> Section:
    """Tabulate the rates, and how many answers equal those of the first server."""
    rows = [["server", "users", "requests/s", "median seconds of a request", "answers as the first server's"]]
    first = {load.users: load.answers for load in reversed(loads)}
    for load in loads:
        same = sum(one == other for one, other in zip(load.answers, first[load.users], strict=True))
        latency = f"{statistics.median(load.latencies):.2f}"
        rows.append([load.server, str(load.users), f"{load.rate:.2f}", latency, f"{same} of {len(load.answers)}"])
    return Section(title, rows)


def figure_of(loads: Sequence[Load], title: str) -> Figure:
    """Draw requests per second over the number of users, a line for each server."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(load.server for load in loads):
        own = [load for load in loads if load.server == name]
        axes.plot([load.users for load in own], [load.rate for load in own], marker="o", label=name)
    axes.set(xlabel="users", ylabel="requests per second", ylim=(0, None))
    axes.set_title(title, fontsize=7)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, and return the exit status."""
    parser = CommandParser.of_module("eval.cost.serving", __doc__)
    parser.add_argument("--servers", nargs="+", required=True, metavar="NAME=URL", help="the servers, e.g. vllm=URL")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32], help="numbers of users (default: 1 8 32)")
    parser.add_argument("--requests", type=int, default=64, help="requests of a round (default: 64)")
    parser.add_argument("--new_tokens", type=int, default=8, help="most tokens of an answer (default: 8)")
    add_repeats(parser, 2)
    add_output(parser, "runs/bench/serving.json")
    return parser.run(_run, argv)


def _run(arguments: argparse.Namespace) -> None:
    check_report(arguments.output)
    sizes = {name: getattr(arguments, name) for name in ("requests", "new_tokens", "repeats")}
    require_positive(users=arguments.users, **sizes)
    servers = [open_server(text) for text in arguments.servers]
    if len({server.name for server in servers}) < len(servers):
        raise UserError("Two servers have the same name: give each its own.")
    loads = measure(servers, arguments.users, **sizes)
    title = f"Requests per second, {', '.join(f'{number} {what}' for what, number in sizes.items())}"
    results = [asdict(load) | {"requests_per_second": load.rate} for load in loads]
    values = {"machine": machine(torch.device("cpu")), "servers": [asdict(server) for server in servers], **sizes}
    publish(arguments.output, values | {"results": results}, [section_of(loads, title)], figure_of(loads, title))


if __name__ == "__main__":
    sys.exit(main())
