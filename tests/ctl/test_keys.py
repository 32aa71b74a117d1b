"""`svcctl keys` against a fake registry."""

from typing import Any

from ctl.codes import Code
from tests.ctl.conftest import Suite

ROOT = "registry {} /api/v1/keys"


def key(name: str = "team-a", **members: Any) -> dict[str, Any]:
    return {"name": name, "created_at": "2026-01-01T00:00:00Z", **members}


async def test_create_prints_the_secret_alone_to_standard_output(suite: Suite) -> None:
    suite.answers[ROOT.format("POST")] = (201, key(secret="sk-svc-x"))
    done = await suite.ctl(
        *("keys", "create", "team-a", "--model", "qwen-*", "--model", "llama", "--requests-per-minute", "60"),
        *("--tokens-per-day", "none", "--expires", "90d", "--admin", "no"),
    )
    assert (done.code, done.stdout) == (0, "sk-svc-x\n")
    assert "shown once" in done.stderr
    _, body, _ = suite.asked[0]
    assert body.pop("expires_at").endswith("+00:00")
    assert body == {
        "name": "team-a",
        "models": ["qwen-*", "llama"],
        "requests_per_minute": 60,
        "tokens_per_day": None,
        "admin": False,
    }


async def test_json_is_the_registrys_answer(suite: Suite) -> None:
    suite.answers[ROOT.format("POST")] = (201, key(secret="sk-svc-x"))
    assert (await suite.ctl("keys", "create", "team-a", "--json")).json["secret"] == "sk-svc-x"


async def test_limits_change_what_flags_say_and_show_without_them(suite: Suite) -> None:
    shown = key(requests_per_minute=5, enabled=False, admin=True)
    suite.answers[f"{ROOT.format('PATCH')}/team-a"] = shown
    suite.answers[f"{ROOT.format('GET')}/team-a"] = shown
    done = await suite.ctl("keys", "limits", "team-a", "--disable", "--requests-per-minute", "5", "--model", "none")
    assert suite.asked[0][1] == {"enabled": False, "requests_per_minute": 5, "models": None}
    assert done.stdout == (await suite.ctl("keys", "limits", "team-a")).stdout
    assert done.stdout.splitlines()[1].split()[:5] == ["team-a", "(admin)", "disabled", "all", "5"]


async def test_rotate_revoke_and_list(suite: Suite) -> None:
    suite.answers[f"{ROOT.format('POST')}/team-a/rotate"] = key(secret="new", old_secret_until="2026-01-02T00:00:00Z")
    suite.answers[f"{ROOT.format('DELETE')}/team-a"] = key()
    suite.answers[ROOT.format("GET")] = {
        "total": 2,
        "keys": [key(models=["m"]), key("b", expires_at="2026-01-01T00:00:00Z")],
    }
    done = await suite.ctl("keys", "rotate", "team-a", "--grace", "2h")
    assert (done.stdout, suite.asked[0][1]) == ("new\n", {"grace_s": 7200})
    assert "until 2026-01-02" in done.stderr
    assert (await suite.ctl("keys", "revoke", "team-a")).code == 0
    lines = (await suite.ctl("keys", "list")).stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["team-a", "active"], ["b", "expired"]]


async def test_what_is_no_limit_is_refused_before_anybody_is_asked(suite: Suite) -> None:
    for flags in (("--requests-per-minute", "0"), ("--tokens-per-day", "1e9"), ("--expires", "soon")):
        done = await suite.ctl("keys", "limits", "team-a", *flags)
        assert done.code == Code.USAGE
    assert suite.asked == []
