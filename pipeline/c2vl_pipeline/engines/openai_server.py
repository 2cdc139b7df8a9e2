"""`openai`: LLaVA behind any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp).

One request per crop, many at once; the crop is sent as the data URL of a picture. The SDK repeats requests that fail
for a passing reason (429, 5xx, time-outs, broken connections) with growing pauses, or after the pause that the server
asks for. Remaining errors are of two kinds. A crop that the server rejects, or does not answer while it answers others,
costs one row. A server that is unreachable, rejects the key, does not serve the model or answers nothing at all stops
the stage: finished rows stay, and the next run resumes.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import openai
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_pipeline.engines import Caption, Captioner, Crop, Image, Options, checked_options
from c2vl_pipeline.engines.openai_client import RedirectedError, UnusableError, WebPageError, connect
from c2vl_pipeline.readers.video import encode_jpeg, encode_png, limit_side

LONGEST_PAUSE = 8.0

LONGEST_TOKEN = 64
"""Most characters of an answer for each token asked for. English text has 4 to 5 per token."""

LONGEST_NAME = 256
"""Characters of a model's name."""

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the SDK and `_read` raise for answers of another form."""

_NOT_THERE = frozenset({"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"})
"""Names of causes of the SDK's connection error, because its HTTP library changes with its version."""

_AGAIN = "finished rows stay: run `c2vl-pipeline caption` again"


_Prompt = tuple[tuple[Image, ...], str]
"""Images, and the question about them."""


class RefusedError(Exception):
    """The server answers and rejects this crop."""


class UnansweredError(Exception):
    """No attempt gave a usable answer to this crop."""


class _Options(Options):
    base_url: str
    api_key_env: str = Field(default="OPENAI_API_KEY", min_length=1)
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=120, gt=0)
    retries: int = Field(default=6, ge=0)
    max_new_tokens: int = Field(default=64, ge=1)
    image_format: Literal["jpeg", "png"] = "jpeg"
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    max_side: int | None = Field(default=None, ge=32)


def _options(spec: EngineSpec) -> _Options:
    options = checked_options(spec, _Options)
    if any(mark in options.base_url for mark in "@?#"):
        raise EngineError(
            "pipeline.caption.engine.options.base_url holds a user name, password, query or fragment, which manifests "
            "would store; leave it out and name an environment variable in options.api_key_env"
        )
    try:
        url = urlsplit(options.base_url)
        usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EngineError(
            f"pipeline.caption.engine.options.base_url = {options.base_url!r} is not an address; expected one like "
            "http://localhost:8000/v1"
        )
    if not re.fullmatch(r"[A-Za-z_]\w*", options.api_key_env):
        raise EngineError(
            "pipeline.caption.engine.options.api_key_env is not the name of an environment variable; expected one "
            "like OPENAI_API_KEY: manifests would store a key"
        )
    return options


def _client(options: _Options) -> openai.OpenAI:
    return connect(options.base_url, options.api_key_env, options.timeout, options.retries)


def _named(error: BaseException) -> str:
    cause = f" ({type(error.__cause__).__name__})" if error.__cause__ is not None else ""
    body = getattr(error, "body", None)
    # the SDK shows only a body of OpenAI's own form; other servers have the reason elsewhere in it
    said = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False) if body else ""
    shown = isinstance(body, Mapping) and isinstance(body.get("message"), str)
    line = one_line(error, named=not isinstance(error, UnusableError))
    return _storable(line + (f": {' '.join(said.split())[:160]}" if said and not shown else "") + cause)


