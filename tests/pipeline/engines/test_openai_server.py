"""The `openai` captioner against a real HTTP server: what is sent, what is repeated, what costs a row, what stops."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe import QUESTION
from c2vl_manifests.recipe_loading import engine_preset, load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Caption, Crop
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import decode_jpeg
from c2vl_pipeline.stages import caption, crop, index, skeletons

SHADES = (20, 60, 100, 140, 180, 220)
"""Plain crops: their shade tells them apart on the server's side, JPEG or not."""


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the body."""
    hang: bool = False
    """Say nothing until the test is over."""
    drips: bytes | None = None
    """Send this at once, then one letter after the other until the test is over."""
    floods: tuple[bytes, bytes] | None = None
    """Send the first, then the second again and again without a pause until nobody listens."""


def completion(text: Any, tokens: int | None = 5, finish: str = "stop") -> Reply:
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "llava",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }
    if tokens is not None:
        body["usage"] = {"prompt_tokens": 600, "completion_tokens": tokens, "total_tokens": 600 + tokens}
    return Reply(body=json.dumps(body).encode())


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "t", "code": status}}).encode()
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def shade(request: dict[str, Any]) -> int:
    """The nearest of SHADES to the first picture of a request; 127 for the plain grey one, 0 for none."""
    if request["messages"][0]["content"][0]["type"] == "text":
        return 0
    mean = float(pixels(request).mean())
    return min((*SHADES, 127), key=lambda s: abs(s - mean))


def pixels(request: dict[str, Any]) -> Any:
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head in {"data:image/jpeg;base64", "data:image/png;base64"}
    return decode_jpeg(base64.b64decode(data))


class Server:
    """A server whose answers a test scripts: `answer(request, how many times this shade was asked)`."""

    def __init__(self, port: int = 0) -> None:
        self.answer: Callable[[dict[str, Any], int], Reply] = lambda request, _: completion(f"shade {shade(request)}")
        self.models: list[Any] = ["llava"]
        self.listing: Reply | None = None
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.times: Counter[int] = Counter()
        self.under_way = self.most_under_way = 0
        self.over = threading.Event()
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                data = [{"id": name, "object": "model"} for name in server.models]
                listed = Reply(body=json.dumps({"object": "list", "data": data}).encode())
                self.send((server.listing or listed) if self.path == "/v1/models" else refusal(404))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.asked.append((request, {k.lower(): v for k, v in self.headers.items()}))
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                    server.times[shade(request)] += 1
                    nth = server.times[shade(request)]
                try:
                    reply = refusal(404) if self.path != "/v1/chat/completions" else server.answer(request, nth)
                finally:
                    with lock:
                        server.under_way -= 1
                self.send(reply)

            def send(self, reply: Reply) -> None:
                if reply.hang:
                    server.over.wait(60)
                    self.close_connection = True
                    return
                if reply.drips is not None:
                    self.close_connection = True
                    with suppress(OSError):
                        self.wfile.write(b"HTTP/1.1 %d OK\r\n" % reply.status + reply.drips)
                        while not server.over.wait(0.1):
                            self.wfile.write(b"a")
                    return
                if reply.floods is not None:
                    self.close_connection = True
                    with suppress(OSError):
                        self.wfile.write(reply.floods[0])
                        while not server.over.is_set():
                            self.wfile.write(reply.floods[1])
                    return
                body = reply.body or b""
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.cut else body)
                if reply.cut:
                    self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between repetitions: noted, not slept."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return taken


def spec(server: Server | str, model: str | None = "llava", **options: Any) -> EngineSpec:
    url = server if isinstance(server, str) else server.url
    options = {"base_url": url, "retries": 3, "concurrency": 4} | options
    return EngineSpec(role="captioner", backend="openai", model=model, options=options)


def engine(server: Server | str, model: str | None = "llava", **options: Any) -> Any:
    return engines.load(spec(server, model, **options))


def crops(*shades: int, size: tuple[int, int] = (24, 24)) -> list[Crop]:
    return [
        Crop(np.full((*size, 3), value, np.uint8), "S001C001P001R001A001", slot) for slot, value in enumerate(shades)
    ]


def texts(answers: list[Any]) -> list[str]:
    return [a.text if isinstance(a, Caption) else type(a).__name__ for a in answers]


# -------------------------------------------------------------------------------------------- what is sent


def test_a_request_asks_greedily_with_picture_and_question(server: Server) -> None:
    engine(server, max_new_tokens=17).caption(crops(60), QUESTION)
    ((request, headers),) = server.asked
    assert request["model"] == "llava"
    assert request["temperature"] == 0
    assert request["max_tokens"] == 17
    (message,) = request["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == QUESTION
    assert headers["authorization"] == "Bearer EMPTY"


def test_sent_pixels_are_the_crop_up_to_jpeg(server: Server) -> None:
    rows, columns = np.mgrid[0:48, 0:32]
    image = np.stack([rows * 5, columns * 7, 255 - rows * 3], -1).astype(np.uint8)  # smooth, and no two channels alike
    engine(server).caption([Crop(image, "a", 0)], "?")
    received = pixels(server.asked[0][0])
    assert received.shape == image.shape
    assert np.abs(received.astype(int) - image).mean() < 3


def test_a_png_has_the_pixels_of_the_crop(server: Server) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    engine(server, image_format="png").caption([Crop(image, "a", 0)], "?")
    assert np.array_equal(pixels(server.asked[0][0]), image)
    assert engines.key_facts(spec(server, image_format="png")) != engines.key_facts(spec(server))


def test_a_clip_is_one_request_with_its_pictures_in_order(server: Server) -> None:
    first, *later = crops(20, 140, 60)
    answers = engine(server).caption([replace(first, later=tuple(crop.image for crop in later)), first], "What?")
    assert texts(answers) == ["shade 20", "shade 20"]
    (request,) = [request for request, _ in server.asked if len(request["messages"][0]["content"]) == 4]
    parts = request["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 3 + ["text"]
    seen = [decode_jpeg(base64.b64decode(part["image_url"]["url"].partition(",")[2])).mean() for part in parts[:3]]
    assert seen == pytest.approx([20, 140, 60], abs=2)


def test_a_prompt_without_a_picture_is_answered_and_one_that_is_refused_costs_its_row(server: Server) -> None:
    def answer(request: dict[str, Any], _: int) -> Reply:
        text = request["messages"][0]["content"][0]["text"]
        return refusal(400) if text == "bad" else completion(f"said {text}")

    server.answer = answer
    assert texts(engine(server).complete(["a", "bad", "b"])) == ["said a", "RefusedError", "said b"]


def test_large_crops_are_reduced_only_on_request(server: Server) -> None:
    large = crops(60, size=(40, 20))
    engine(server).caption(large, "?")
    engine(server, max_side=32).caption(large, "?")
    engine(server, max_side=64).caption(large, "?")
    assert [pixels(request).shape for request, _ in server.asked] == [(40, 20, 3), (32, 16, 3), (40, 20, 3)]


def test_the_key_is_sent_and_kept_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret\n")
    asked = spec(server, api_key_env="MY_KEY")
    served = engines.load(asked)
    served.caption(crops(60), "?")
    assert server.asked[0][1]["authorization"] == "Bearer s3cret"
    kept = json.dumps([dict(served.describe()), engines.key_facts(asked), engines.weights_id(asked)]) + asked.key()
    assert "s3cret" not in kept


def test_another_key_of_the_environment_is_not_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-somebody-else")
    engine(server, api_key_env="UNSET_KEY").caption(crops(60), "?")
    assert "for-somebody-else" not in json.dumps(server.asked[0][1])


# --------------------------------------------------------------------------------------------- answers


def test_answers_are_in_order_whatever_order_they_come_in(server: Server) -> None:
    last_was_asked = threading.Event()

    def answer(request: dict[str, Any], nth: int) -> Reply:
        if shade(request) == SHADES[-1]:
            last_was_asked.set()
        elif shade(request) == SHADES[0]:
            assert last_was_asked.wait(30)
        return completion(f"shade {shade(request)}")

    server.answer = answer
    answers = engine(server, concurrency=2).caption(crops(*SHADES), "?")
    assert texts(answers) == [f"shade {value}" for value in SHADES]


def test_no_more_requests_are_under_way_than_allowed_and_that_many_are(server: Server) -> None:
    together = threading.Barrier(3)

    def answer(request: dict[str, Any], nth: int) -> Reply:
        together.wait(30)  # passes only when three are under way at once
        server.over.wait(0.2)  # time for a fourth to show itself
        return completion("ok")

    server.answer = answer
    assert texts(engine(server, concurrency=3).caption(crops(*SHADES), "?")) == ["ok"] * 6
    assert server.most_under_way == 3


def test_an_answer_cut_by_its_length_is_an_answer(server: Server) -> None:
    server.answer = lambda request, _: completion(" He is standing and ", 64, "length")
    assert engine(server).caption(crops(60), "?") == [Caption("He is standing and", 64)]


def test_tokens_are_words_where_the_server_does_not_count(server: Server) -> None:
    server.answer = lambda request, _: completion("He is standing.", None)
    assert engine(server).caption(crops(60), "?") == [Caption("He is standing.", 3)]


@pytest.mark.parametrize("silence", ["", "  ", None])
def test_an_empty_answer_is_an_answer_and_not_repeated(server: Server, silence: str | None) -> None:
    server.answer = lambda request, _: completion(silence, 1)
    assert engine(server).caption(crops(60), "?") == [Caption("", 1)]
    assert len(server.asked) == 1


def test_nothing_asked_is_nothing_answered(server: Server) -> None:
    assert engine(server).caption([], "?") == []
    assert server.asked == []


# ------------------------------------------------------------------------------------ what passes by itself


def test_the_pause_a_busy_server_asks_for_is_taken(server: Server, naps: list[float]) -> None:
    server.answer = lambda request, nth: refusal(429, Retry_After="7") if nth == 1 else completion("ok")
    assert texts(engine(server).caption(crops(60), "?")) == ["ok"]
    assert naps == [7.0]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("500", refusal(500)),
        ("503", refusal(503)),
        ("half an answer", Reply(200, completion("half").body, cut=True)),
        ("no JSON", Reply(200, b"{nope")),
        ("an empty body", Reply(200, b"")),
        ("another object", Reply(200, b'{"hello": 1}')),
        ("a list", Reply(200, b"[1]")),
        ("no choice", Reply(200, b'{"choices": []}')),
        ("content of another type", completion([{"type": "text", "text": "?"}])),
    ],
)
def test_two_faults_are_repeated_with_growing_pauses(server: Server, naps: list[float], name: str, bad: Reply) -> None:
    server.answer = lambda request, nth: bad if nth <= 2 else completion("ok")
    assert texts(engine(server).caption(crops(60), "?")) == ["ok"]
    assert len(server.asked) == 3
    assert len(naps) == 2
    assert 0 < naps[0] < naps[1]


def test_a_hang_is_repeated(server: Server) -> None:
    server.answer = lambda request, nth: Reply(hang=True) if nth == 1 else completion("ok")
    assert texts(engine(server, timeout=0.3).caption(crops(60), "?")) == ["ok"]
    assert len(server.asked) == 2


# ----------------------------------------------------------------------------------------- what costs a row


@pytest.mark.parametrize(
    ("bad", "error", "says", "times"),
    [
        (refusal(400, "image too odd"), "RefusedError", "image too odd", 1),
        (refusal(413, "too large"), "RefusedError", "too large", 1),
        (refusal(422, "unprocessable"), "RefusedError", "unprocessable", 1),
        (refusal(500, "it broke"), "UnansweredError", "it broke", 4),
        (Reply(400, b'{"detail": "The model `llava` is not served"}'), "RefusedError", "is not served", 1),
        (Reply(400, b'{"error": "pinned to another name"}'), "RefusedError", "pinned to another name", 1),
        (Reply(400, b"<p>no\n such model</p>"), "RefusedError", "no such model", 1),
        (Reply(200, completion("x").body, cut=True), "UnansweredError", "Protocol", 4),
        (Reply(200, b"{nope"), "UnansweredError", "not a chat completion", 4),
        (Reply(200, b'{"choices": null}'), "UnansweredError", "not a chat completion", 4),
    ],
)
def test_a_fault_of_one_crop_costs_its_row(server: Server, bad: Reply, error: str, says: str, times: int) -> None:
    server.answer = lambda request, nth: bad if shade(request) == 100 else completion("ok")
    answers = engine(server).caption(crops(20, 60, 100, 140), "?")
    assert texts(answers) == ["ok", "ok", error, "ok"]
    assert says in str(answers[2])
    assert "\n" not in str(answers[2])
    assert server.times[100] == times


def test_a_crop_over_which_the_server_hangs_costs_its_row(server: Server) -> None:
    server.answer = lambda request, nth: Reply(hang=True) if shade(request) == 100 else completion("ok")
    answers = engine(server, timeout=0.3, retries=1).caption(crops(20, 100), "?")
    assert texts(answers) == ["ok", "UnansweredError"]
    assert "timed out" in str(answers[1])


def test_crops_that_all_fail_cost_their_rows_when_a_plain_picture_is_answered(server: Server) -> None:
    server.answer = lambda request, nth: completion("grey") if shade(request) == 127 else refusal(400)
    assert texts(engine(server).caption(crops(20, 100), "?")) == ["RefusedError"] * 2


def test_a_server_that_comes_back_in_time_costs_nothing(server: Server) -> None:
    server.answer = lambda request, nth: completion("ok") if shade(request) == 127 or nth > 4 else refusal(502)
    assert texts(engine(server).caption(crops(20, 100), "?")) == ["ok", "ok"]


# -------------------------------------------------------------------------------------- what stops the stage


@pytest.mark.parametrize(
    "bad", [refusal(500), refusal(400, "not a multimodal model"), Reply(200, b"{nope"), Reply(200, b"", cut=True)]
)
def test_a_server_that_answers_nothing_stops_the_stage(server: Server, bad: Reply) -> None:
    server.answer = lambda request, nth: bad
    with pytest.raises(EngineError) as caught:
        engine(server).caption(crops(20, 60), "?")
    line(caught.value, server.url, "none of 2 crops", "plain grey picture", "finished rows stay", "run")


def test_a_server_that_hangs_over_everything_stops_the_stage(server: Server) -> None:
    server.answer = lambda request, nth: Reply(hang=True)
    with pytest.raises(EngineError, match=r"none of 2 crops.*timed out"):
        engine(server, timeout=0.2, retries=0).caption(crops(20, 60), "?")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (refusal(401), "OPENAI_API_KEY"),
        (refusal(403), "rejects the key"),
        (refusal(404, "The model does not exist"), "has no model 'llava'"),
        (refusal(429), "lower options.concurrency"),
    ],
)
def test_what_is_not_about_a_crop_stops_the_stage_even_if_others_are_answered(
    server: Server, bad: Reply, says: str
) -> None:
    server.answer = lambda request, nth: bad if shade(request) == 100 else completion("ok")
    with pytest.raises(EngineError) as caught:
        engine(server).caption(crops(20, 100, 140), "?")
    line(caught.value, server.url, says, "finished rows stay")


def test_a_server_that_is_not_there_stops_the_stage(server: Server) -> None:
    server.close()
    with pytest.raises(EngineError) as caught:
        engine(server).caption(crops(20, 60), "?")
    line(caught.value, server.url, "is unreachable", "start it", "base_url", "run")


def test_a_server_that_dies_midway_stops_the_stage_and_fails_no_row(server: Server) -> None:
    def answer(request: dict[str, Any], nth: int) -> Reply:
        if shade(request) == SHADES[3]:
            server.http.socket.close()  # what is open stays open, nobody new comes in
            return Reply(200, completion("x").body, {"connection": "close"}, cut=True)
        return Reply(200, completion("ok").body, {"connection": "close"})

    server.answer = answer
    with pytest.raises(EngineError, match="is unreachable"):
        engine(server, concurrency=1).caption(crops(*SHADES), "?")


def test_an_address_without_chat_completions_stops_the_stage(server: Server) -> None:
    with pytest.raises(EngineError, match=r"ends in /v1"):
        engine(server.url.removesuffix("/v1")).caption(crops(20), "?")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<title>Hello</title>", b"\xef\xbb\xbf\n <html lang=en><p>Hello"])
@pytest.mark.parametrize("model", ["llava", None])
def test_an_address_that_answers_a_web_page_stops_the_stage(server: Server, page: bytes, model: str | None) -> None:
    server.listing = Reply(200, page)
    server.answer = lambda request, nth: Reply(200, page)
    with pytest.raises(EngineError) as caught:
        engine(server, model).caption(crops(20, 60), "?")
    line(
        caught.value,
        f"{server.url} answered a web page",
        "usually ends in /v1, in pipeline.caption.engine.options.base_url",
    )
    assert set(server.times.values()) <= {1}


def line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


# ------------------------------------------------------------------------------ what a server may not do to us

KEY = "sk-Secret/0123456789+abc"
PACKED = {"gzip": gzip.compress(b" " * 30_000_000), "deflate": zlib.compress(b" " * 30_000_000)}


def echoes(key: str) -> dict[str, str]:
    """The key as JSON text: plain, in other cases, and escaped."""
    plain = json.dumps(f"it was Bearer {key}, wasn't it?")
    letters = "".join(f"\\u{ord(letter):04x}" for letter in key)
    return {
        "plain": plain,
        "upper": plain.replace(key, key.upper()),
        "slashes": plain.replace("/", "\\/"),
        "escapes": plain.replace(key, letters),
        "address": plain.replace("/", "%2F").replace("+", "%2b"),
    }


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def has_no_key(text: str) -> None:
    assert "***" in text
    assert "0123456789" not in text
    assert "secret" not in text.lower()


@pytest.mark.parametrize("way", echoes(KEY))
def test_a_key_that_the_server_repeats_is_nowhere(server: Server, secret: str, way: str) -> None:
    said = echoes(secret)[way]
    answer = completion("REPLACED").body or b""
    server.answer = lambda request, _: Reply(body=answer.replace(b'"REPLACED"', said.encode()))
    (caption_,) = engine(server).caption(crops(60), "?")
    has_no_key(caption_.text)
    assert caption_.text.startswith("it was Bearer ***, wasn")
    for body in (f'{{"error": {{"message": {said}}}}}', f'{{"detail": {said}}}', said, f"<p>{said}</p>"):
        server.answer = lambda request, _, body=body: (
            Reply(400, body.encode()) if shade(request) == 60 else completion("ok")
        )
        row, _ = engine(server).caption(crops(60, 100), "?")
        has_no_key(str(row))
        server.answer = lambda request, _, body=body: Reply(401, body.encode())
        with pytest.raises(EngineError, match="rejects the key") as caught:
            engine(server).caption(crops(60), "?")
        has_no_key(str(caught.value))
    server.listing = Reply(body=b'{"data": [{"id": %s}]}' % said.encode())
    has_no_key(engines.weights_id(spec(server, None))["model_served"])
    server.listing = Reply(body=b'{"data": [{"id": %s}, {"id": "b"}]}' % said.encode())
    with pytest.raises(EngineError, match="serves 2 models") as caught:
        engines.weights_id(spec(server, None))
    has_no_key(str(caught.value))


def test_values_of_further_headers_are_secrets_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gate: gate-123456\nAuthorization: Bearer pass-123456")
    server.answer = lambda request, _: completion(f"{server.asked[-1][1]['x-gate']} pass-123456")
    assert texts(engine(server).caption(crops(60), "?")) == ["*** ***"]


@pytest.mark.parametrize("word", ["EMPTY", "x", "none", "sitting"])
def test_a_word_that_stands_for_no_key_stays_a_word(server: Server, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", word)
    server.answer = lambda request, _: completion(f"A box, {word} on a mat.")
    assert texts(engine(server).caption(crops(60), "?")) == [f"A box, {word} on a mat."]


@pytest.mark.parametrize("key", ["sk-\u0410bcdefgh", "sk-abcdefgh\nijkl", "sk-\x07abcdefgh"])
def test_a_key_that_cannot_be_sent_is_one_line_without_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EngineError) as caught:
        engine(server)
    line(caught.value, "OPENAI_API_KEY", "cannot be sent", "copy it again")
    assert "bcdefgh" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["ftp://me:s3cret99@host:1", "socks9://me:s3cret99@host", "http://me:s3cret99@host:port"]
)
def test_a_proxy_that_cannot_be_used_is_one_line_without_its_password(
    server: Server, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(EngineError) as caught:
        engine(server)
    line(caught.value, "proxy", "HTTP_PROXY", "NO_PROXY")
    assert "s3cret99" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_named(server: Server, secret: str, status: int) -> None:
    other = Server()
    try:
        away = Reply(status, headers={"location": f"http://me:pw@127.0.0.1:{other.port}/v1/{KEY}?token=abc#part"})
        server.answer, server.listing = lambda request, _: away, away
        for model in ("llava", None):
            with pytest.raises(EngineError) as caught:
                engine(server, model).caption(crops(60), "?")
            line(caught.value, f"redirects to http://127.0.0.1:{other.port}/v1/***,", "base_url")
            assert not any(part in str(caught.value) for part in ("me:", "token", "part", KEY))
        assert other.asked == []
    finally:
        other.close()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Reply(body=b'{"choices": [], "x": "' + b"x" * 10_000_000 + b'"}'), "longer than 1,000,000 bytes"),
        (Reply(400, b"x" * 10_000_000), "longer than 1,000,000 bytes"),
        (Reply(body=PACKED["gzip"], headers={"content-encoding": "gzip"}), "longer than 1,000,000 bytes"),
        (Reply(400, PACKED["deflate"], {"content-encoding": "deflate"}), "longer than 1,000,000 bytes"),
        (Reply(body=b"abc", headers={"content-encoding": "br"}), "packed as 'br'"),
        (Reply(body=b"abc", headers={"content-encoding": "gzip, gzip"}), "packed as 'gzip, gzip'"),
        (completion("w" * 2049), "2,049 characters; expected at most 2,048 for max_new_tokens = 32"),
    ],
)
def test_an_answer_that_is_too_large_costs_its_row_and_is_asked_once(server: Server, bad: Reply, says: str) -> None:
    server.answer = lambda request, _: bad if shade(request) == 100 else completion("w" * 2048)
    good, row = engine(server, max_new_tokens=32).caption(crops(20, 100), "?")
    assert good.text == "w" * 2048
    assert isinstance(row, Exception)
    assert says in str(row)
    assert server.times[100] == 1
    server.listing = bad
    with pytest.raises(EngineError, match="does not list its models"):
        engines.weights_id(spec(server, None))


def test_a_packed_answer_is_an_answer(server: Server) -> None:
    body = gzip.compress(completion("He sits.").body or b"")
    server.answer = lambda request, _: Reply(body=body, headers={"content-encoding": "gzip"})
    assert texts(engine(server).caption(crops(60), "?")) == ["He sits."]
    assert server.asked[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "drips", [b"x-header: ", b"content-length: 100000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"]
)
@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_drips_is_out_of_time(server: Server, drips: bytes, status: int) -> None:
    slow = Reply(status, drips=drips)
    server.answer = lambda request, _: slow if shade(request) == 100 else completion("ok")
    answers = engine(server, timeout=1, retries=0).caption(crops(20, 100), "?")
    assert texts(answers) == ["ok", "UnansweredError"]
    server.listing = slow
    with pytest.raises(EngineError, match="does not list its models"):
        engines.weights_id(spec(server, None, timeout=1, retries=0))


@pytest.mark.parametrize(
    "floods",
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1;" + b"x" * 50_000 + b"\r\n \r\n"),
    ],
)
def test_a_server_that_never_pauses_is_out_of_time(server: Server, floods: tuple[bytes, bytes]) -> None:
    server.answer = lambda request, _: Reply(floods=floods) if shade(request) == 100 else completion("ok")
    answers = engine(server, timeout=1, retries=1).caption(crops(20, 100), "?")
    assert texts(answers) == ["ok", "UnansweredError"]
    assert server.times[100] == 2  # it was asked again


@pytest.mark.parametrize("names", [[7], [None], [{"a": 1}], ["x", 7], 5, {"a": 1}])
def test_a_list_of_models_of_another_form_is_one_line(server: Server, names: Any) -> None:
    data = [{"id": name} for name in names] if isinstance(names, list) else names
    server.listing = Reply(body=json.dumps({"data": data}).encode())
    with pytest.raises(EngineError) as caught:
        engines.weights_id(spec(server, None))
    line(caught.value, "does not list its models", "pipeline.caption.engine.model")


def test_a_list_of_a_thousand_models_is_a_short_line(server: Server) -> None:
    server.models = [f"{n}" * 300 for n in range(1000)]
    with pytest.raises(EngineError, match="serves 1000 models") as caught:
        engines.weights_id(spec(server, None))
    assert len(str(caught.value)) < 10_000


def test_what_no_table_can_hold_is_replaced_or_costs_its_row(server: Server) -> None:
    server.answer = lambda request, _: completion("a \ud800 b", 10**12)
    (answer,) = engine(server).caption(crops(60), "?")
    assert answer == Caption("a ? b", 3)
    server.answer = lambda request, _: refusal(400, "bad \udfff") if shade(request) == 100 else completion("ok")
    str(engine(server).caption(crops(20, 100), "?")[1]).encode()
    deep = Reply(body=b"[" * 400_000)
    server.answer = lambda request, _: deep if shade(request) == 100 else completion("ok", -1)
    assert engine(server).caption(crops(20), "?") == [Caption("ok", 1)]
    assert texts(engine(server).caption(crops(20, 100), "?")) == ["ok", "UnansweredError"]


# ---------------------------------------------------------------------------------------- spec and identity


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "options.base_url is missing"),
        ({"base_url": "localhost:8000"}, "is not an address"),
        ({"base_url": "http://a", "tempratur": 1}, "concurrency, timeout, retries"),
        ({"base_url": "http://a", "concurrency": 0}, "options.concurrency = 0"),
        ({"base_url": "http://a", "timeout": "long"}, "options.timeout = 'long'"),
        ({"base_url": "http://a:b/v1"}, "is not an address"),
        ({"base_url": "http://[::1/v1"}, "is not an address"),
    ],
)
def test_options_that_do_not_hold_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(EngineSpec(role="captioner", backend="openai", model="m", options=options))
    line(caught.value, "pipeline.caption.engine.options", says)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://me:s3cret@host/v1", {}),
        ("me:s3cret@host/v1", {}),
        ("http://host/v1?key=s3cret", {}),
        ("http://host/v1#s3cret", {}),
        ("http://host/v1", {"api_key": "s3cret"}),
        ("http://host/v1", {"api_key_env": "sk-s3cret"}),
    ],
)
def test_a_secret_among_the_options_is_refused_without_repeating_it(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="api_key_env") as caught:
        engines.load(spec(url, **options))
    line(caught.value, "pipeline.caption.engine.options")
    assert "s3cret" not in str(caught.value)


def test_rows_outlive_another_server_and_other_patience_but_not_another_model() -> None:
    here = engines.key_facts(spec("http://here:1/v1"))  # neither is up: nothing is asked
    volatile = {"timeout": 3, "retries": 1, "concurrency": 2, "api_key_env": "K"}
    assert engines.key_facts(spec("http://there:2/v1", **volatile)) == here
    assert engines.key_facts(spec("http://here:1/v1", "other")) != here
    assert engines.key_facts(spec("http://here:1/v1", max_new_tokens=65)) != here
    assert engines.key_facts(spec("http://here:1/v1", jpeg_quality=80)) != here


def test_without_a_name_the_only_model_is_taken(server: Server) -> None:
    server.models = ["one"]
    served = engine(server, None)
    served.caption(crops(60), "?")
    assert server.asked[0][0]["model"] == "one"
    assert served.describe()["model_served"] == "one"
    assert engines.key_facts(spec(server, None))["model_served"] == "one"
    server.models = ["one", "two"]
    with pytest.raises(EngineError, match=r"serves 2 models \(one, two\)"):
        engines.weights_id(spec(server, None))


def test_describe_says_that_the_weights_are_the_servers_word(server: Server) -> None:
    said = engine(server, max_new_tokens=9).describe()
    assert "cannot be verified" in said["weights"]
    assert said["options"] == {"max_new_tokens": 9, "image_format": "jpeg", "jpeg_quality": 95, "max_side": None}
    assert said["base_url"] == server.url


def test_the_preset_fits() -> None:
    preset = EngineSpec.model_validate(engine_preset("openai-llava-1.5-7b"))
    served = engines.load(preset)  # connects to nothing
    assert served.describe()["base_url"] == "http://localhost:8000/v1"


# ---------------------------------------------------------------------------------------- the whole stage


@pytest.mark.slow
def test_the_stage_survives_its_server(raw: Path, tmp_path: Path, server: Server) -> None:
    """Two shards are answered, the server dies, one line; another server elsewhere, and it goes on."""
    plain = load_recipe("debug", ["pipeline.shard_samples=8"])
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, plain.pipeline, recipe="debug")
    for stage in (skeletons.STAGE, crop.STAGE):
        runner.run_stage(stage, work, plain)

    def recipe(url: str) -> Any:
        where = f"pipeline.caption.engine.options={{base_url='{url}', retries=1, concurrency=4}}"
        return load_recipe("debug", ["pipeline.shard_samples=8", "pipeline.caption.engine=openai-llava-1.5-7b", where])

    present = sum(
        t.column("status").to_pylist().count("ok")
        for t in map(pq.read_table, sorted((work / "crops").glob("shard-*.parquet")))
    )
    odd: list[str] = []

    def url_of(request: dict[str, Any]) -> str:
        return str(request["messages"][0]["content"][0]["image_url"]["url"])

    def answer(request: dict[str, Any], nth: int) -> Reply:
        if not odd:
            odd.append(url_of(request))
        if url_of(request) == odd[0]:
            return refusal(400, "image too odd")
        if len(server.asked) > 65:
            server.http.socket.close()
            return Reply(200, completion("x").body, {"connection": "close"}, cut=True)
        return Reply(200, completion("standing").body, {"connection": "close"})

    server.answer = answer
    with pytest.raises(EngineError, match="is unreachable"):
        runner.run_stage(caption.STAGE, work, recipe(server.url))
    first = sorted((work / "captions").glob("shard-*.parquet"))
    assert 1 <= len(first) < 4
    before = {path: path.stat().st_mtime_ns for path in first}

    successor = Server()
    try:
        successor.answer = lambda request, nth: completion("sitting")
        done = runner.run_stage(caption.STAGE, work, recipe(successor.url))
    finally:
        successor.close()
    assert done.complete
    assert done.statuses["failed"] == 1
    assert done.statuses["ok"] == present - 1
    assert {path: path.stat().st_mtime_ns for path in first} == before
    assert len(successor.asked) < present
    rows = [r for p in sorted((work / "captions").glob("shard-*.parquet")) for r in pq.read_table(p).to_pylist()]
    assert {r["caption"] for r in rows if r["status"] == "ok"} == {"standing", "sitting"}
    (failed,) = [r for r in rows if r["status"] == "failed"]
    assert failed["error_class"] == "RefusedError"
    assert "image too odd" in failed["error"]
    assert "cannot be verified" in json.dumps(done.provenance)
    assert str(successor.port) not in json.dumps(done.inputs)
