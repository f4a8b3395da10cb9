"""A switching worker's side of the queue: offer checkpoints, and ask which one to load next.

Every method may raise redis.exceptions.RedisError: Redis is away, or it refuses to write. The call can then be
repeated, whether or not Redis received it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from tasks.card import Card
from tasks.errors import WorkerReplacedError
from tasks.settings import Settings
from tasks.store import keys, schema, scripts
from tasks.store.mending import call_mended
from tasks.switching_info import ChildState, SwitchingInfo

#: Most offers that are sent or retracted in one call, so that no call keeps Redis busy for long.
MOST_CHANGES = 200


@dataclass(frozen=True, slots=True)
class Offer:
    """A checkpoint that a switching worker can load."""

    card: Card
    #: Memory that a child with it needs, in bytes.
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """Start a child for this checkpoint. The worker holds the claim on it while its heartbeats list the child."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Give up a loaded checkpoint, to make room for another one. `Load` follows when the child is gone."""

    #: The loaded checkpoint.
    checkpoint: str
    #: The checkpoint that needs the room.
    wanted: str
    #: Whether the child releases the jobs that it runs at once, because other workers have slots for them. Otherwise it
    #: ends them first.
    hand_on: bool


class SwitchingStore:
    """One switching worker's view of the queue in Redis. One instance for each run, for one thread at a time."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._ttl_ms = scripts.ms(settings.worker_ttl_s)
        #: The offers that Redis has, as far as this store knows. None: they are not known.
        self._published: dict[str, Offer] | None = None

    def check_schema(self) -> None:
        """Mark an empty Redis with the layout's version. Raises SchemaError if Redis holds keys in another layout."""
        schema.check_reply(self._call("schema", keys.SCHEMA_VERSION))

    def offer(
        self, info: SwitchingInfo, offers: Mapping[str, Offer], *, unloadable: Collection[str] = ()
    ) -> frozenset[str]:
        """Send a heartbeat, and what has changed in the offers since the last one.

        `offers` are all checkpoints that the worker offers now, by name. Jobs that wait for one that is no longer among
        them fail, unless another worker has it: because its files were removed, or because it cannot be loaded if it is
        in `unloadable`. Returns the offers that were refused because other live workers, or the worker's own child,
        have other weights under the name; each heartbeat tries them again.

        Raises WorkerReplacedError if a later run has registered under the worker's name.
        """
        refused: set[str] = set()
        for changed, retracted in self._changes(offers):
            anew = self._published is None
            known = {name: offer for name, offer in (self._published or {}).items() if name not in retracted}
            if anew:
                self.check_schema()
            reply = self._send(info, {**known, **changed}, changed, retracted, unloadable, anew=anew)
            if reply is None:
                # Redis has lost what it had, or this process was away for so long that its offers ended.
                self._published = None
                return frozenset(refused) if anew else self.offer(info, offers, unloadable=unloadable)
            conflicts, missing = reply
            refused |= conflicts
            if not missing <= known.keys() | changed.keys():
                # Something else has changed the key of the offers.
                self._published = None
                continue
            self._published = {
                name: offer for name, offer in {**known, **changed}.items() if name not in conflicts | missing
            }
        return frozenset(refused)

    def next_switch(self, info: SwitchingInfo) -> Load | Retire | None:
        """What to do now so that the jobs which wait longest are served. None: nothing.

        Call it each second, and when `keys.SWITCHING_CHANNEL` names an offered checkpoint. A call that is repeated
        before the children of `info` have changed gives the same result.
        """
        children = (
            part
            for child in info.children
            for part in (
                child.checkpoint,
                child.worker,
                child.memory_bytes,
                int(child.state is ChildState.RETIRING),
            )
        )
        reply = self._call("switch", info.name, info.incarnation, info.budget_bytes, self._ttl_ms, *children)
        match [part.decode() for part in reply]:
            case []:
                return None
            case ["load", checkpoint]:
                return Load(checkpoint)
            case [("retire" | "hand_on") as how, checkpoint, wanted]:
                return Retire(checkpoint, wanted, hand_on=how == "hand_on")
            case other:
                raise TypeError(f"not a reply of switch: {other!r}")

    def retract(self, info: SwitchingInfo) -> None:
        """End all offers of a worker that stops. Jobs that wait for them go on waiting, for this worker or others."""
        self._call("retract", info.name, info.incarnation)
        self._published = None

    def _changes(self, offers: Mapping[str, Offer]) -> Iterator[tuple[dict[str, Offer], list[str]]]:
        """What to send in each call of one heartbeat: new and changed offers, and names of retracted ones."""
        published = dict(self._published or {})
        changed = iter([(name, offer) for name, offer in offers.items() if published.get(name) != offer])
        retracted = iter([name for name in published if name not in offers])
        while True:
            part = dict(islice(changed, MOST_CHANGES)), list(islice(retracted, MOST_CHANGES))
            yield part
            if len(part[0]) < MOST_CHANGES and len(part[1]) < MOST_CHANGES:
                return

    def _send(
        self,
        info: SwitchingInfo,
        total: Collection[str],
        changed: Mapping[str, Offer],
        retracted: Collection[str],
        unloadable: Collection[str],
        *,
        anew: bool,
    ) -> tuple[set[str], set[str]] | None:
        """Conflicts and missing offers in the reply of `offer.lua`; None: Redis has other offers."""
        fields = info.to_fields()
        reasons = [part for name in retracted for part in (name, "unloadable" if name in unloadable else "removed")]
        loading = info.in_state(ChildState.LOADING)
        outcome, *rest = self._call(
            "offer",
            info.name,
            info.incarnation,
            self._ttl_ms,
            int(anew),
            len(total),
            *(part for items in (fields, reasons, loading) for part in (len(items), *items)),
            *(part for name, offer in changed.items() for part in _arguments(name, offer)),
        )
        if outcome == b"replaced":
            raise WorkerReplacedError(info.name)
        if outcome == b"unknown":
            return None
        conflicts, missing = ({name.decode(errors="replace") for name in names} for names in rest)
        return conflicts, missing

    def _call(self, name: str, *arguments: scripts.Argument) -> Any:
        return call_mended(self._redis, name, *arguments)


def _arguments(name: str, offer: Offer) -> tuple[scripts.Argument, ...]:
    """The arguments of `offer.lua` for one offer."""
    return name, offer.memory_bytes, offer.card.weight_bytes, offer.card.digest, offer.card.to_json()
