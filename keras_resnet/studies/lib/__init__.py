"""What the studies share.

program: Flags of a study, and how it is started as a command.
study: `Options`, and `Study`: a claim, its jobs, its run from jobs to page.
jobs: Images of a study, and processes that measure its jobs.
tables: Rows as CSV, and columns of them.
report: Page and findings, and `study.json`, which says how a table was made.
style: Colours, axes and curves of all figures.
probes: What is read off a network: responses and gradients.
surgery: What is done to a trained network: blocks left out, pruning, deepening.
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
