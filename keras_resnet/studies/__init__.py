"""What the paper claims, shown on your own machine: a module for each claim.

python -m keras_resnet.studies.degradation
python -m keras_resnet.studies.all
"""
