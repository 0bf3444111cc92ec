"""Bodies that lead somewhere: hooks of Schemathesis, for the rounds of `benchmarks.stress.fuzz` that know ids.

Made bodies name encoders, tables and items that are not there, and their files are no pictures, so nearly all of them
end at the first check. Here most fields that name something get what exists; the rest stays as it was made, so what
comes behind the checks meets odd values too. Each replacement is drawn from the body itself: runs with one seed agree.

`LEJEPA_FUZZ_KNOWN` names a JSON file with encoder, table, ids (of its items), dim (of its vectors), upload, label_set,
and pictures (paths).
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import schemathesis

KEPT_WHOLE = 0.2  # of the bodies, as they were made
REPLACED = 0.85  # of the fields, in the other bodies
DAMAGED = 0.25  # of the pictures
Draw = Callable[["Known", random.Random], Any]


class Known:
    """What exists in the service."""

    def __init__(self, path: str) -> None:
        self.__dict__.update(json.loads(Path(path).read_text()))
        self.pictures = [Path(name).read_bytes() for name in self.__dict__["pictures"]]

    encoder: str
    table: str
    ids: list[str]
    dim: int
    upload: str
    label_set: str
    pictures: list[bytes]


def label(rng: random.Random, kind: int) -> Any:
    """A class, a quantity, or labels of their own."""
    return (
        rng.choice(("spiral", "elliptical", "merger")),
        rng.gauss(0, 1),
        rng.sample(("bar", "ring", "dust"), rng.randint(0, 3)),
    )[kind]


def labelled(known: Known, rng: random.Random) -> list[dict[str, Any]]:
    """Labels of many items or of a few."""
    kind, count = rng.randrange(3), rng.choice((1, 3, len(known.ids), len(known.ids)))
    return [{"id": item, "label": label(rng, kind)} for item in rng.sample(known.ids, count)]


def picture(known: Known, rng: random.Random) -> bytes:
    """One of the pictures, sometimes cut off or with other bytes in it."""
    content = bytearray(rng.choice(known.pictures))
    if rng.random() < DAMAGED:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        del content[rng.randrange(len(content) // 2, len(content) + 1) :]
    return bytes(content)


JSON_FIELDS: dict[str, Draw] = {
    "archive": lambda known, rng: known.table,
    "encoder": lambda known, rng: rng.choice((known.encoder, None)),
    "ids": lambda known, rng: rng.sample(known.ids, rng.randint(1, len(known.ids))),
    "ids_of": lambda known, rng: None,
    "label_set": lambda known, rng: known.label_set,
    "labels": labelled,
    "upload": lambda known, rng: known.upload,
    "vectors": lambda known, rng: [[rng.gauss(0, 1) for _ in range(known.dim)] for _ in range(rng.randint(1, 3))],
}
FORM_FIELDS: dict[str, Draw] = {
    "archive": lambda known, rng: known.table,
    "encoder": lambda known, rng: known.encoder,
    "files": lambda known, rng: [picture(known, rng) for _ in range(rng.choice((1, 1, 3, 12)))],
    "modality": lambda known, rng: "images",
}
ADDED = {"/v1/archives": "upload"}  # the field in which a made body most often lacks what makes it whole
SPARED = 0.95  # of the requests that would remove what the other requests shall find
LEFT_OUT = {"region", "folder"}  # such pictures have no regions, and this service lets nobody name a folder


def changed(body: dict[str, Any], known: Known, rng: random.Random, *, form: bool) -> dict[str, Any]:
    """The body with most of its names replaced by some that exist."""
    found = {name: value for name, value in body.items() if name not in LEFT_OUT or rng.random() > REPLACED}
    for pair in (("ids", "vectors"), ("labels", "label_set")):  # a request takes one of them
        if found.keys() >= set(pair):
            del found[rng.choice(pair)]
    for name, draw in (FORM_FIELDS if form else JSON_FIELDS).items():
        if name in found and rng.random() < REPLACED:
            found[name] = draw(known, rng)
    if form and "labels" in found and isinstance(found.get("files"), list) and rng.random() < REPLACED:
        kind = rng.randrange(3)
        found["labels"] = json.dumps([label(rng, kind) for _ in found["files"]])
    return found


KNOWN = Known(os.environ["LEJEPA_FUZZ_KNOWN"])
NOBODY = "0" * 32  # an id as it could be
_removals = random.Random(0)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Replace a body, or what is removed, before a request is sent."""
    if case.method == "DELETE" and case.path_parameters and _removals.random() < SPARED:
        case.path_parameters = dict.fromkeys(case.path_parameters, NOBODY)
    if not isinstance(case.body, dict):
        return
    rng = random.Random(f"{case.method} {case.path} {case.body!r}")
    if rng.random() > KEPT_WHOLE:
        if case.path in ADDED:
            case.body.setdefault(ADDED[case.path], None)
        case.body = changed(case.body, KNOWN, rng, form=case.media_type == "multipart/form-data")
