"""Requests with patience: what is refused for now, or did not get through, is sent again; and streams of vectors.

A stream takes any number of files: a few files a request, and items as they arrive.
"""

import io
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import quote

import httpx

from lejepa_med.client.errors import (
    BY_STATUS,
    ClientError,
    InvalidError,
    ServerFaultError,
    ServiceError,
    UnreachableError,
)
from lejepa_med.client.files import File, open_all, sent_keys, warned, with_names
from lejepa_med.client.wire.common import FileKey, Problem
from lejepa_med.client.wire.images import EmbeddedItem

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds between tries; doubled each time, and at least Retry-After


class Http:
    """A connection to one service. `retries` is the number of tries after the first."""

    def __init__(self, url: str, *, key: str | None, timeout: float, retries: int, http: httpx.Client | None) -> None:
        # No proxy and no .netrc of the environment: what is sent may be images of patients.
        self._http = http or httpx.Client(timeout=httpx.Timeout(timeout, connect=10.0), trust_env=False)
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.retries = retries

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer; options as of `open`."""
        with self.open(method, path, whole=True, **options) as answer:
            return json.loads(answer.content)

    def pages(self, first: str, *, name: str = "items") -> Iterator[Any]:
        """The entries of a list, page after page.

        Raises:
            ClientError: a page links to one that was read before, so the list would never end.
        """
        link: str | None = first
        read: set[str] = set()
        while link:
            if link in read:
                raise ClientError(
                    f"The list repeats: its pages link to {link} twice. Check that no proxy between this program and "
                    "the service removes the query of an address, and update the service."
                )
            read.add(link)
            found = self.json("GET", link)
            yield from found[name]
            link = found.get("next")

    def content(self, path: str, *, params: Mapping[str, Any] | None = None) -> bytes:
        """The body of an answer to GET, whatever its type."""
        with self.open("GET", path, whole=True, accept="*/*", params=params) as answer:
            return answer.content

    def nothing(self, method: str, path: str) -> None:
        """A request whose answer has no body, and which is not sent again once it may have arrived."""
        with self.open(method, path, whole=True, repeatable=False):
            pass

    def download(self, path: str, to: Path, *, accept: str = "*/*") -> Path:
        """Write an answer to a new file, which is there only when it is whole.

        Raises:
            FileExistsError: `to` is there.
            UnreachableError: also where the answer broke off.
        """
        if to.exists():
            raise FileExistsError(f"{to} is there already.")
        draft = to.with_name(f".{to.name}.part")
        try:
            with self.open("GET", path, accept=accept) as answer, draft.open("wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
            os.link(draft, to)  # unlike a rename it replaces nothing that came meanwhile
        except httpx.TransportError as error:
            raise unreachable(error) from error
        finally:
            draft.unlink(missing_ok=True)
        return to

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        whole: bool = False,
        repeatable: bool = True,
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Sequence[File] = (),
        fields: Mapping[str, str] | None = None,
        catalog: bytes | None = None,
        retries: int | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer of success.

        Args:
            method: GET, POST, DELETE.
            path: below the service's address.
            whole: read the body too, so that an answer that breaks off is asked for again.
            repeatable: whether a request that may have arrived can be sent again.
            accept: media types of the answer.
            headers: further ones.
            params: of the address.
            body: to be sent as JSON.
            files: to be sent as multipart, with `fields`.
            fields: text fields beside the files.
            catalog: CSV to be sent beside the files.
            retries: tries after the first, if not as many as usual.

        Raises:
            ServiceError: the service refuses, also after all tries.
            UnreachableError: no answer, also after all tries.
            OSError: a file cannot be read.
        """

        def send(stack: ExitStack) -> httpx.Response:
            content: dict[str, Any] = {"json": body} if body is not None else {}
            if files:
                parts = open_all(files, stack)
                if catalog is not None:
                    parts.append(("catalog", ("catalog.csv", io.BytesIO(catalog), "text/csv")))
                content = {"files": parts, "data": dict(fields or {})}
            told = {**self._headers, "Accept": accept, **(headers or {})}
            # httpx drops the query of the path where params are given, also empty ones
            request = self._http.build_request(
                method, self._url + path, headers=told, params=dict(params) if params else None, **content
            )
            return self._http.send(request, stream=not whole)

        with ExitStack() as stack:
            answer = self._patiently(send, repeatable=repeatable, retries=self.retries if retries is None else retries)
            stack.callback(answer.close)
            yield answer

    def _patiently(
        self, send: Callable[[ExitStack], httpx.Response], *, repeatable: bool, retries: int
    ) -> httpx.Response:
        for number in range(retries + 1):
            after: float | None = None
            try:
                with ExitStack() as opened:
                    answer = send(opened)
                if answer.is_success:
                    return answer
                try:
                    failure: ServiceError | UnreachableError = refusal(answer)
                finally:
                    answer.close()
                after = failure.retry_after if isinstance(failure, ServiceError) else None
                may_repeat = answer.status_code in (429, 503) and after is not None
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure, may_repeat = unreachable(error), True  # it never arrived
            except httpx.TimeoutException as error:
                failure, may_repeat = unreachable(error), False  # it may still be worked on
            except httpx.TransportError as error:
                failure, may_repeat = unreachable(error), repeatable
            if number == retries or not may_repeat:
                raise failure
            pause(number, at_least=after or 0.0)
        raise AssertionError("unreachable")


