"""Vectors of any number of files: a few files a request, and items as they arrive."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import httpx

from lejepa_med.client.errors import InvalidError
from lejepa_med.client.files import File
from lejepa_med.client.http import Http, pause, unreachable
from lejepa_med.client.models import EmbeddedItem

LINES = "application/x-ndjson"


def embed_stream(http: Http, files: Iterable[File], *, fields: dict[str, str], batch: int) -> Iterator[EmbeddedItem]:
    """Items of `files` in their order; `index` and `file_index` count over all of them."""
    source, sent, given = iter(files), 0, 0
    while group := list(islice(source, batch)):
        count = 0
        for item in _group(http, group, fields):
            yield replace(item, index=given + item.index, file_index=sent + item.file_index)
            count = item.index + 1
        sent, given = sent + len(group), given + count


def _group(http: Http, group: Sequence[File], fields: dict[str, str]) -> Iterator[EmbeddedItem]:
    """Items of one request, which is repeated from where its answer broke off."""
    done = stuck = 0
    while True:
        before = done
        try:
            accept = f"{LINES}, application/json;q=0.5"
            with http.open("POST", "/v1/embeddings", files=group, fields=fields, accept=accept) as answer:
                for item in islice(_items(answer), done, None):
                    done += 1
                    yield EmbeddedItem.read(item)
            return
        except InvalidError as error:
            if error.problem.index is None:
                raise  # it is not about a file
            yield from _one_by_one(http, group, fields, error)
            return
        except httpx.TimeoutException as error:
            raise unreachable(error) from error
        except httpx.TransportError as error:
            stuck = 0 if done > before else stuck + 1
            if stuck > http.retries:
                raise unreachable(error) from error
            pause(stuck)


def _one_by_one(
    http: Http, group: Sequence[File], fields: dict[str, str], error: InvalidError
) -> Iterator[EmbeddedItem]:
    """A request of which no file could be read names only the first; here each file gets its own problem."""
    if len(group) == 1:
        yield EmbeddedItem(index=0, file_index=0, error=error.problem)
        return
    given = 0
    for place, file in enumerate(group):
        count = 0
        for item in _group(http, [file], fields):
            yield replace(item, index=given + item.index, file_index=place)
            count = item.index + 1
        given += count


def _items(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    if answer.headers.get("content-type", "").startswith(LINES):
        for line in answer.iter_lines():
            yield json.loads(line)
        return
    yield from json.loads(answer.read())["items"]
