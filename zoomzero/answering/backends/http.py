"""One JSON request to a server one does not trust: sizes and times are bounded, and errors say what the server said."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from zoomzero.text import escaped

MAX_REQUEST_BYTES = 256 << 20
MAX_REPLY_BYTES = 16 << 20
# Of what a server says in an error.
MAX_MESSAGE_CHARACTERS = 500
# Too many requests, and a server that is being started or overrun: worth another try.
_BUSY = (429, 502, 503, 504)
NUM_TRIES = 4
LONGEST_PAUSE_SECONDS = 30.0
_CHUNK_BYTES = 1 << 16


class ServerError(OSError):
    """A server could not be reached, took too long, or refused; says so in its own words."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not follow a redirect to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the redirect is an error."""


def post_json(
    url: str,
    body: Mapping[str, Any],
    *,
    key: str | None = None,
    timeout: float = 600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """Send a JSON object and return the JSON that comes back.

    Args:
        url: http or https.
        body: the object.
        key: sent as a bearer token; never part of an error.
        timeout: seconds for the whole exchange, pauses before another try included.
        sleep: how to pause.

    Raises:
        ValueError: the request is too large.
        ServerError: see there.
    """
    data = json.dumps(body).encode("ascii")
    if len(data) > MAX_REQUEST_BYTES:
        raise ValueError(
            f"{url}: a request must have at most {MAX_REQUEST_BYTES} bytes, got {len(data)}; lower --budget-tokens"
        )
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data, headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    deadline = time.monotonic() + timeout
    for number in range(1, NUM_TRIES + 1):
        try:
            with opener.open(request, timeout=max(0.1, deadline - time.monotonic())) as reply:
                return _parsed(url, _read(url, reply, deadline))
        except urllib.error.HTTPError as error:
            with error:
                pause = _pause(error.headers.get("Retry-After"), number)
                if error.code not in _BUSY or number == NUM_TRIES or time.monotonic() + pause > deadline:
                    said = _said(error)
                    raise ServerError(_without(key, f"{url}: the server answered {error.code}: {said}")) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, ServerError):
                raise
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise ServerError(_without(key, f"{url}: cannot be asked: {reason}; is the server running?")) from None
        sleep(pause)
    raise ServerError(f"{url}: gave no answer in {NUM_TRIES} tries; ask later")


def _read(url: str, reply: Any, deadline: float) -> bytes:
    """The reply, while there is time: a server may drip bytes for ever."""
    content = b""
    while chunk := reply.read1(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_REPLY_BYTES:
            raise ServerError(f"{url}: a reply must have at most {MAX_REPLY_BYTES} bytes, got more; is the URL right?")
        if time.monotonic() > deadline:
            raise ServerError(f"{url}: the reply took longer than allowed; raise --request-timeout")
    return content


def _parsed(url: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        said = escaped(content[:80].decode("utf-8", "replace"))
        raise ServerError(f"{url}: the reply must be JSON, got {said!r}; is the URL right?") from None


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says went wrong: its message, or the start of its page."""
    try:
        text = error.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        text = ""
    try:
        data = json.loads(text)
        inner = data.get("error", data)
        text = str(inner.get("message", text)) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError, AttributeError):
        pass
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(printable.split())[:MAX_MESSAGE_CHARACTERS] or str(error.reason)


def _pause(retry_after: str | None, number: int) -> float:
    """Seconds before the next try."""
    try:
        wanted = float(retry_after or "")
    except ValueError:
        wanted = float(2**number)
    return min(max(wanted, 0.0), LONGEST_PAUSE_SECONDS)


def _without(key: str | None, text: str) -> str:
    return text.replace(key, "[the key]") if key else text
