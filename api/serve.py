"""The API as a program: `python -m api.serve`."""

from __future__ import annotations

import contextlib
import socket
import sys

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.request_ids import LOGGING
from api.security import is_loopback
from rehost.catalog.catalog import Catalog
from rehost.errors import InvalidParameter, RehostError
from rehost.settings import Settings, settings

_NOT_STARTED = 3  # as uvicorn's own program ends


def check_bind_address(configured: Settings) -> None:
    """Raises InvalidParameter where others could reach an API that asks for no key; and CatalogAway."""
    if is_loopback(configured.api_host) or configured.api_keys:
        return
    configured.home.mkdir(parents=True, exist_ok=True)
    with Catalog.open(configured) as catalog:
        if catalog.api_keys():
            return
    raise InvalidParameter(
        f"The API does not listen on {configured.api_host} without a key: `rehost key add`, or set REHOST_API_KEYS.",
        [("REHOST_API_HOST", "is an address of the loopback interface, unless there is a key")],
    )


class Server(uvicorn.Server):
    """Ends the streams of events when it is told to stop: by themselves they would last until their jobs rest."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and (hub := getattr(app.state, "hub", None)) is not None:
            hub.close()
        await super().shutdown(sockets)


def main() -> int:
    """Serve until SIGINT or SIGTERM. Exit code 0 after that, 2 for an address that is refused."""
    configured = settings()
    try:
        check_bind_address(configured)
    except RehostError as error:
        print(f"{error.code}: {error.message} {error.remedy}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    import flows.orchestration  # noqa: F401 - now, not in the first request

    config = uvicorn.Config(
        create_app(configured),
        host=configured.api_host,
        port=configured.api_port,
        access_log=False,  # api.envelope writes one
        log_config=LOGGING,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises what it caught once more, after its end
        server.run()
    return 0 if server.started else _NOT_STARTED


if __name__ == "__main__":
    raise SystemExit(main())
