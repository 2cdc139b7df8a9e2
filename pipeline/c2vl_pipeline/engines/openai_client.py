"""The connection to a model server: bounds for the size and time of an answer, `***` in place of the key.

All that a server says passes through `_Http.send`: answers, lists of models and errors.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import openai

from c2vl_manifests.errors import EngineError

CONNECT_TIMEOUT = 10.0
"""Seconds until a server must accept a connection."""

MAX_BYTES = 1_000_000
"""Size of an answer, unpacked."""

SHORTEST_SECRET = 8
"""Characters; shorter keys are words that stand for none (`EMPTY`, `none`, `x`) and may occur in captions."""

_KEPT = ("retry-after", "retry-after-ms", "x-should-retry")
"""Headers of an answer that are looked at."""


class UnusableError(openai.OpenAIError):
    """The server sent what cannot be an answer; asking again is no use, and the SDK does not."""


class WebPageError(openai.OpenAIError):
    """The address answered a page for people, as it does where the base address of the API is another."""


class RedirectedError(openai.OpenAIError):
    """The server names another address, to which nothing is sent."""


def connect(base_url: str, key_variable: str, timeout: float, retries: int) -> openai.OpenAI:
    """Return a client, not yet connected. Without a key in the environment, `EMPTY` is sent: some servers expect a word.

    Raises:
        EngineError: the key, or the proxy that the environment names, cannot be used.
    """
    key = os.environ.get(key_variable, "").strip() or "EMPTY"
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"the key in the environment variable {key_variable} holds a character that cannot be sent; expected "
            "ASCII letters, digits and punctuation; copy it again"
        )
    headers = os.environ.get("OPENAI_CUSTOM_HEADERS", "")  # which the SDK sends too
    values = [line.partition(":")[2].strip().removeprefix("Bearer ") for line in headers.split("\n")]
    try:
        return openai.OpenAI(
            base_url=base_url,
            api_key=key,
            timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            max_retries=retries,
            http_client=_Http(timeout, [s for s in (key, *values) if len(s) >= SHORTEST_SECRET]),
        )
    except Exception as error:  # the library has a class of its own for each fault of an address
        raise EngineError(
            f"the proxy that the environment names cannot be used ({type(error).__name__}); expected http://HOST:PORT "
            "in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY; correct or unset them, or except this server by NO_PROXY"
        ) from None


def _escaped(secret: str) -> str:
    """Return a pattern of a secret whose letters may be escaped as in JSON or addresses."""
    codes = ((re.escape(letter), f"{ord(letter):02x}") for letter in secret)
    return "".join(f"(?:{letter}|\\\\u00{code}|\\\\{letter}|%{code})" for letter, code in codes)


class _Http(openai.DefaultHttpxClient):
    """HTTP client of the SDK: reads answers to their end, follows no redirect and asks for nothing packed.

    Args:
        whole: seconds for a whole answer; the library's own limits are for each pause within it.
        secrets: what is replaced by `***` in all that comes, in any case and with any letters escaped.
    """

    def __init__(self, whole: float, secrets: list[str]) -> None:
        super().__init__(follow_redirects=False, headers={"accept-encoding": "identity"})
        self._whole, self._secrets = whole, [secret.lower() for secret in secrets]
        self._pattern = re.compile("|".join(map(_escaped, secrets)), re.IGNORECASE)
        self._request = threading.local()

    def send(self, request: Any, **settings: Any) -> Any:
        """Return a whole answer; a time-out is the library's own, which the SDK knows.

        Raises:
            UnusableError: it is too long, or packed in a way that was not asked for.
            WebPageError: it is a web page, and no error of the server.
            RedirectedError: it names another address.
        """
        self._request.ends = time.monotonic() + self._whole
        request.extensions["trace"] = self._opened
        response = super().send(request, **{**settings, "stream": True})
        try:
            if response.has_redirect_location:
                target = urlsplit(urljoin(str(request.url), response.headers["location"]))
                host = target.netloc.rpartition("@")[2]
                raise RedirectedError(self._masked(f"{target.scheme}://{host}{target.path}"[:200]))
            text = self._masked(_body(response).decode("utf-8", "replace"))
        finally:
            response.close()
        if response.is_success and text.lstrip("\ufeff \t\r\n")[:14].lower().startswith(("<!doctype html", "<html")):
            raise WebPageError("a web page")
        headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
        headers["content-type"] = "application/json"
        return type(response)(response.status_code, headers=headers, content=text.encode(), request=request)

    def _opened(self, event: str, facts: Any) -> None:
        """Bound all later reads of a connection that was just made; also answers to other requests come by it."""
        stream = facts.get("return_value")
        if not hasattr(stream, "read"):
            return
        read = stream.read

        def read_in_time(size: int, timeout: float | None = None) -> bytes:
            left = self._request.ends - time.monotonic()
            if left <= 0:  # no time-out ends a read that finds bytes; a closed one is an error that the SDK knows
                stream.close()
            part: bytes = read(size, max(left, 0.001))
            return part

        stream.read = read_in_time

    def _masked(self, text: str) -> str:
        lower = text.lower()
        # the pattern takes 40 µs for an answer, 1 % of a request
        if self._secrets and ("\\" in text or "%" in text or any(secret in lower for secret in self._secrets)):
            return self._pattern.sub("***", text)
        return text


def _body(response: Any) -> bytes:
    packed = response.headers.get("content-encoding", "identity").lower()
    if packed not in {"identity", "gzip", "deflate"}:  # of which 64 kB, read at once, may hold gigabytes
        raise UnusableError(f"the answer is packed as {packed[:20]!r}; expected plain text or gzip")
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        if len(body) > MAX_BYTES:
            raise UnusableError(f"the answer is longer than {MAX_BYTES:,} bytes")
    return bytes(body)
