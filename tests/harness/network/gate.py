"""A gate before a Milvus: TLS, and a token that each call must show, as a server with `authorizationEnabled` asks.

Milvus Lite knows neither. The gate takes gRPC calls, reads none of them, and makes each at the Milvus behind it; who
shows another token is told what Milvus 2.3 tells.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from infra.platform.port_locks import LOOPBACK

_CALLS = 16  # at once
_LONGEST_S = 600.0
_ANY_SIZE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`token` is what a call must show; it may be changed while the gate stands."""

    def __init__(self, behind: grpc.Channel, token: str) -> None:
        self._behind, self.token = behind, token

    def service(self, details: Any) -> Any:
        call = self._behind.unary_unary(details.method)

        def forward(request: bytes, context: Any) -> bytes:
            shown = dict(context.invocation_metadata())
            if shown.get("authorization") != base64.b64encode(self.token.encode()).decode():
                said = "auth check failure, please check username and password are correct"
                context.abort(grpc.StatusCode.UNAUTHENTICATED, said)
            about = [(name, value) for name, value in shown.items() if name in ("dbname", "client-request-id")]
            try:
                left_s = min(context.time_remaining(), _LONGEST_S)  # of a call without a limit too much for gRPC
                answer: bytes = call(request, timeout=left_s, metadata=about)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


@contextmanager
def gate_before(milvus: str, token: str, certificate: Path, key: Path) -> Iterator[tuple[str, Gate]]:
    """The address of a gate before the Milvus at `host:port`, and the gate itself."""
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with grpc.insecure_channel(milvus, options=_ANY_SIZE) as behind, ThreadPoolExecutor(_CALLS) as threads:
        gate = Gate(behind, token)
        server = grpc.server(threads, handlers=[gate], options=_ANY_SIZE)
        port = server.add_secure_port(f"{LOOPBACK}:0", credentials)
        server.start()
        try:
            yield f"https://{LOOPBACK}:{port}", gate
        finally:
            server.stop(grace=1.0).wait()
