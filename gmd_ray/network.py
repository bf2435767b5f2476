"""A quick check whether servers can be reached, as libraries that download files take minutes to give up."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

PROBE_SECONDS = 2.0
"""Time limit for a connection, and again for its answer."""
GIVE_UP_S = 3.0
"""Time limit for the whole check, since looking up a host name has no limit of its own."""


def reachable(urls: Iterable[str]) -> dict[str, bool]:
    """Check for each URL whether its server answers, even with an error. All are asked in parallel, within 3 s.

    The environment's proxies are used, as downloads use them too.

    Returns:
        URL -> True if its server answers.
    """
    hosts = {url: "{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in urls}
    answered = dict.fromkeys(hosts.values(), False)

    def ask(host: str) -> None:
        answered[host] = _answers(host)

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in answered]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + GIVE_UP_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {url: answered[host] for url, host in hosts.items()}


def _answers(host: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # the server answered, with an error status
    except (OSError, ValueError):
        return False
    return True
