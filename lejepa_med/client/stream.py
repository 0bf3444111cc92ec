"""Vectors of any number of files: a few files a request, and items as they arrive."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import httpx

from lejepa_med.client.errors import InvalidError
from lejepa_med.client.files import File, sent_keys, warned, with_names
from lejepa_med.client.http import Http, form_fields, pause, unreachable
from lejepa_med.client.wire.common import FileKey
from lejepa_med.client.wire.images import EmbeddedItem

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
