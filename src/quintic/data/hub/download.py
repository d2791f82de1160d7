"""One file over HTTP: continued where it stopped, politely repeated, and checked.

huggingface_hub's own download (2.4) starts every file anew in every process, under a temporary name
that nobody continues, and knows nothing of shards. So it is its session that is used here, which
honours proxies and HF_HUB_OFFLINE, and the file's address on the hub; the rest is this file.
"""

import email.utils
import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from quintic.data.hub.client import one_line
from quintic.errors import QuinticError
from quintic.files import file_sha256

Say = Callable[[str], None]
T = TypeVar("T")

_SAY_WAIT_S = 5.0


@dataclass(frozen=True)
class Retry:
    """How patiently a request is repeated.

    Attributes:
        attempts: failures in a row, without a new byte, after which it is given up.
        base_s: the first pause; each further one is twice as long.
        max_s: the longest pause, unless the server asks for more.
        timeout_s: silence of the server that counts as a failure.
        patience_s: the longest pause that a server may ask for.
    """

    attempts: int = 8
    base_s: float = 1.0
    max_s: float = 60.0
    timeout_s: float = 30.0
    patience_s: float = 900.0


class StoppedError(Exception):
    """Another thread of the same fetch has failed, or the user interrupts it."""


class BadAnswer(httpx2.TransportError):
    """A server's answer that cannot be a part of the file; to be asked for again."""


