import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.probes.examples import Labelled
from lejepa_med.probes.probe import fit_probe


def test_newer_labels_replace_older_ones_of_the_same_id():
    def table(ids, labels, at):
        return Labelled(tuple(ids), np.full((len(ids), 2), at, np.float32), tuple(labels), tuple("g" * len(ids)))

    both = table("abc", "xyz", 0).updated(table("db", "vw", 1))
    assert (both.ids, both.labels) == (tuple("acdb"), tuple("xzvw"))
    assert both.vectors[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "cause"),
    [
        ([1.0, "a"] * 5, "several kinds"),
        ([True, False] * 5, "no label in text"),
        ([2.0] * 10, "All 10 labels are 2"),
        ([1.0, float("nan")] * 5, "row 1 is not a finite"),
        ([[]] * 10, "No image has any label"),
        ([["a"]] * 9 + [[]], "on, or missing from, a single image"),
        ([["a", " "]] * 10, "Row 0 has an empty label"),
    ],
)
def test_labels_that_make_no_probe_are_refused(labels, cause):
    with pytest.raises(UserError, match=cause) as caught:
        fit_probe(np.random.default_rng(0).normal(size=(10, 3)), labels, [str(i) for i in range(10)])
    assert caught.value.remedy


def test_ids_must_be_unique():
    with pytest.raises(UserError, match="id of its own"):
        fit_probe(np.eye(4), ["a", "b", "a", "b"], list("wxyz"), ids=list("aabc"))
