"""Studies over many runs.

select.py      rank finished runs without labels      correlation.py  does the ranking agree with accuracy
diff.py        what differs between two runs
runs.py        what is read of a run folder           heat.py         heat maps as SVG
stability.py   run a grid of settings                 grid.py         its cells, and how one is set up
"""
