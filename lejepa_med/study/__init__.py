"""Studies over many runs.

select.py      rank finished runs without labels      correlation.py  does the ranking agree with accuracy
diff.py        what differs between two runs
runs.py        what is read of a run folder           page.py         pages
"""
