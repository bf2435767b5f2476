"""Keeps secrets out of terminals, logs, reports and run records.

Secrets are passwords and signatures in URLs, values of environment variables that settings refer to, and those of
variables with the name of a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD. Text that is displayed
or stored passes through `redact`; files are opened with the text itself. A process learns the secrets of its settings
and of its command line (`learn`, `remember`), those of its environment by itself, and hides them wherever they occur.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

from gmd_ray.text import printable

MARK = "***"
SHORTEST = 4
"""Number of characters of the shortest secret that is hidden; anything shorter is part of too many words."""
SHORTEST_OF_ENVIRONMENT = 8
"""The same for variables that no setting refers to: `test` as a password would hide the word in every report."""

# The user and password of a URL within a sentence. Without a colon they end at the last @ before a slash, since a
# password may hold an @, while `s3://bucket/k@v` has no password. After `user:` they end at the last @ of the word,
# since a password may hold slashes, unless a port follows. Bounds on the lengths keep any text from making the search
# slow.
_USER_INFO = re.compile(r"(?<=://)(?:[^/\s\"'<>@:]{0,99}:(?!\d{1,5}/)[^\s\"'<>]{0,4000}|[^/\s\"'<>]{1,4000})@")
_WORD = "token|secret|passw|passphrase|pwd|signature|credential|auth|key"
_NAME = rf"[\w.%-]{{0,50}}(?:{_WORD})[\w.%-]{{0,50}}|(?:[\w.%-]{{0,50}}[-_.])?(?:sig|sas)"
_QUERY = re.compile(rf"((?:[?&;]|\\u0026)(?:{_NAME})=)([^&;\s\"'<>\\]+)", re.IGNORECASE)
# The same in a text that is one URL as a whole, where spaces and quotes are part of it.
_ITS_USER_INFO = re.compile(r"(?<=://)(?:[^/@:]*:(?!\d{1,5}/)(?P<password>.*)|(?P<user>[^/]+))@", re.DOTALL)
_ITS_QUERY = re.compile(rf"([?&;](?:{_NAME})=)([^&;]+)", re.IGNORECASE)
_PICTURE = re.compile(r"(;base64,[A-Za-z0-9+/=]+)")
_REFERENCES = re.compile(r"(?:[^:@${}]*:)?(?:\$\{[^{}]*\})(?::\$\{[^{}]*\})?@?")

# Names of variables that hold a secret itself. HF_TOKEN_PATH, AWS_WEB_IDENTITY_TOKEN_FILE and GPG_KEY hold none.
_VARIABLE = re.compile(
    r"(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CONNECTION_STRING|(?:ACCESS|ACCOUNT|API|PRIVATE|SECRET)_?KEY)$",
    re.IGNORECASE,
)
_HEADERS = "RAY_JOB_HEADERS"

_WORDS = {"true", "false", "null", "none", "auto", "cuda"}
"""Common values of settings, which are no secrets."""

_known: dict[str, str | None] = {}
"""Secret -> the text that stands for it in saved settings, `${oc.env:NAME}`; None if there is none."""
_environment: dict[str, str | None] | None = None
"""The same for secrets of the environment; None before it was read. They stay in this process."""
_written: dict[tuple[str, str], str] = {}
"""(key, repr of a value) -> the text that gave it, with its `${oc.env:NAME}`."""
_pattern: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Replace every secret in `text` by `***`.

    These are user names and passwords of URLs, signatures, tokens and keys in their queries, and every secret that this
    process knows. Pictures within a page stay as they are, since the four characters of a short secret may well occur
    in a megabyte of base64.
    """
    pattern = _all_known()
    parts = _PICTURE.split(text) if ";base64," in text else [text]
    for i in range(0, len(parts), 2):
        parts[i] = redact_urls(parts[i] if pattern is None else pattern.sub(MARK, parts[i]))
    return "".join(parts)


def redact_urls(text: str) -> str:
    """Do what `redact` does for the secrets that are visible from the text alone; `${...}` in place of one stays."""
    return _QUERY.sub(_hide_query, _USER_INFO.sub(_hide_user, text))


def redact_url(url: str) -> str:
    """Do what `redact_urls` does for a text that is one URL, whatever characters its password has."""
    return _ITS_QUERY.sub(_hide_query, _ITS_USER_INFO.sub(_hide_user, url))


def without_credentials(url: str) -> str:
    """The URL without user name and password, for a library that is given them separately."""
    return _USER_INFO.sub("", url)


def digested(text: str) -> str:
    """Do what `redact` does, with a digest for each known secret, so that a later run can compare its settings."""
    pattern = _all_known()
    return redact_urls(text if pattern is None else pattern.sub(_digest, text))


def digested_values(value: Any) -> Any:
    """Apply `digested` to every text in nested lists and mappings."""
    if isinstance(value, str):
        return digested(value)
    if isinstance(value, dict):
        return {key: digested_values(item) for key, item in value.items()}
    return [digested_values(item) for item in value] if isinstance(value, list | tuple) else value