def _storable(text: str) -> str:
    """Return text without lone surrogates, which JSON can express and tables cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _stop(error: Exception, options: _Options, model: str | None) -> EngineError | None:
    """Return the error that stops the stage if `error` is about the server, None if it may be about the crop."""
    status = getattr(error, "status_code", None)
    if isinstance(error, RedirectedError):
        problem = (
            f"redirects to {_storable(str(error))}, to which neither key nor pictures are sent; if that is the right "
            "server, name it in pipeline.caption.engine.options.base_url"
        )
    elif isinstance(error, WebPageError):
        problem = (
            "answered a web page instead of JSON; expected the base address of the API, which usually ends in /v1, in "
            "pipeline.caption.engine.options.base_url"
        )
    elif status in {401, 403}:
        problem = (
            f"rejects the key ({_named(error)}); expected one in the environment variable {options.api_key_env} "
            "(options.api_key_env names it)"
        )
    elif status == 404:
        problem = (
            f"has no model {model!r}, or no chat completions under this address ({_named(error)}); expected a served "
            "model in pipeline.caption.engine.model and an address that ends in /v1"
        )
    elif status == 429:
        problem = (
            f"is still busy after {options.retries} repetitions ({_named(error)}); expected an answer; lower "
            f"options.concurrency ({options.concurrency})"
        )
    elif isinstance(error, openai.APIConnectionError) and type(error.__cause__).__name__ in _NOT_THERE:
        problem = (
            f"is unreachable ({_named(error)}); start it, or name another in pipeline.caption.engine.options.base_url"
        )
    else:
        return None
    return EngineError(f"the captioner's server at {options.base_url} {problem}; {_AGAIN}")


def _only_model(options: _Options) -> str:
    """Return the one model the server serves."""
    try:
        names = [_storable(model.id)[:LONGEST_NAME] for model in _client(options).models.list().data]
    except (openai.OpenAIError, *_MALFORMED) as error:
        raise _stop(error, options, None) or EngineError(
            f"the captioner's server at {options.base_url} does not list its models ({_named(error)}); name the "
            "model in pipeline.caption.engine.model"
        ) from error
    if len(names) != 1:
        raise EngineError(
            f"the captioner's server at {options.base_url} serves {len(names)} models "
            f"({', '.join(names[:20])}{', …' * (len(names) > 20)}), expected one; choose by pipeline.caption.engine.model"
        )
    return names[0]


class Served(Captioner):
    """Asks a served model about each crop, greedily (temperature 0).

    Options: `base_url` (required, e.g. http://localhost:8000/v1), `api_key_env` (the environment variable that
    contains the key, which is never stored), `concurrency` (16 simultaneous requests per worker),
    `timeout` (120 seconds for a whole answer), `retries` (6), `max_new_tokens` (64), `image_format` (`jpeg`, or `png`,
    which is larger and loses nothing: the server then sees the pixels that the `hf` engine sees), `jpeg_quality` (95)
    and `max_side` (pixels; a larger crop is reduced, None sends it as it is).

    Raises:
        EngineError: One line, for an invalid option or a server that is at fault.
    """

    VOLATILE_OPTIONS = frozenset({"base_url", "api_key_env", "concurrency", "timeout", "retries"})
    """Address, key, parallel requests, time limit and repetitions."""

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the served model's name, which is taken on trust: a server's weights cannot be verified.

        Only a spec that names no model needs the server for this.
        """
        options = _options(spec)
        return {"model_served": spec.model or _only_model(options)}

    def __init__(self, spec: EngineSpec) -> None:
        self._spec, self._options = spec, _options(spec)
        self._model = spec.model or _only_model(self._options)
        self._client = _client(self._options)

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption | Exception]:
        """Answer `question` about each crop, in order; the error in its place where a crop has no answer.

        When none of the crops is answered, a plain grey picture of the first one's size is tried. If that fails
        as well the server is at fault; else it works again, or rejects these very crops: they are asked once
        more, and each one that fails then costs its row.

        Raises:
            EngineError: One line, when the server and not a crop is at fault.
        """
        prompts = [((crop.image, *crop.later), question) for crop in crops]
        answers = self._ask_all(prompts)
        if not answers or not all(isinstance(answer, Exception) for answer in answers):
            return answers
        (plain,) = self._ask_all([((np.full_like(crops[0].image, 127),), question)])
        if isinstance(plain, Exception):
            raise EngineError(
                f"the captioner's server at {self._options.base_url} answered none of {len(answers)} crops, nor a "
                f"plain grey picture ({type(plain).__name__}: {plain}); expected answers from a model that sees "
                f"pictures, and that serves the name {self._model!r} (pipeline.caption.engine.model); {_AGAIN}"
            )
        return self._ask_all(prompts)

    def complete(self, prompts: Sequence[str]) -> list[Caption | Exception]:
        """Answer each prompt without any image; the error in its place where one has no answer."""
        return self._ask_all([((), prompt) for prompt in prompts])

    def _ask_all(self, prompts: Sequence[_Prompt]) -> list[Caption | Exception]:
        futures: list[Future[Caption | Exception]] = [Future() for _ in prompts]
        waiting: SimpleQueue[tuple[Future[Caption | Exception], _Prompt]] = SimpleQueue()
        for pair in zip(futures, prompts, strict=True):
            waiting.put(pair)

        def work() -> None:
            with suppress(Empty):
                while True:
                    future, prompt = waiting.get_nowait()
                    if future.set_running_or_notify_cancel():
                        try:
                            future.set_result(self._ask(*prompt))
                        except BaseException as error:
                            future.set_exception(error)

        for _ in range(min(self._options.concurrency, len(prompts))):
            # daemon threads: Python waits at its end for the threads of an executor, so for the slowest answer
            threading.Thread(target=work, daemon=True).start()
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            raised = (error for future in futures if future.done() and (error := future.exception()))
            if (error := next(raised, None)) is not None:
                raise error
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _ask(self, images: tuple[Image, ...], question: str) -> Caption | Exception:
        """Return the answer, or the error of its row; raise EngineError if the server is at fault."""
        content: list[dict[str, Any]] = [
            *({"type": "image_url", "image_url": {"url": self.data_url(image)}} for image in images),
            {"type": "text", "text": question},
        ]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._options.max_new_tokens,
            "temperature": 0,
        }
        malformed: Exception | None = None
        for attempt in range(self._options.retries + 1):
            try:
                return _read(self._client.chat.completions.create(**body), self._options.max_new_tokens)
            except openai.OpenAIError as error:
                if (stop := _stop(error, self._options, self._model)) is not None:
                    raise stop from error
                status = getattr(error, "status_code", None)
                refused = isinstance(status, int) and 400 <= status < 500 and status not in {408, 409}
                return (RefusedError if refused else UnansweredError)(_named(error))
            except _MALFORMED as error:
                malformed = error  # the SDK does not repeat these
                if attempt < self._options.retries:
                    time.sleep(min(0.5 * 2**attempt, LONGEST_PAUSE))
        assert malformed is not None
        return UnansweredError(f"the answer is not a chat completion ({_named(malformed)})")

    def data_url(self, image: Image) -> str:
        """Return pixels (H, W, 3) as the data URL that is sent."""
        options = self._options
        image = limit_side(image, options.max_side or max(image.shape[:2]))
        data = encode_png(image) if options.image_format == "png" else encode_jpeg(image, options.jpeg_quality)
        return f"data:image/{options.image_format};base64,{base64.b64encode(data).decode('ascii')}"

    def describe(self) -> Mapping[str, Any]:
        """Return model, server and options, and that the weights are not verified, for the stage's manifest."""
        return {
            "backend": "openai",
            "model": self._spec.model,
            "model_served": self._model,
            "revision_asked": self._spec.revision,
            "weights": "as served: they and their revision cannot be verified from here",
            "base_url": self._options.base_url,
            "options": self._options.model_dump(exclude=set(self.VOLATILE_OPTIONS)),
            "openai": openai.__version__,
        }


def _read(reply: Any, max_new_tokens: int) -> Caption:
    """Return the first choice's text, cut short or not, and its tokens (words where the server does not count).

    A server counts the token that ends an answer, too. An empty text is an answer too: asking again changes nothing.

    Raises:
        UnusableError: longer than asked for.
        ValueError, TypeError, AttributeError, LookupError: not a chat completion.
    """
    text = reply.choices[0].message.content
    if not isinstance(text, str | None):
        raise TypeError(f"content is {type(text).__name__}, expected text")
    text = _storable(text or "").strip()
    if len(text) > (most := LONGEST_TOKEN * max_new_tokens):
        raise UnusableError(
            f"the answer has {len(text):,} characters; expected at most {most:,} for max_new_tokens = {max_new_tokens}"
        )
    counted = getattr(reply.usage, "completion_tokens", None)
    if type(counted) is not int or not 0 <= counted < 2**31:  # what the table's column holds
        counted = len(text.split())
    return Caption(text, counted)