class Pacer:
    """Paces the requests of all threads of a fetch: where a server asks one to wait, all wait.

    Attributes:
        retry: how patiently.
        say: as in `fetch`.
        abandoned: set when nobody waits any more for a thread that was stopped: it must not write.
    """

    def __init__(self, retry: Retry, say: Say) -> None:
        self.retry = retry
        self.say = say
        self.abandoned = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0

    def stop(self) -> None:
        """Let every thread raise `StoppedError` at its next request or chunk."""
        self._stop.set()

    def check(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def wait(self) -> None:
        """Pause until requests are welcome again."""
        self._sleep(self._not_before - time.monotonic())

    def back_off(self, error: httpx2.HTTPError, failures: int, what: str) -> None:
        """Pause after a failure; raises `QuinticError` where repeating it would be of no use.

        Args:
            error: the failure.
            failures: how many there were in a row.
            what: what was asked for.
        """
        if not _is_transient(error):
            raise QuinticError(f"{what} cannot be fetched: {_reason(error)}") from error
        if failures >= self.retry.attempts:
            raise QuinticError(
                f"{what} cannot be fetched: {_reason(error)}, {failures} times in a row; what has "
                "arrived is kept: run the same command again later to continue"
            ) from error
        asked = _asked_pause(error)
        if asked > self.retry.patience_s:
            raise QuinticError(
                f"{what} cannot be fetched: {_reason(error)}, and the server asks to wait "
                f"{asked:,.0f} s; what has arrived is kept: run the same command again then"
            ) from error
        # Without the random part all threads would come back in the same moment.
        pause = min(self.retry.max_s, self.retry.base_s * 2 ** (failures - 1))
        pause = max(asked, pause * random.uniform(0.5, 1.0))
        if asked:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + asked)
        if pause >= _SAY_WAIT_S:
            self.say(f"{what}: {_reason(error)}, waiting {pause:.0f} s")
        self._sleep(pause)

    def patiently(self, action: Callable[[], T], what: str) -> T:
        """The result of a request, repeated as long as the server is busy.

        No connection at all is not repeated: at the start of a fetch it means that the machine is
        offline or the address is wrong. Other exceptions than HTTP's pass through, and so do
        answers that repeating would not change.
        """
        failures = 0
        while True:
            self.wait()
            try:
                return action()
            except httpx2.HTTPError as error:
                if isinstance(error, httpx2.ConnectError) or not _is_transient(error):
                    raise
                failures += 1
                self.back_off(error, failures, what)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)):
            raise StoppedError


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        name: its name in the dataset's folder.
        url: where it is; may redirect.
        size: in bytes.
        checksum: "sha256:HEX", or "git:HEX" for git's SHA-1 of a blob; None where nobody says.
        version: what changes when the content does, where there is no checksum.
        headers: to send along, the login among them.
    """

    name: str
    url: str
    size: int
    checksum: str | None
    version: str
    headers: dict[str, str]

    @property
    def part_name(self) -> str:
        """The name of the part that has arrived; another content has another name."""
        identity = f"{self.size} {self.checksum or self.version}"
        return f"{self.name}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}.part"

    def has_checksum_of(self, path: Path) -> bool:
        """Is a local file's checksum this file's? True where there is none to compare with."""
        if self.checksum is None:
            return True
        kind, _, expected = self.checksum.partition(":")
        return (file_sha256(path) if kind == "sha256" else git_blob_id(path)) == expected


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content, which is how the hub identifies small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def download(
    file: RemoteFile,
    part: Path,
    pacer: Pacer,
    check: Callable[[Path], object],
    arrived: Callable[[int], None],
) -> None:
    """Fetch what is missing of `part`, until it is the whole file and was found right.

    A file that arrives damaged is fetched a second time, and not a third.

    Args:
        file: what to fetch.
        part: the bytes that an earlier attempt has brought, or no file.
        pacer: of all downloads of this fetch.
        check: raises `QuinticError` where the whole file is not what it should be.
        arrived: called with the number of new bytes; negative where some are dropped.

    Raises:
        QuinticError: refused, damaged twice, not what it should be, or no answer for long. What has
            arrived stays in `part`, unless it is damaged.
        OSError: the folder cannot be written, or the disk is full.
        StoppedError: another thread has failed.
    """
    for last in (False, True):
        _complete(file, part, pacer, arrived)
        right = file.has_checksum_of(part)
        try:
            if right:
                check(part)
                return
            problem = "arrived with another checksum than its source gives"
        except QuinticError as error:
            problem = str(error).replace(str(part), file.url)
        part.unlink()
        arrived(-file.size)
        if last or (right and file.checksum is not None):
            raise QuinticError(
                f"{file.name} was not kept: {problem}; tell the owner of {file.url}, or fetch from "
                "another source"
            )
        pacer.say(f"{file.name} {problem}: fetching it again")
    raise AssertionError("unreachable")


def _complete(file: RemoteFile, part: Path, pacer: Pacer, arrived: Callable[[int], None]) -> None:
    failures = 0
    with part.open("ab") as out:
        while (start := out.tell()) < file.size:
            pacer.wait()
            try:
                _receive(file, out, pacer, arrived)
            except httpx2.HTTPError as error:
                out.flush()
                # A connection that breaks now and then, but brings something each time, arrives.
                failures = 1 if out.tell() > start else failures + 1
                pacer.back_off(error, failures, f"{file.name} of {_host(file.url)}")
            except OfflineModeIsEnabled as error:
                raise QuinticError(
                    f"{file.name} cannot be fetched: HF_HUB_OFFLINE is set; unset it"
                ) from error


def _receive(file: RemoteFile, out: BinaryIO, pacer: Pacer, arrived: Callable[[int], None]) -> None:
    """Append what one request brings."""
    start = out.tell()
    headers = {**file.headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream(
        "GET", file.url, headers=headers, timeout=pacer.retry.timeout_s
    ) as response:
        response.raise_for_status()
        skip = _bytes_before(response, start, file.size)
        for chunk in response.iter_raw():
            fresh = chunk[skip:]
            skip -= len(chunk) - len(fresh)
            if len(fresh) > file.size - out.tell():
                raise BadAnswer(f"more than the {file.size} bytes that were promised")
            if pacer.abandoned:  # another process may already go on with the part
                raise StoppedError
            out.write(fresh)
            out.flush()  # the process may end while this thread waits for the next chunk
            arrived(len(fresh))
            pacer.check()
    if out.tell() == start:
        raise BadAnswer("an empty answer")


def _bytes_before(response: httpx2.Response, start: int, size: int) -> int:
    """How many bytes of the answer are before `start`; raises `BadAnswer` for another file's."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadAnswer("a compressed answer, which was not asked for")
    if response.status_code == 206:
        sent = response.headers.get("Content-Range", "")
        if not (sent.startswith(f"bytes {start}-") and sent.endswith((f"/{size}", "/*"))):
            raise BadAnswer(f"the range {sent!r} instead of the bytes from {start} of {size}")
        return 0
    length = response.headers.get("Content-Length")
    if response.status_code != 200 or (length is not None and int(length) != size):
        raise BadAnswer(f"HTTP {response.status_code} with {length} bytes instead of {size}")
    return start  # a server that does not know ranges sends everything


def _is_transient(error: httpx2.HTTPError) -> bool:
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in (408, 429) or response.status_code >= 500
    return isinstance(error, httpx2.TransportError) and not isinstance(
        error, httpx2.UnsupportedProtocol
    )


def _asked_pause(error: httpx2.HTTPError) -> float:
    """Seconds that the server asks to wait; 0 where it does not."""
    response = getattr(error, "response", None)
    if response is None:
        return 0.0
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return 0.0
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _reason(error: httpx2.HTTPError) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return str(error) if isinstance(error, BadAnswer) else one_line(error)
    status = f"HTTP {response.status_code}"
    if response.status_code in (401, 403):
        return f"the server denies permission ({status})"
    return f"the server has no such file ({status})" if response.status_code == 404 else status


def _host(url: str) -> str:
    return httpx2.URL(url).host
