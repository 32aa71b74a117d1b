import hashlib
from pathlib import Path

import pytest

from common.settings import SettingsError
from router.admission import PATIENCE, Priority, Waiting
from router.keys import Key, KeyRing
from router.settings import read_api_keys


def test_clients_take_turns() -> None:
    waiting: Waiting[str] = Waiting(10)
    for ticket in ("a1", "a2", "a3"):
        assert waiting.join("m", "a", ticket)
    waiting.join("m", "b", "b1")
    assert [waiting.next("m", 0.0) for _ in range(5)] == ["a1", "b1", "a2", "a3", None]
    assert len(waiting) == 0


def test_a_line_is_bounded_and_one_model_does_not_fill_anothers() -> None:
    waiting: Waiting[int] = Waiting(2)
    assert [waiting.join("m", "a", number) for number in range(3)] == [True, True, False]
    assert waiting.join("n", "a", 1)
    assert sorted(waiting.models()) == ["m", "n"]


def test_who_leaves_is_gone_and_may_leave_twice() -> None:
    waiting: Waiting[int] = Waiting(5)
    waiting.join("m", "a", 1)
    waiting.join("m", "b", 2)
    waiting.leave("m", "a", 1)
    waiting.leave("m", "a", 1)
    assert waiting.next("m", 0.0) == 2
    waiting.leave("m", "b", 2)
    assert waiting.models() == []
    assert waiting._lines == {}


def test_retry_after_follows_the_pace_of_the_line() -> None:
    waiting: Waiting[int] = Waiting(1000)
    for number in range(200):
        waiting.join("m", "a", number)
    assert waiting.retry_after_s("m") == 60
    for step in range(100):
        waiting.next("m", step * 0.05)
    assert waiting.retry_after_s("m") == 6  # 101 places at 0.05 s each
    assert waiting.retry_after_s("other") == 1


def key(secret: str, **more: object) -> Key:
    return Key(name="team", sha256=hashlib.sha256(secret.encode()).hexdigest(), **more)  # type: ignore[arg-type]  # real fields


def test_keys_are_found_by_hash_in_either_header() -> None:
    ring = KeyRing((key("k-1"),))
    assert ring.find(b"Bearer k-1") == ring.find(b"bearer  k-1") == ring.find(None, b"k-1")
    for wrong in (b"Bearer k-2", b"Basic k-1", b"k-1", b"Bearer ", b""):
        assert ring.find(wrong) is None
    assert KeyRing().find(b"Bearer k-1") is None


def test_a_key_covers_its_models() -> None:
    limited = key("k", models=("m",))
    ring = KeyRing((limited,))
    assert ring.covers(limited, "m")
    assert not ring.covers(limited, "other")


def test_key_file_faults_name_the_file_and_the_field(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    good = f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n'
    cases = {
        good + "modles = []\n": "modles",
        '[[keys]]\nname = "a"\nsha256 = "abc"\n': "keys.0.sha256",
        good + "requests_per_minute = 0\n": "keys.0.requests_per_minute",
        good + good: "appears twice",
    }
    for text, message in cases.items():
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(SettingsError, match=message) as caught:
            read_api_keys(path)
        assert str(path) in str(caught.value)
    path.write_text(good)
    assert [found.name for found in read_api_keys(path)] == ["a"]
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_api_keys(path)


def test_the_urgent_go_first_and_nobody_starves() -> None:
    waiting: Waiting[str] = Waiting(100)
    for number in range(20):
        waiting.join("m", "a", f"high{number}", Priority.HIGH)
    waiting.join("m", "b", "normal", Priority.NORMAL)
    waiting.join("m", "c", "low", Priority.LOW)
    order = [waiting.next("m", 0.0) for _ in range(22)]
    assert order[:PATIENCE] == [f"high{number}" for number in range(PATIENCE)]
    assert max(order.index("normal"), order.index("low")) == PATIENCE + 1
    assert waiting.next("m", 0.0) is None
    assert waiting._lines == {}


def test_the_least_urgent_fill_half_of_the_line() -> None:
    waiting: Waiting[int] = Waiting(4)
    assert [waiting.join("m", "a", number, Priority.LOW) for number in range(3)] == [True, True, False]
    assert waiting.join("m", "a", 3, Priority.HIGH)
    waiting.leave("m", "a", 1)
    assert [waiting.next("m", 0.0) for _ in range(2)] == [3, 0]