def is_redacted(text: str) -> bool:
    """Tell whether a secret of a URL in `text` was replaced by `***`, so that the URL cannot be opened."""
    return f"://{MARK}@" in text or any(found[2] == MARK for found in _QUERY.finditer(text))


def remember(value: str, stands_for: str | None = None) -> None:
    """Hide `value` from now on, both as it is and as quoted in URLs, JSON and HTML.

    Args:
        stands_for: the text that gives it back in saved settings, `${oc.env:NAME}`.
    """
    if len(value) < SHORTEST or value.isspace() or value.lower() in _WORDS:
        return
    _known[value] = stands_for or _known.get(value)
    _make_pattern()


def learn_environment() -> None:
    """Hide from now on the secrets that environment variables hold at present.

    `redact` does so by itself the first time. Another call finds variables that were set later.
    """
    global _environment
    found: dict[str, str | None] = {}
    for name, value in os.environ.items():
        if name == _HEADERS:
            found |= dict.fromkeys(_in_headers(value))
        elif _VARIABLE.search(name):
            found[value] = f"${{oc.env:{name}}}"
        found |= dict.fromkeys(_passwords(value))
    _environment = {
        value: stands_for
        for value, stands_for in found.items()
        if len(value) >= SHORTEST_OF_ENVIRONMENT and not value.isspace()
    }
    _make_pattern()


def learn(text: str) -> None:
    """Hide from now on the secrets of the URL in `text`, a setting or a word of the command line."""
    for form in _passwords(text):
        remember(form)


def holds_secret(name: str, value: str) -> bool:
    """Tell whether an environment variable of this name and value holds a secret."""
    return bool(value and _VARIABLE.search(name)) or name == _HEADERS or redact_urls(value) != value


def known() -> tuple[str, ...]:
    """The secrets of this process, for `remember` in another one."""
    return tuple(_known)


def keep(key: str, value: object, text: str) -> None:
    """Write `text` in saved settings where `key` has this value."""
    _written[key, repr(value)] = text


def kept(key: str, value: object) -> str | None:
    """The text that `keep` was given for this value; None if there is none."""
    text = _written.get((key, repr(value)))
    return None if text is None else redact_urls(text)


def with_references(text: str, escape: Callable[[str], str] = str) -> str:
    """Replace each value of an environment variable in `text` by `${oc.env:NAME}`.

    Args:
        escape: escapes `${` in the rest of the text.
    """
    _all_known()
    both = (_environment or {}) | _known
    named = {escape(value): name for value, name in both.items() if name is not None}
    text = escape(text)
    pattern = _any_of(named)
    if pattern is None:
        return text
    # Backslashes before a reference are doubled; a single one would make plain text of it.
    return re.sub(rf"(\\*)({pattern.pattern})", lambda found: f"{found[1] * 2}{named[found[2]]}", text)


def forget() -> None:
    """Forget all secrets, as in a new process."""
    global _environment, _pattern
    _known.clear()
    _written.clear()
    _environment = _pattern = None


def _all_known() -> re.Pattern[str] | None:
    """The pattern of all secrets, after a first look at the environment."""
    if _environment is None:
        learn_environment()
    return _pattern


def _make_pattern() -> None:
    global _pattern
    secrets = [*_known, *(_environment or ())]
    _pattern = _any_of({form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST})


def _passwords(text: str) -> Iterator[str]:
    """The secrets of the URL in `text`, as they stand there and decoded; nothing for a text without one."""
    scheme = text.find("://")
    if scheme < 0:
        return
    url = text[scheme:]
    found = _ITS_USER_INFO.search(url)
    passwords = [] if found is None else [found["password"] or (found["user"] or "").partition(":")[2]]
    passwords += [found[2] for found in _ITS_QUERY.finditer(url)]
    for password in passwords:
        for form in (password, unquote(password), unquote_plus(password)):
            if not _REFERENCES.fullmatch(form) and form != MARK:
                yield form


def _in_headers(text: str) -> Iterator[str]:
    """The values of a JSON object of HTTP headers, and what follows a scheme such as `Bearer` in them."""
    try:
        headers = json.loads(text)
    except ValueError:
        return
    for value in headers.values() if isinstance(headers, dict) else ():
        yield str(value)
        yield str(value).partition(" ")[2]


def _forms(secret: str) -> set[str]:
    plain = {secret, " ".join(secret.split()), quote(secret), quote(secret, safe=""), printable(secret)}
    return {form for text in plain for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1], html.escape(text))}


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of the words, longer ones first, since one may begin with another."""
    longest = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _digest(found: re.Match[str]) -> str:
    return f"{MARK}{hashlib.sha256(found[0].encode(errors='surrogatepass')).hexdigest()[:12]}"


def _hide_user(found: re.Match[str]) -> str:
    return found[0] if _REFERENCES.fullmatch(found[0]) else f"{MARK}@"


def _hide_query(found: re.Match[str]) -> str:
    return found[0] if _REFERENCES.fullmatch(found[2]) else f"{found[1]}{MARK}"
