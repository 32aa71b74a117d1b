"""Documents in etcd, and leadership: a key under this registry's own lease, compared in every transaction of the leader.

The revision that created the leader's key is the fence: a registry that was paused and comes back compares the one it
had, and writes nothing. etcd's clock alone ends the lease.
"""

import secrets
from collections.abc import Callable, Mapping

from registry.core.documents import Document, Fence
from registry.core.store import DocumentConflict, FenceLost, StoreError, StoreUnavailable
from registry.store.gateway import Gateway, NotFound, Reply, Request, range_end

LEASE_S = 5


class EtcdDocuments:
    """Documents under `ROOT/documents/`; the leader's name is at `ROOT/leader`.

    Args:
        root: Of all keys of ours.
        calls: The gateway while the store is open.
    """

    def __init__(self, root: str, calls: Callable[[], Gateway]) -> None:
        self._documents = f"{root}documents/"
        self._leader = f"{root}leader".encode()
        self._calls = calls
        self._name = secrets.token_hex(8).encode()
        self._lease = 0

    async def lead(self) -> Fence | None:
        """Renew the lease; then take the leader's key if nobody has it. One that only looks who has it needs no lease."""
        if not self._lease and (await self._calls().call("/kv/range", {"key": self._leader})).kvs:
            return None
        lease = await self._renewed()
        body = {
            "compare": [{"key": self._leader, "target": "CREATE", "result": "EQUAL", "create_revision": 0}],
            "success": [{"request_put": {"key": self._leader, "value": self._name, "lease": lease}}],
            "failure": [{"request_range": {"key": self._leader}}],
        }
        try:
            reply = await self._calls().call("/kv/txn", body)
        except NotFound:
            self._lease = 0
            return None
        if reply.succeeded:
            return Fence(reply.header.revision)
        holder = reply.responses[0].response_range.kvs[0]
        return Fence(holder.create_revision) if (holder.value, holder.lease) == (self._name, lease) else None

    async def read(self, prefix: str) -> Mapping[str, Document]:
        """Those under `prefix`, by one linearizable read."""
        start = self._documents + prefix
        reply = await self._calls().call("/kv/range", {"key": start.encode(), "range_end": range_end(start)})
        return {it.name.removeprefix(self._documents): Document(it.value, it.mod_revision) for it in reply.kvs}

    async def write(self, key: str, value: bytes | None, *, version: int, fence: Fence | None = None) -> int:
        """Compare version and fence, and set, in one transaction."""
        name = (self._documents + key).encode()
        compare: list[Request] = [{"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": version}]
        if fence is not None:
            ours = {"key": self._leader, "target": "CREATE", "result": "EQUAL", "create_revision": fence.number}
            compare.append(ours)
        put = {"request_put": {"key": name, "value": value}}
        body: Request = {
            "compare": compare,
            "success": [put if value is not None else {"request_delete_range": {"key": name}}],
            "failure": [{"request_range": {"key": name}}, {"request_range": {"key": self._leader}}],
        }
        reply = await self._calls().call("/kv/txn", body)
        return reply.header.revision if reply.succeeded else _judge(key, value, version, fence, reply)

    async def say(self, key: str, value: bytes) -> None:
        """Put it under this registry's lease."""
        put = {"key": (self._documents + key).encode(), "value": value, "lease": self._lease or await self._renewed()}
        try:
            await self._calls().call("/kv/put", put)
        except NotFound:
            self._lease = 0
            raise

    async def resign(self) -> None:
        """Let another registry lead at once; what was said is forgotten."""
        if self._lease:
            lease, self._lease = self._lease, 0
            try:
                await self._calls().call("/lease/revoke", {"ID": lease})
            except StoreError:  # it ends by itself
                return

    async def _renewed(self) -> int:
        """This registry's lease with its full length; a new one when there is none any more."""
        if self._lease:
            reply = await self._calls().call("/lease/keepalive", {"ID": self._lease})
            if reply.result.ttl is not None:
                return self._lease
        granted = await self._calls().call("/lease/grant", {"TTL": LEASE_S})
        self._lease = granted.id
        return self._lease


def _judge(key: str, value: bytes | None, version: int, fence: Fence | None, reply: Reply) -> int:
    """Why a transaction did nothing. One that was repeated after a broken connection may have been done the first time."""
    here, leader = (it.response_range.kvs for it in reply.responses)
    there = here[0] if here else None
    leads = fence is None or (bool(leader) and leader[0].create_revision == fence.number)
    if there is not None and there.mod_revision > version and there.value == value and leads:
        return there.mod_revision
    if there is None and value is None and version and leads:
        return reply.header.revision
    if (there.mod_revision if there else 0) != version:
        raise DocumentConflict(key)
    if not leads:
        raise FenceLost(key)
    raise StoreUnavailable(f"etcd did not write {key!r} and does not say why")
