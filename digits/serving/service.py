"""The model over HTTP: pictures or tensors in, answers as of `digits predict --format json` out; and the drawing page.

Nothing that is sent is kept. Every refusal is a 4xx or 503 with one line: `{"error": "…"}`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic_core import from_json, to_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteException
from starlette.formparsers import MultiPartException, MultiPartParser

from digits.errors import reason
from digits.serving import reading
from digits.serving.reading import Answer, Model

PAGE = Path(__file__).with_name("page")
MODEL = "DIGITS_MODEL"  # environment variable: another model file
LARGEST = 20_000_000  # bytes of a request
MANY = 100  # pictures of a request
BATCH = 1000  # tensors of a request
FEW = 32  # tensors that the model is done with in a millisecond
PATIENCE = 30  # seconds that a request may take to arrive, and then to wait for its turn
# What keeps a browser from running or asking for anything that is not ours.
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob:"),
    (b"x-content-type-options", b"nosniff"),
)

ANSWER = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string"},
        "text": {"type": "string", "description": "what is written, lines separated by \\n"},
        "digits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "probability": {"type": "number"},
                    "box": {"type": "array", "items": {"type": "integer"}, "description": "left, top, right, bottom"},
                    "line": {"type": "integer"},
                },
            },
        },
        "unsure": {"type": "boolean", "description": "the answer should not be trusted"},
        "error": {"type": "string", "description": "why nothing was read; then there is no text"},
    },
}
PICTURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": {"200": {"content": {"application/json": {"schema": {"type": "array", "items": ANSWER}}}}},
}
TENSORS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {"inputs": {"type": "array", "description": "[n, channels, height, width], 0 … 1"}},
                }
            },
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary", "description": "the same as little-endian float32"}
            },
        },
    }
}


class Plain(JSONResponse):
    """JSON that need not be made fit for Python's own types, which takes longer than the model."""

    def render(self, content: Any) -> bytes:
        return to_json(content)


def application(model: Model) -> FastAPI:
    """Return the service for a model."""
    app = FastAPI(
        title="Digits",
        description="Reads handwritten digits on pictures. The model runs here; nothing that is sent is kept.",
        version=_version(),
        docs_url=None,
        redoc_url=None,
    )
    turns = asyncio.Semaphore(os.cpu_count() or 1)  # each takes a core and, for a large picture, 100 MB

    async def in_turn(work: Any, *arguments: Any) -> Any:
        """Run something that takes a core, when one is free."""
        try:
            async with asyncio.timeout(PATIENCE):
                await turns.acquire()
        except TimeoutError:
            raise HTTPException(503, "busy; try again later", {"Retry-After": str(PATIENCE)}) from None
        try:
            return await run_in_threadpool(work, *arguments)
        finally:
            turns.release()

    @app.post("/predict", openapi_extra=PICTURES, summary="What is written on pictures")
    async def predict(
        request: Request,
        single: Annotated[bool, Query(description="each picture shows exactly one character")] = False,  # noqa: FBT002
    ) -> Response:
        """Send one picture as the body, or several as the files of a form. The answer has an object for each."""
        pictures = await _pictures(request)
        found: list[Answer] = await in_turn(lambda: list(model.read(pictures, single=single)))
        if not any(answer.readable for answer in found):
            raise HTTPException(400, f"{found[0].file}: {found[0].error}")
        return Plain([answer.as_dict() for answer in found])

    @app.post("/logits", openapi_extra=TENSORS, summary="The model alone, on images as it was trained on")
    async def logits(request: Request) -> Response:
        """Send images as JSON or float32, white on black, 0 … 1. The answer has a logit for each of the classes."""
        images = _tensor(await _body(request), request.headers.get("content-type", ""), model)
        # A thread takes longer to reach than one image takes here, 40 µs.
        found = model.logits(images) if len(images) <= FEW else await in_turn(model.logits, images)
        return Plain({"classes": model.classes, "logits": found.tolist()})

    @app.get("/health", summary="Whether it works, and which model it has")
    async def health() -> Response:
        return Plain({"status": "ok", "version": app.version, "model": model.md5, "classes": model.classes})

    # The page runs the same model in the browser.
    @app.get("/model.onnx", include_in_schema=False)
    async def network() -> Response:
        return Response(model.content, media_type="application/octet-stream")

    @app.get("/model.json", include_in_schema=False)
    async def about() -> Response:
        return Plain(model.about() | {"served": True})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    @app.exception_handler(StarletteException)
    async def refused(_: Request, error: StarletteException) -> Response:
        return Plain({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Plain({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    for path in ("/predict", "/logits"):  # otherwise looked for among the files of the page
        app.add_api_route(path, not_allowed, methods=["GET", "PUT", "DELETE"], include_in_schema=False)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_middleware(Headers)
    return app


def from_environment() -> FastAPI:
    """Return the service for the model that the environment names, or the default one: how a worker starts."""
    return application(Model(Path(os.environ.get(MODEL) or reading.default()), threads=1))


async def not_allowed() -> None:
    raise HTTPException(405, "must be POST", {"Allow": "POST"})


class Headers:
    """Adds HEADERS to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def _version() -> str:
    try:
        return version("reproducible-mnist")
    except PackageNotFoundError:  # a clone, in which nothing need be installed
        return "clone"


async def _body(request: Request) -> bytes:
    """Return the body. Raises HTTPException if it is empty, too large, or does not arrive."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= LARGEST:
                    body += chunk
                elif size > 10 * LARGEST:  # up to there the rest is let in: many clients read no answer before
                    break
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {PATIENCE} seconds") from None
    if size > LARGEST:
        raise HTTPException(413, f"more than {LARGEST:,} bytes")
    if not body:
        raise HTTPException(400, "the body is empty")
    return bytes(body)


async def _pictures(request: Request) -> list[tuple[str, bytes]]:
    """Return the name and content of each picture: the files of a form, or the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _body(request)
    if kind != "multipart/form-data":
        if kind and not kind.startswith("image/") and kind not in ("application/octet-stream", FORM):
            raise HTTPException(415, f"{kind}: must be an image, application/octet-stream or multipart/form-data")
        return [("picture", body)]

    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=MANY, max_fields=MANY).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(400, f"not a form that can be read ({reason(error)})") from None
    try:
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no file")
        return [(file.filename or "picture", await file.read()) for file in files]
    finally:
        await form.close()


FORM = "application/x-www-form-urlencoded"  # what curl says of any --data-binary


def _tensor(body: bytes, kind: str, model: Model) -> NDArray[np.float32]:
    """Return images [n, channels, side, side] from JSON or from float32."""
    shape = (model.channels, model.side, model.side)
    wanted = f"[n, {', '.join(map(str, shape))}]"
    if kind.startswith("application/json"):
        try:
            images = np.asarray(from_json(body)["inputs"], np.float32)  # 27 µs for an image; json takes 158
        except (ValueError, TypeError, KeyError):
            raise HTTPException(400, f'must be JSON like {{"inputs": …}}, numbers of shape {wanted}') from None
    elif len(body) % (4 * int(np.prod(shape))):
        raise HTTPException(400, f"{len(body)} bytes; must be float32 of shape {wanted}")
    else:
        images = np.frombuffer(body, "<f4").reshape(-1, *shape).astype(np.float32)
    if images.shape[1:] != shape or not 1 <= len(images) <= BATCH:
        raise HTTPException(400, f"shape {list(images.shape)}; must be {wanted}, n from 1 to {BATCH}")
    if not (images.min() >= 0 and images.max() <= 1):  # nor NaN
        raise HTTPException(400, "pixels must be 0 … 1")
    return images
