"""The memory of keys stays bounded and consistent, whatever comes in whatever order."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.core.state import Key, Limits, Scope
from gateway.edges.key_cache import KeyCache, Remembered

SIZE, ABSENT, TTL_S = 4, 3, 10.0
ids = st.sampled_from([f"key{number}" for number in range(8)])
orgs = st.sampled_from(["org_a", "org_b"])


def _remembered(key_id: str, org_id: str, version: str) -> Remembered:
    return Remembered(Key(key_id, org_id, bytes(32), Scope.FULL, None, False, Limits(), Limits()), version, 0.0)


class CacheMachine(RuleBasedStateMachine):
    """The cache against the plainest model of it: two ordered dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KeyCache(size=SIZE, absent_size=ABSENT, absent_ttl_s=TTL_S)
        self.keys: OrderedDict[str, Remembered] = OrderedDict()
        self.absent: OrderedDict[str, float] = OrderedDict()
        self.now_s = 0.0

    @rule(key_id=ids, org_id=orgs, version=st.text(max_size=3))
    def put(self, key_id: str, org_id: str, version: str) -> None:
        remembered = _remembered(key_id, org_id, version)
        self.cache.put(remembered)
        self.absent.pop(key_id, None)
        self.keys.pop(key_id, None)
        if len(self.keys) == SIZE:
            self.keys.popitem(last=False)
        self.keys[key_id] = remembered

    @rule(key_id=ids)
    def get(self, key_id: str) -> None:
        assert self.cache.get(key_id) == self.keys.get(key_id)
        if key_id in self.keys:
            self.keys.move_to_end(key_id)

    @rule(key_id=ids)
    def put_absent(self, key_id: str) -> None:
        self.cache.put_absent(key_id, self.now_s)
        self.keys.pop(key_id, None)
        self.absent.pop(key_id, None)
        if len(self.absent) == ABSENT:
            self.absent.popitem(last=False)
        self.absent[key_id] = self.now_s

    @rule(key_id=ids)
    def is_absent(self, key_id: str) -> None:
        believed = key_id in self.absent and self.now_s - self.absent[key_id] <= TTL_S
        assert self.cache.is_absent(key_id, self.now_s) == believed
        if not believed:
            self.absent.pop(key_id, None)

    @rule(key_id=ids)
    def evict(self, key_id: str) -> None:
        self.cache.evict(key_id)
        self.keys.pop(key_id, None)
        self.absent.pop(key_id, None)

    @rule(org_id=orgs)
    def evict_org(self, org_id: str) -> None:
        self.cache.evict_org(org_id)
        for key_id in [key_id for key_id, found in self.keys.items() if found.key.org_id == org_id]:
            del self.keys[key_id]

    @rule(seconds=st.sampled_from([1.0, TTL_S, TTL_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(chunk=st.integers(1, 5))
    def versions(self, chunk: int) -> None:
        pairs = [pair for ids_, versions in self.cache.versions(chunk) for pair in zip(ids_, versions, strict=True)]
        assert pairs == [(key_id, found.version) for key_id, found in self.keys.items()]

    @invariant()
    def bounded_and_the_same(self) -> None:
        assert len(self.cache) == len(self.keys) <= SIZE
        assert self.cache.absent_count == len(self.absent) <= ABSENT


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_versions_survive_a_change_between_chunks() -> None:
    """What is forgotten while the chunks are being compared is left out; what comes new is not in it."""
    cache = KeyCache(size=10)
    for number in range(4):
        cache.put(_remembered(f"key{number}", "org_a", str(number)))
    chunks = cache.versions(2)
    assert next(chunks) == (["key0", "key1"], ["0", "1"])
    cache.evict("key2")
    cache.put(_remembered("new", "org_a", "9"))
    assert list(chunks) == [(["key3"], ["3"])]
