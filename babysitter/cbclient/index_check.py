"""Why a package index gives nothing, with the remedy (W28).

pip says "no matching distribution" to a name that does not resolve, a certificate that nobody vouches for, a proxy that
refuses and a login that is missing alike. So the index is asked once more by the same way: the proxy variables, the CA
file, the login.
"""

import ssl
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from socket import gaierror
from urllib.parse import urlsplit

from babysitter.cbclient.packages import Index, PipFault

TIMEOUT_S = 15.0


def examine(index: Index, package: str, *, ca_file: Path | None) -> PipFault | None:
    """What keeps `package` of `index` from being seen; None when its page is there. Blocks for at most `TIMEOUT_S` a step."""
    url = f"{index.url.rstrip('/')}/{package}/"
    proxy = _proxy(url)
    way = f"{url} through the proxy {proxy}" if proxy else url
    try:
        with _opener(index, ca_file).open(url, timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return _refusal(error.code, way)
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return _failure(reason, way, proxied=bool(proxy))
    except ValueError as error:
        return PipFault("index_unreachable", retry=False, text=f"{index.url} is no index URL: {error}")


def _opener(index: Index, ca_file: Path | None) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file))
    ]
    if index.login is not None:
        logins = urllib.request.HTTPPasswordMgrWithPriorAuth()
        logins.add_password(None, index.url, index.login[1], index.login[2], is_authenticated=True)
        handlers.append(urllib.request.HTTPBasicAuthHandler(logins))
    return urllib.request.build_opener(*handlers)


def _proxy(url: str) -> str | None:
    """`host:port` of the proxy that the variables name for `url`, without its login."""
    parts = urlsplit(url)
    named = urllib.request.getproxies().get(parts.scheme)
    if not named or urllib.request.proxy_bypass(parts.netloc):
        return None
    return urlsplit(named if "://" in named else f"http://{named}").netloc.rpartition("@")[2]


def _refusal(status: int, way: str) -> PipFault | None:
    problem = f"{way} answers {status}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PipFault(
            "index_refused", retry=False, text=f"{problem}: set a login in PIP_INDEX_URL or cbclient.index_url"
        )
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return PipFault("index_proxy", retry=False, text=f"{problem}: set a login in HTTPS_PROXY or HTTP_PROXY")
    if status == HTTPStatus.NOT_FOUND:
        return PipFault(
            "not_found", retry=False, text=f"{problem}: the index has no such package, or is not at this URL"
        )
    return PipFault("index_unreachable", retry=True, text=problem)


def _failure(reason: object, way: str, *, proxied: bool) -> PipFault:
    problem = f"{way}: {reason}"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return PipFault(
            "index_tls", retry=False, text=f"{problem}: set cbclient.ca_file or PIP_CERT to the index's own CA"
        )
    if isinstance(reason, ssl.SSLError):
        return PipFault("index_tls", retry=False, text=f"{problem}: does it speak TLS at this port?")
    if proxied:
        refused = str(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED.value) in str(reason)
        return PipFault("index_proxy", retry=not refused, text=f"{problem}: see HTTPS_PROXY, HTTP_PROXY and NO_PROXY")
    if isinstance(reason, gaierror):
        return PipFault("index_name", retry=True, text=f"{problem}: the index's name is not known here")
    return PipFault("index_unreachable", retry=True, text=problem)
