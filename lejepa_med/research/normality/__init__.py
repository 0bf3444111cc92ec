"""The choice of the statistical test behind the objective: all measure how far a batch of embeddings is from N(0, I).

`make_test(name, ...)` builds one; `TESTS` lists them. All are modules without parameters, called as
`test(z, seed=..., step=...)` with z: (views, batch, dim), and all are equal over ranks; `SIGReg` is the default.
`docs/method.md` compares them, `benchmarks/normality.py` measures them.
"""

from lejepa_med.research.normality.base import NormalityTest, SlicedTest
from lejepa_med.research.normality.factory import TESTS, floor_for, make_test

__all__ = ["TESTS", "NormalityTest", "SlicedTest", "floor_for", "make_test"]
