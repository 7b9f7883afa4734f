"""The FastAPI application: the routes, the key, the log, and every failure in the shape that its clients read."""

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ingot.serving import openai_api, tgi_api
from ingot.serving.errors import ApiError, error_response
from ingot.serving.exchange import Service
from ingot.serving.security import LogRequests, RequireKey

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; nobody receives it


def create_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The application with the native and the OpenAI routes; with a key, all but health checks need it."""
    app = FastAPI(title="Ingot", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(tgi_api.routes(service))
    app.include_router(openai_api.routes(service))
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unexpected_error)
    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key)
    app.add_middleware(LogRequests)
    return app


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.url.path, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "validation")
    response = error_response(request.url.path, ApiError(error.status_code, kind, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    message = "the server made a mistake; its log has the details"
    return error_response(request.url.path, ApiError(500, "internal", message))
