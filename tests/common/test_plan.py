import pytest

from common.discovery.plan import Plan, plan_of


@pytest.mark.parametrize(
    ("url", "plan", "base"),
    [
        ("http://10.0.0.1:8000", Plan("10.0.0.1", 8000), "http://10.0.0.1:8000"),
        ("http://10.0.0.1:8000/", Plan("10.0.0.1", 8000), "http://10.0.0.1:8000"),
        ("https://gpu1:8443", Plan("gpu1", 8443, tls=True), "https://gpu1:8443"),
        ("https://gpu1", Plan("gpu1", 9, tls=True), "https://gpu1:9"),
        ("http://[::1]:8000/v1", Plan("::1", 8000, api_prefix="/v1"), "http://[::1]:8000"),
        ("https://gw:443/a/b/v1/", Plan("gw", 443, tls=True, base_path="/a/b", api_prefix="/v1"), "https://gw:443/a/b"),
    ],
)
def test_plan_follows_the_url_W2(url: str, plan: Plan, base: str) -> None:
    assert plan_of(url, "h", 9) == plan
    assert plan.url == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu1:8000",
        "ftp://gpu1:8000",
        "http://user:secret@gpu1:8000",
        "http://gpu1:port",
        "http://gpu1:0",
        "http://[::1",
        "http://gpu1:8000/?x=1",
        "http://gpu1:8000/a/../b",
        "http://gpu1:8000/a//b",
        "http://gpu1:8000/%2e%2e/b",
        "http://gpu1:8000/a b",
        "http://gpu1:8000/a\r\nx: y",
        "http://g pu1:8000",
    ],
)
def test_url_of_no_use_leaves_host_and_port_W2(url: str) -> None:
    assert plan_of(url, "[::1]", 9) == Plan("::1", 9)


def test_plan_does_not_show_its_secret_W3() -> None:
    plan = plan_of("http://h:1", "h", 1, authorization="Bearer s3cret")
    assert plan.authorization == "Bearer s3cret"
    assert "s3cret" not in repr(plan)