def pause(number: int, *, at_least: float = 0.0) -> None:
    """Wait before the next try, after `number` tries that were made again."""
    seconds = FIRST_PAUSE * 2**number * random.uniform(0.75, 1.25)
    sleep(min(LONGEST_PAUSE, max(seconds, at_least)))


def unreachable(error: httpx.HTTPError) -> UnreachableError:
    """The exception for a request without an answer."""
    return UnreachableError(f"The service does not answer ({type(error).__name__}: {error}).")


def refusal(answer: httpx.Response) -> ServiceError:
    """The exception for an answer other than success, whatever its body is."""
    plain = {"type": "about:blank", "title": answer.reason_phrase, "status": answer.status_code, "detail": ""}
    try:
        problem = Problem.read({**plain, **json.loads(answer.read())})
    except (ValueError, TypeError):  # a proxy's page, or JSON of another kind
        problem = Problem.read(plain)
    after = answer.headers.get("retry-after", "")
    seconds = float(after) if after.isdigit() else None
    return BY_STATUS.get(answer.status_code, ServerFaultError)(problem, retry_after=seconds)


def form_fields(**given: Any) -> dict[str, str]:
    """Form fields: text as it is, everything else as JSON, and nothing for None."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def given_fields(**given: Any) -> dict[str, Any]:
    """Fields of a JSON body; nothing for None."""
    return {name: value for name, value in given.items() if value is not None}


def part(name: str) -> str:
    """A name as one part of an address."""
    return quote(name, safe="")


LINES = "application/x-ndjson"


def embed_stream(
    http: Http,
    files: Iterable[File],
    keys: Iterable[FileKey | Mapping[str, FileKey] | None] | None,
    *,
    fields: dict[str, str],
    batch: int,
) -> Iterator[EmbeddedItem]:
    """Items of `files` in their order; `index` and `file_index` count over all of them.

    Raises:
        ValueError: `keys` end before the files.
    """
    source, sent, given = iter(files), 0, 0
    told = None if keys is None else iter(keys)
    said: set[str] = set()  # kinds of caution: one warning each, whichever request it comes with
    while group := list(islice(source, batch)):
        count = 0
        own = sent_keys(group, None if told is None else list(islice(told, len(group))))
        for item in with_names(_group(http, group, own, fields, said), group):
            yield item.model_copy(update={"index": given + item.index, "file_index": sent + item.file_index})
            count = item.index + 1
        sent, given = sent + len(group), given + count


def _group(
    http: Http, group: Sequence[File], keys: list[Any] | None, fields: dict[str, str], said: set[str]
) -> Iterator[EmbeddedItem]:
    """Items of one request, which is repeated from where its answer broke off."""
    done = stuck = 0
    given = {**fields, **form_fields(keys=keys)}
    while True:
        before = done
        try:
            accept = f"{LINES}, application/json;q=0.5"
            with http.open("POST", "/v1/embeddings", files=group, fields=given, accept=accept) as answer:
                warned(json.loads(answer.headers.get("x-cautions", "[]")), group, said=said, level=5)
                for item in islice(_items(answer), done, None):
                    done += 1
                    yield EmbeddedItem.read(item)
            return
        except InvalidError as error:
            if error.problem.index is None:
                raise  # it is not about a file
            yield from _one_by_one(http, group, keys, fields, said, error)
            return
        except httpx.TimeoutException as error:
            raise unreachable(error) from error
        except httpx.TransportError as error:
            stuck = 0 if done > before else stuck + 1
            if stuck > http.retries:
                raise unreachable(error) from error
            pause(stuck)


def _one_by_one(
    http: Http,
    group: Sequence[File],
    keys: list[Any] | None,
    fields: dict[str, str],
    said: set[str],
    error: InvalidError,
) -> Iterator[EmbeddedItem]:
    """A request of which no file could be read names only the first; here each file gets its own problem."""
    if len(group) == 1:
        found = error.problem
        yield EmbeddedItem(index=0, file_index=0, items=0, name=found.name, key=found.key, error=found)
        return
    given = 0
    for place, file in enumerate(group):
        count = 0
        for item in _group(http, [file], None if keys is None else [keys[place]], fields, said):
            yield item.model_copy(update={"index": given + item.index, "file_index": place})
            count = item.index + 1
        given += count


def _items(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    if answer.headers.get("content-type", "").startswith(LINES):
        for line in answer.iter_lines():
            yield json.loads(line)
        return
    yield from json.loads(answer.read())["items"]
