"""What stands before the routes: the API key, and the log line of each request."""

import hmac
import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingot.runs import get_logger
from ingot.serving.errors import ApiError, error_response

logger: logging.Logger = get_logger(__name__)

OPEN_ROUTES = {
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/ping"),
    ("HEAD", "/ping"),
}


class RequireKey:
    """Refuses with 401 what does not carry `Authorization: Bearer KEY`; health checks stay open."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on when its key is right."""
        if scope["type"] == "http" and not self._allowed(scope):
            refusal = error_response(scope["path"], ApiError(401, "authentication", "the API key is missing or wrong"))
            refusal.headers["WWW-Authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        if (scope["method"], scope["path"]) in OPEN_ROUTES:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


class LogRequests:
    """One line for each finished request: method, path, status and milliseconds; never its content or its key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and logs its end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 0, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            milliseconds = 1000 * (time.monotonic() - started)
            logger.info("%s %s %d %.0f ms", scope["method"], quote(scope["path"]), status, milliseconds)
