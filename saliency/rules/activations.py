"""Activations: rules of guided backpropagation and DeConvNet."""

import torch

from saliency.engine.operations import Pre, Through, activation_rules

# The positive part of the gradient goes through the activation: dx = f'(x) max(0, dy); for ReLU where dy > 0 and x > 0.
# Springenberg et al., Striving for Simplicity, ICLR workshop 2015.
GUIDED = activation_rules(Pre(torch.relu))

# The gradient goes through the activation as through a deconvolution network: dx = max(0, dy), whatever x was.
# Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
DECONVNET = activation_rules(Through(torch.relu))
