"""Code that all studies share.

program.py  command line of a study
study.py    `Options` of the command line, and `Study`, an experiment for one claim
jobs.py     dataset of a study, and worker processes that measure jobs in parallel
tables.py   result tables: CSV files, and selection of columns and rows
report.py   HTML report, and `study.json`, which records how the results were made
style.py    colours, axes and curves that all figures use
probes.py   layer responses and gradients of a network
surgery.py  changes to a trained network: removed blocks, pruning, added blocks
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
