"""Whether a server can be reached, found out in seconds: no library that downloads gives up that soon by itself."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

PROBE_SECONDS = 2.0
"""For a connection, and again for its answer."""
GIVE_UP_S = 3.0
"""For all of it: the look-up of a name has no time limit of its own."""


def reachable(urls: Iterable[str]) -> dict[str, bool]:
    """For each URL whether its server answers at all, a refusal included; all are asked at once, within 3 s.

    The proxies of the environment are used, as the downloads themselves use them.
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
        return True  # a refusal of this page is an answer
    except (OSError, ValueError):
        return False
    return True
