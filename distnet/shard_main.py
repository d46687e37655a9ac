"""The process of one shard: does what JSON lines on its stdin say, until they end. See ``distnet.shard_process``."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from distnet import _native, errors

__all__ = ["main"]


def _answer(server: _native.ShardServer, request: dict[str, Any]) -> dict[str, Any]:
    if "directory" in request:
        server.set_directory(request["directory"])
    if "start" in request:
        server.start()
    if "stats" in request:
        return {"stats": server.stats_json()}
    return {}


def main() -> int:
    """Serve one shard until stdin ends."""
    server: _native.ShardServer | None = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if server is None:
                    server = _native.ShardServer(request["settings"], request["endpoint"])
                    answer = {"endpoint": server.endpoint}
                else:
                    answer = _answer(server, request)
            except errors.DistNetError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        if server is not None:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
