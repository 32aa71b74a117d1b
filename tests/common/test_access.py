from pathlib import Path

import pytest

from common.exits import ConfigurationError
from common.http.access import bearer_matches, is_loopback, read_credential, read_token, require_guard

TOKEN = "0123456789abcdef" * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.example"])
def test_anything_else_is_the_network(host: str) -> None:
    assert not is_loopback(host)


def test_the_network_needs_tokens_or_an_accepted_risk() -> None:
    require_guard("registry", "127.0.0.1", guarded=False, insecure=False)
    require_guard("registry", "0.0.0.0", guarded=True, insecure=False)
    require_guard("registry", "0.0.0.0", guarded=False, insecure=True)
    with pytest.raises(
        ConfigurationError, match=r"registry: refusing to listen on 0\.0\.0\.0 without tokens.*--insecure-no-auth"
    ):
        require_guard("registry", "0.0.0.0", guarded=False, insecure=False)


def token_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_read_token_takes_one_line_with_or_without_its_end(tmp_path: Path) -> None:
    assert read_token(token_file(tmp_path, TOKEN)) == TOKEN
    assert read_token(token_file(tmp_path, TOKEN + "\n")) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_read_token_refuses_a_file_that_others_can_touch(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_token(token_file(tmp_path, TOKEN, mode))


@pytest.mark.parametrize("text", ["", "short", TOKEN + "\n" + TOKEN, "x" * 20 + " " + "y" * 20])
def test_read_token_refuses_what_is_no_token(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="openssl rand"):
        read_token(token_file(tmp_path, text))


def test_read_token_names_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="absent"):
        read_token(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="ascii"):
        read_token(token_file(tmp_path, "é" * 40))
    with pytest.raises(ConfigurationError, match="more than the 4096 allowed"):
        read_token(token_file(tmp_path, "x" * 5000))


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}"])
def test_the_right_token_matches(header: str) -> None:
    assert bearer_matches(header, TOKEN)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer  {TOKEN}", "Bearer \udcff"]
)  # fmt: skip
def test_anything_else_does_not_match(header: str | None) -> None:
    assert not bearer_matches(header, TOKEN)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sk-1\n", "Bearer sk-1"),
        ("Basic dXNlcjpwYXNz", "Basic dXNlcjpwYXNz"),
        ("  token-abc123  ", "Bearer token-abc123"),
    ],
)
def test_key_file_is_a_key_or_a_whole_header_value_W3(tmp_path: Path, text: str, value: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    assert read_credential(path) == value


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("k", 0o640, "others can read it"),
        ("", 0o600, "one line"),
        ("a\nb", 0o600, "one line"),
        ("k\u00e9", 0o600, "ascii"),
    ],
)
def test_key_file_of_no_use_is_refused_without_its_content_W3(tmp_path: Path, text: str, mode: int, said: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_credential(path)
    assert str(path) in str(caught.value)
