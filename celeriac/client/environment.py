"""What the client takes from the environment: the URL of the server, the proxy, and the certificates that it trusts.

httpx reads the variables for all URLs that a client may ever request, and fails if it cannot read one of them. A client
of Celeriac requests one server only, so it reads the variables that apply to the URL of this server, and no others.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from typing import Any
from urllib.request import getproxies

import httpx

from celeriac.client.defaults import DEFAULT_URL
from celeriac.client.errors import ConfigurationError

#: The variable with the URL of the server.
URL_VARIABLE = "CELERIAC_URL"
#: An entry of NO_PROXY: a host, perhaps with the scheme before it and the port after it.
_NO_PROXY_ENTRY = re.compile(r"(?:(?P<scheme>\w+)://)?(?P<host>[^\s:/\[\]]+|\[[^\s/\[\]]+\])(?::(?P<port>\d+))?")


def checked_url(url: str) -> httpx.URL:
    """The URL of a server, parsed. Raises ValueError."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} does not begin with http:// or https://")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if not parsed.host:
        raise ValueError(f"{url!r} names no host")
    return parsed


def server_url(base_url: str | None) -> str:
    """The URL of the server: `base_url`, or else CELERIAC_URL, or else the default. Raises ConfigurationError."""
    if base_url is not None:
        return base_url
    url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        checked_url(url)
    except ValueError as error:
        raise ConfigurationError(f"{URL_VARIABLE}: {error}") from error
    return url


def connection_options(base_url: str) -> dict[str, Any]:
    """Arguments of `httpx.Client` for connections to a server, from the environment. Raises ConfigurationError."""
    url = checked_url(base_url)
    return {"trust_env": False, "proxy": _proxy(url), "verify": _tls_context(url)}


def _proxy(url: httpx.URL) -> httpx.Proxy | None:
    """The proxy for a URL; None: connect directly, as always to this machine."""
    if _is_loopback(url.host):
        return None
    proxies = getproxies()
    scheme = url.scheme if proxies.get(url.scheme) else "all"
    value = proxies.get(scheme)
    if not value or _is_excluded(url, proxies.get("no", "")):
        return None
    try:
        proxy = httpx.Proxy(value if "://" in value else f"http://{value}")
        # httpx raises the errors of a proxy when it makes the transport.
        httpx.HTTPTransport(proxy=proxy, verify=_no_certificates()).close()
    except (ValueError, httpx.InvalidURL, ImportError) as error:
        # The value may contain a password, so the message does not quote it.
        raise ConfigurationError(
            f"{_variable(scheme)} is not a proxy that can be used for {url}. Use a URL such as http://host:port, "
            f"or add {url.host} to NO_PROXY. {_reason(error)}"
        ) from error
    if not proxy.url.host:
        raise ConfigurationError(f"{_variable(scheme)} names no host. Use a URL such as http://host:port.")
    return proxy


def _reason(error: Exception) -> str:
    """Why httpx cannot use a proxy, without its URL."""
    if isinstance(error, ImportError):
        return "SOCKS needs another package: pip install 'httpx[socks]'."
    if isinstance(error, httpx.InvalidURL):
        return "The value is not a URL."
    return "The schemes http, https, socks5 and socks5h are supported."


def _variable(scheme: str) -> str:
    """The name of the proxy variable that applies, as it is written in the environment."""
    name = f"{scheme}_proxy"
    # As in `urllib.request.getproxies`, the name in lower case comes first.
    written = [name, *(other for other in os.environ if other.lower() == name)]
    return next((other for other in written if os.environ.get(other)), "The proxy of the system")


def _is_excluded(url: httpx.URL, no_proxy: str) -> bool:
    """Whether NO_PROXY contains the host of a URL. Raises ConfigurationError if an entry cannot be read."""
    # Every entry is read: whether a mistake is reported does not depend on the order.
    matches = [_matches(url, entry) for entry in re.split(r"[,\s]+", no_proxy) if entry]
    return any(matches)


def _matches(url: httpx.URL, entry: str) -> bool:
    if entry == "*":
        return True
    address = _address(url.host)
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    match = _NO_PROXY_ENTRY.fullmatch(entry)
    if match is None:
        raise ConfigurationError(
            f"{_variable('no')} has the entry {entry!r}, which is not a host, an address or a network such as "
            "192.168.0.0/16 or fd00::/8."
        )
    scheme, host, port = match["scheme"], match["host"].strip("[]").lower(), match["port"]
    if scheme not in (None, "all", url.scheme):
        return False
    if port is not None and int(port) != (url.port or {"http": 80, "https": 443}[url.scheme]):
        return False
    domain = host.removeprefix("*").removeprefix(".")
    is_subdomain = url.host.endswith(f".{domain}") and address is None
    # As in httpx, `.example.com` contains the subdomains only.
    return is_subdomain or (url.host == domain and domain == host)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _tls_context(url: httpx.URL) -> ssl.SSLContext:
    """The certificates that the client trusts: SSL_CERT_FILE, or else SSL_CERT_DIR, or else those of httpx."""
    if url.scheme == "http":
        return _no_certificates()
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    variable = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
    try:
        if not file and folder:
            # OpenSSL accepts a folder that does not exist, and then trusts no certificate.
            os.scandir(folder).close()
        return httpx.create_ssl_context()
    except OSError as error:
        if error.filename is not None and error.filename == os.environ.get("SSLKEYLOGFILE"):
            raise ConfigurationError(f"SSLKEYLOGFILE: {error.strerror}: {error.filename}") from error
        if not (file or folder):
            raise
        raise ConfigurationError(f"{variable}: {file or folder} cannot be read as certificates: {error}") from error


def _no_certificates() -> ssl.SSLContext:
    """A context that trusts no certificate, for connections without TLS. Reading certificates would take long."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
