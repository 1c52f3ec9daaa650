"""What the studies share.

program.py  flags of a study, and how it is started as a command
study.py    `Options`, and `Study`: a claim, its jobs, its run from jobs to page
jobs.py     images of a study, and processes that measure its jobs
tables.py   rows as CSV, and columns of them
report.py   page and findings, and `study.json`, which says how a table was made
style.py    colours, axes and curves of all figures
probes.py   what is read off a network: responses and gradients
surgery.py  what is done to a trained network: blocks left out, pruning, deepening
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
