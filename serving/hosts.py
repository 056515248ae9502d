"""The running servers that a deploy changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from handlers.errors import UserError
from serving.client import TorchServe
from serving.settings import Settings

LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Host:
    """A running server.

    Attributes:
        torchserve: Client of the server.
        store: Folder that it serves from.
        log: TorchServe's log if the server runs on this machine.
    """

    torchserve: TorchServe
    store: Path
    log: Path | None

    def __str__(self) -> str:
        """The URL of its management API."""
        return self.torchserve.management_url


def find_hosts(
    local: Settings,
    *,
    service_urls: Sequence[str],
    inference_urls: Sequence[str],
    model_stores: Sequence[Path],
    key_files: Sequence[Path],
    timeout_s: float,
) -> list[Host]:
    """Find the servers that the flags name; without them, the server on this machine.

    Args:
        local: Settings of the server on this machine.
        service_urls: Values of ``--service-url``.
        inference_urls: Values of ``--inference-url``.
        model_stores: Values of ``--model-store``.
        key_files: Values of ``--key-file``.
        timeout_s: Seconds until an unanswered request fails.

    Raises:
        UserError: If the flags contradict each other.
    """
    urls = [url.rstrip("/") for url in service_urls] or [local.management_url]
    _check_urls(local, urls, service_urls, inference_urls)
    n = len(urls)
    stores = model_stores or [local.model_store]
    local_keys = [local.key_file] if not service_urls and local.key_file.exists() else []
    keys: Sequence[Path | None] = [*key_files] or local_keys or [None]
    for flag, values in (("model-store", stores), ("key-file", keys)):
        if len(values) not in (1, n):
            raise UserError(f"--{flag}: expected one, or one for each of {n} hosts")
    inference_urls = inference_urls or [
        f"{urlsplit(url).scheme}://{urlsplit(url).hostname}:{local.inference_port}" for url in urls
    ]
    if len(set(inference_urls)) < n or len(inference_urls) > n:
        raise UserError(
            f"--inference-url: expected a URL of its own for each of {n} hosts, "
            f"got {' '.join(inference_urls)}"
        )
    return [
        Host(
            TorchServe(inference_urls[i].rstrip("/"), url, keys[i % len(keys)], timeout_s),
            stores[i % len(stores)],
            local.log if url == local.management_url else None,
        )
        for i, url in enumerate(urls)
    ]


def _check_urls(
    local: Settings,
    urls: Sequence[str],
    service_urls: Sequence[str],
    inference_urls: Sequence[str],
) -> None:
    for url in (*urls, *inference_urls):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(f"{url}: expected a URL such as http://host:8081")
    if len(set(urls)) < len(urls):
        raise UserError(f"--service-url {' '.join(urls)}: expected each host once")
    tunnels = [url for url in urls if urlsplit(url).hostname in LOOPBACK_NAMES]
    if service_urls and not inference_urls and tunnels not in ([], [local.management_url]):
        raise UserError(
            f"--service-url {' '.join(tunnels)}: where do its callers reach it? Add --inference-url"
        )
