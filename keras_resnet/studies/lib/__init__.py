"""Code that all studies share.

program.py  command line of a study
study.py    `Options`, and `Study`: a claim, its jobs, and the run that tests it
jobs.py     dataset of a study, and worker processes that measure its jobs
tables.py   tables: rows as CSV files, and their columns
report.py   HTML report, and `study.json`, which records how a table was made
style.py    colours, axes and curves of all figures
probes.py   measurements on a network: layer responses and gradients
surgery.py  changes to a trained network: removed blocks, pruning, added blocks
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
