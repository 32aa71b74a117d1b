"""The static services file: its shapes, its places, and what one bad entry does to the others."""

from pathlib import Path

import pytest

from common.settings import SettingsError
from router.directory import Directory
from router.replica_keys import ReplicaKeys
from router.static_file import StaticService, read_static_services

OTHER_TYPE = '{"name":"a","host":"127.0.0.1","port":9000,"metadata":{"type":"node-agent"}}'
ENTRY = '{"name":"a","host":"127.0.0.1","port":9000,"weight":2,"metadata":{"models":["m"]}}'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "static.json"
    path.write_text(text)
    return path


def directory() -> Directory:
    return Directory(grace_s=60.0, max_errors=3, slots=8)


@pytest.mark.parametrize(
    "text", [f"[{ENTRY}]", f'{{"services":[{ENTRY}]}}', f'{{"static_services":{{"services":[{ENTRY}]}}}}']
)
def test_static_file_in_its_three_shapes(tmp_path: Path, text: str) -> None:
    [service] = read_static_services(written(tmp_path, text)).services
    assert (service.name, service.port, service.weight) == ("a", 9000, 2.0)


@pytest.mark.parametrize(
    ("said", "weight"),
    [('"weight":2,"metadata":{"weight":3}', 2.0), ('"metadata":{"weight":3}', 3.0), ('"metadata":{}', 1.0)],
)
def test_static_weight_is_the_entrys_or_that_of_its_metadata(tmp_path: Path, said: str, weight: float) -> None:
    path = written(tmp_path, f'[\n\t{{"name":"a","host":"127.0.0.1","port":9000,{said}}}\n]')
    book = directory()
    book.set_static(read_static_services(path).services)
    assert book.replicas["a"].weight == weight


@pytest.mark.parametrize(("text", "message"), [("{}", "needs a list of services"), ("[", "not valid")])
def test_file_without_a_list_is_refused_and_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_static_services(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"name":"b","host":"h"}', "entry 2 (b): 'settings': needs 'host' and 'port', or a 'url'"),
        ('{"name":"../x","host":"h","port":1}', "entry 2 (../x): 'name': must be letters"),
        ('{"name":"b","host":"h/..","port":1}', "entry 2 (b): 'host': must be a host name or an IP address"),
        ('{"name":"b","host":"h","port":0}', "entry 2 (b): 'port':"),
        ('{"name":"b","host":"h","port":1,"wieght":1}', "entry 2 (b): unknown key 'wieght' (did you mean 'weight'?)"),
        ('{"host":"h","port":1}', "entry 2: 'name' is missing"),
        ('{"name":"b","url":"ftp://h/"}', "entry 2 (b): 'url': must be http(s)://host[:port][/path]"),
        ('{"name":"b","url":"http://h/a/../b"}', "entry 2 (b): 'url':"),
        ('{"name":"b","host":"h","port":1,"api_key_file":"/nowhere/key"}', "entry 2 (b): key file /nowhere/key:"),
        ('"http://h:1"', "entry 2: must be a table, not str"),
        (ENTRY, "entry 2 (a): the name 'a' appears twice"),
    ],
)
def test_one_bad_entry_is_named_in_our_words_and_the_rest_is_served_W19(tmp_path: Path, bad: str, said: str) -> None:
    last = ENTRY.replace('"a"', '"z"')
    path = written(tmp_path, f"[{ENTRY},{bad},{last}]")
    read = read_static_services(path)
    assert [service.name for service in read.services] == ["a", "z"]
    [fault] = read.faults
    assert fault.startswith(f"{path}: {said}"), fault


def test_entry_that_has_become_bad_leaves_its_replica_as_it_was_W19(tmp_path: Path) -> None:
    book = directory()
    book.set_static(read_static_services(written(tmp_path, f"[{ENTRY}]")).services)
    read = read_static_services(written(tmp_path, f"[{ENTRY.replace('9000', '0')}]"))
    book.set_static(read.services, kept=read.faulty)
    assert book.replicas["a"].record.port == 9000
    book.set_static([])
    assert not book.replicas


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("http://gw/team-a/v1", ("gw", 80, False, "/team-a", "/v1")),
        ("https://gw.example.org/team-a/", ("gw.example.org", 443, True, "/team-a", None)),
        ("https://[::1]:8443", ("::1", 8443, True, "", None)),
        ("HTTPS://gw", ("gw", 443, True, "", None)),
        ("http://my_app_vllm_1:8000/v1", ("my_app_vllm_1", 8000, False, "", "/v1")),
    ],
)
def test_static_replica_may_be_given_by_url_with_scheme_and_base_path_W19(
    url: str, where: tuple[str, int, bool, str, str | None]
) -> None:
    book = directory()
    book.set_static([StaticService(name="a", url=url, metadata={"models": ["m"]}).record()])
    [endpoint] = book.table().endpoints
    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.base_path, endpoint.api_prefix) == where


def test_key_of_a_static_service_is_read_from_its_file_and_shown_nowhere_W3(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    key.chmod(0o600)
    text = f'[{{"name":"a","host":"h","port":1,"api_key_file":"{key}"}},{{"name":"b","host":"h","port":2}}]'
    read = read_static_services(written(tmp_path, text))
    book = directory()
    book.set_keys(ReplicaKeys(static=read.keys))
    book.set_static(read.services)
    assert [endpoint.authorization for endpoint in book.table().endpoints] == ["Bearer s3cret", None]
    assert "s3cret" not in repr((read, book, book.table(), book.replicas["a"].plan))
    key.chmod(0o644)
    [fault] = read_static_services(written(tmp_path, text)).faults
    assert "others can read it" in fault


def test_null_in_the_static_file_is_absent_W21(tmp_path: Path) -> None:
    path = written(tmp_path, '[{"name":"a","host":"h","port":1,"weight":null,"metadata":null,"url":null}]')
    assert read_static_services(path).services == (StaticService(name="a", host="h", port=1).record(),)


def test_static_service_that_becomes_another_type_is_no_replica_any_more(tmp_path: Path) -> None:
    book = directory()
    for text, names in ((ENTRY, ["a"]), (OTHER_TYPE, [])):
        book.set_static(read_static_services(written(tmp_path, f"[{text}]")).services)
        assert list(book.replicas) == names
