"""KV connectors and draft steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.distributed.kv_transfer import kv_transfer_state

from vllm_std.patches.wrapping import Patch

CONNECTOR = Patch(
    name="connector",
    replaces="vllm.distributed.kv_transfer.kv_transfer_state._KV_CONNECTOR_AGENT (None while a draft step runs)",
    why="attention layers call the KV connector after every forward, for K/V that are not there to stay too",
    upstream="none",
    remove_when="a forward context can say that a pass is no business of the connector's",
)


@contextmanager
def connector_muted() -> Iterator[None]:
    """Keep a KV connector's layer hooks out of draft steps, whose K/V the next dense pass overwrites."""
    agent = kv_transfer_state._KV_CONNECTOR_AGENT
    kv_transfer_state._KV_CONNECTOR_AGENT = None
    try:
        yield
    finally:
        kv_transfer_state._KV_CONNECTOR_AGENT = agent
