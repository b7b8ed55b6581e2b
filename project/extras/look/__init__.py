"""Pictures of a training in TensorBoard: the data, the weights, the activations, the predictions."""

from project.extras.look.activations import LookAtActivations
from project.extras.look.data import LookAtData
from project.extras.look.predictions import LookAtPredictions
from project.extras.look.weights import LookAtWeights

__all__ = ["LookAtActivations", "LookAtData", "LookAtPredictions", "LookAtWeights"]
