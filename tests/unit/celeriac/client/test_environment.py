"""Variables of the environment that other programs set: proxies and certificates, for both clients."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from celeriac import AsyncInferenceClient, CeleriacError, ConfigurationError, InferenceClient
from celeriac.client.environment import connection_options

HTTP_URL = "http://inference.example:8000"
HTTPS_URL = "https://inference.example"
BAD_PROXIES = ["socks://127.0.0.1:7897", "ftp://proxy", "host:not:a:port", "http://[::1", "http://", "socks5://proxy:1"]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CELERIAC_URL", raising=False)


def proxy_for(url: str) -> str | None:
    proxy = connection_options(url)["proxy"]
    return None if proxy is None else str(proxy.url)


@pytest.mark.parametrize("client", [InferenceClient, AsyncInferenceClient])
@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.9.9.9", "http://[::1]:8000", "http://LOCALHOST"])
def test_a_server_on_this_machine_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, client: type[InferenceClient], url: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    monkeypatch.setenv("NO_PROXY", "[broken")
    for value in ("http://proxy:3128", *BAD_PROXIES):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, value)
        client(url)
        assert proxy_for(url) is None


@pytest.mark.parametrize("client", [InferenceClient, AsyncInferenceClient])
@pytest.mark.parametrize("value", BAD_PROXIES)
@pytest.mark.parametrize(
    ("name", "url"),
    [("HTTP_PROXY", HTTP_URL), ("https_proxy", HTTPS_URL), ("ALL_PROXY", HTTP_URL), ("All_Proxy", HTTPS_URL)],
)
def test_a_proxy_that_cannot_be_used_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, client: type[InferenceClient], name: str, url: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name} ") as caught:
        client(url)
    assert isinstance(caught.value, CeleriacError)


def test_the_error_about_a_proxy_does_not_contain_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("socks://user:secret@proxy", "http://user:secret@proxy:port"):
        monkeypatch.setenv("HTTP_PROXY", value)
        with pytest.raises(ConfigurationError) as caught:
            InferenceClient(HTTP_URL)
        assert "secret" not in str(caught.value)


def test_a_variable_that_does_not_apply_to_the_url_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    for name in ("HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks://127.0.0.1:7897")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    InferenceClient(HTTP_URL)
    assert proxy_for(HTTP_URL) == "http://proxy:3128"


@pytest.mark.parametrize(
    ("no_proxy", "url", "excluded"),
    [
        ("*", HTTP_URL, True),
        ("inference.example", HTTP_URL, True),
        ("other, INFERENCE.example", HTTP_URL, True),
        ("other inference.example", HTTP_URL, True),
        ("example", HTTP_URL, True),
        (".example", HTTP_URL, True),
        ("*.example", HTTP_URL, True),
        (".inference.example", HTTP_URL, False),
        ("ference.example", HTTP_URL, False),
        ("inference.example:8000", HTTP_URL, True),
        ("inference.example:80", HTTP_URL, False),
        ("inference.example:443", HTTPS_URL, True),
        ("http://inference.example", HTTP_URL, True),
        ("http://inference.example", HTTPS_URL, False),
        ("all://inference.example", HTTPS_URL, True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000", False),
        ("10.1.2.3", "http://10.1.2.3:8000", True),
        ("2.3", "http://10.1.2.3:8000", False),
        ("localhost,fd00::/8", "http://[fd00::1]:8000", True),
        ("localhost,fd00::/8", HTTP_URL, False),
        ("[fd00::1]:8000", "http://[fd00::1]:8000", True),
        ("fd00::1", "http://[fd00::1]:8000", True),
    ],
)
def test_no_proxy_excludes_hosts_and_networks(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, excluded: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(url) is None) is excluded


@pytest.mark.parametrize("entry", ["[broken", "fd00::/999", "http://host/path"])
def test_an_unreadable_entry_of_no_proxy_is_an_error(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    for value in (f"inference.example,{entry}", f"{entry},inference.example"):
        monkeypatch.setenv("NO_PROXY", value)
        with pytest.raises(ConfigurationError, match=r"^NO_PROXY has the entry"):
            InferenceClient(HTTP_URL)


@pytest.mark.parametrize("url", [HTTPS_URL, "https://127.0.0.1"])
def test_certificates_that_cannot_be_read_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    no_certificate = tmp_path / "text.pem"
    no_certificate.write_text("no certificate")
    cases = {
        "SSL_CERT_FILE": ["/nonexistent.pem", str(tmp_path), str(no_certificate)],
        "SSL_CERT_DIR": ["/nonexistent", str(no_certificate)],
        "SSLKEYLOGFILE": ["/nonexistent/keys"],
    }
    for name, values in cases.items():
        for value in values:
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                with pytest.raises(ConfigurationError, match=f"^{name}: "):
                    InferenceClient(url)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    InferenceClient(url).close()


def test_requests_use_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Proxy | None] = []
    real = httpx.Client

    def client(**options: object) -> httpx.Client:
        seen.append(options["proxy"])  # type: ignore[arg-type]
        return real(**options)  # type: ignore[arg-type]

    monkeypatch.setattr("celeriac.client.sync_client.httpx.Client", client)
    monkeypatch.setenv("HTTP_PROXY", "http://user:password@proxy:3128")
    InferenceClient(HTTP_URL).close()
    [proxy] = seen
    assert proxy is not None
    assert (str(proxy.url), proxy.auth) == ("http://proxy:3128", ("user", "password"))


@pytest.mark.parametrize("client", [InferenceClient, AsyncInferenceClient])
def test_the_default_url_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, client: type[InferenceClient]
) -> None:
    assert client().base_url == "http://127.0.0.1:8000"
    monkeypatch.setenv("CELERIAC_URL", "http://host:1234/")
    assert client().base_url == "http://host:1234"
    assert client("http://other").base_url == "http://other"
    for url in ("host:1234", "http://[::1", "http://"):
        monkeypatch.setenv("CELERIAC_URL", url)
        with pytest.raises(ConfigurationError, match=r"^CELERIAC_URL: "):
            client()
        with pytest.raises(ValueError, match="http"):
            client(url)
