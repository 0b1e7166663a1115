"""`python -m digits serve`: the model over HTTP, and a page to draw on."""

import os
from argparse import ArgumentParser
from pathlib import Path

from digits.errors import UserError
from digits.serving import reading
from digits.tools import addresses

GRACE = 5  # seconds that requests under way have when it is ended


def main(parser: ArgumentParser, words: list[str]) -> None:
    """Serve the model over HTTP until Ctrl-C: a page to draw digits on, POST /predict for pictures, POST /logits for
    tensors, /health, and /docs, which says how to call them.
    """
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes, 120 MB each (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--model", type=Path, help="an exported ONNX file (default: models/export/model.onnx, else the included one)"
    )
    arguments = parser.parse_args(words)
    if not 1 <= arguments.workers <= 64:
        raise UserError(f"--workers: must be 1 to 64, not {arguments.workers}")
    reading.Model(arguments.model or reading.default(), threads=1)  # a fault is one line, and not one of each worker
    named = f"{arguments.host}:{arguments.port}:"
    addresses.check(arguments.host, arguments.port, named=named, advice="--port takes another")

    import uvicorn  # only now: it takes as long as the model

    from digits.serving import service

    if arguments.model:
        os.environ[service.MODEL] = str(arguments.model)
    address = f"http://{arguments.host}:{arguments.port}"
    print(f"{address}  draws and reads; {address}/docs says how to send pictures; Ctrl-C ends it")
    if arguments.open:
        addresses.show(address)
    uvicorn.run(
        f"{service.__name__}:{service.from_environment.__name__}",
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
