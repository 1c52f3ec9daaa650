"""Experiments that test the claims of the ResNet paper, one module for each claim.

python -m keras_resnet.studies.degradation
python -m keras_resnet.studies.all
"""
