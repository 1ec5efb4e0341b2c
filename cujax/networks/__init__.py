"""Reference networks by name."""

from collections.abc import Callable

from cujax.model import Model, from_linen
from cujax.networks.cnn import CNN

NETWORKS: dict[str, Callable[[int], Model]] = {
    "cnn": lambda num_classes: from_linen(CNN(num_classes)),
    "small_cnn": lambda num_classes: from_linen(CNN(num_classes, features=(32, 64))),
}
