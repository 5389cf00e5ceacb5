"""`make demo`: the main job on a real server, end to end, twice. The last line of standard output is JSON."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time

from rich.console import Console
from rich.table import Table

from demo.server import cache_folder
from demo.shop import migrate, migrate_again, the_shop_and_rehost


def main() -> int:
    """Run the demo; the last line of standard output is its JSON."""
    logging.basicConfig(level=logging.INFO, format="demo: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # The server, the registry and the services end with their blocks, on SIGTERM as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with the_shop_and_rehost(cache_folder() / "demo") as (client, server):
        result = migrate_again(client, server, migrate(client, server))
    result["seconds"] = round(time.monotonic() - began)
    table = Table("What", "Seen", title="The main job, end to end")
    for name, value in result.items():
        for key, told in value.items() if isinstance(value, dict) else (("", value),):
            table.add_row(f"{name} {key}".strip(), str(told))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
