"""Error replies in the two shapes that clients read: text-generation-inference's, and OpenAI's under /v1."""

from typing import Any

from fastapi.responses import JSONResponse

OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_AFTER_SECONDS = 1


class ApiError(Exception):
    """A refusal with its HTTP status, TGI's error_type and, for OpenAI clients, a code and the parameter's name."""

    def __init__(
        self, status: int, error_type: str, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.message, self.code, self.param = status, error_type, message, code, param


def invalid(message: str, code: str | None = None, param: str | None = None) -> ApiError:
    """A request that can never be answered as it is: 422."""
    return ApiError(422, "validation", f"Input validation error: {message}", code, param)


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The reply's JSON for a route: OpenAI's object under /v1 (with TGI's error_type beside it), TGI's elsewhere."""
    if not path.startswith("/v1/"):
        return {"error": error.message, "error_type": error.error_type}
    kind = OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    kind = "server_error" if error.error_type == "generation" else kind
    details = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": details, "error_type": error.error_type}


def error_response(path: str, error: ApiError) -> JSONResponse:
    """An error as an HTTP reply; one that will pass says when to try again."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.status in (429, 503) else None
    return JSONResponse(error_body(path, error), error.status, headers)
