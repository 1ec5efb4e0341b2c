"""The network, losses and optimiser of the benchmark in PyTorch (extra [torch]), to be timed in turns with ours.

It starts from the same parameters and takes the same batch. Before anything is timed, losses and gradients must agree.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cujax.batch import Batch
from cujax.experiments.workers import own_cores
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.model import PyTree, Variables
from cujax.networks.cnn import CNN
from cujax.networks.registry import MODULES
from cujax.networks.resnet import ResNet

# Relative difference of losses and of gradient norms; float32 sums in another order differ by less.
_TOLERANCE = 1e-2


def check_versus(network: str, dtype: str) -> None:
    """Raises ValueError if PyTorch is not installed, or the network or dtype has no counterpart."""
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ValueError("versus is torch, but PyTorch is not installed; install cujax[torch].") from error
    known = [name for name, make in MODULES.items() if make.func in (CNN, ResNet)]
    if network not in known:
        raise ValueError(f"versus is torch, which has no counterpart of {network}; choose one of {', '.join(known)}.")
    if dtype != "float32":
        raise ValueError(f"versus is torch, which is compared in float32, but dtype is {dtype}.")


class Counterpart:
    """The steps of a network in PyTorch, channels last, on the device that JAX uses.

    Args:
        module: One of the networks that `check_versus` lists.
        variables: Its parameters and batch statistics.
        batch: The batch that every step takes.
        config: The settings of the unlearning step, and the optimiser of both.
    """

    def __init__(self, module: nn.Module, variables: Variables, batch: Batch, config: ContrastiveUnlearning):
        import torch

        self._torch = torch
        self._device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(len(own_cores()))
        self._forward = _Forward(torch.nn.functional, module)
        self._start = variables
        self._config = config
        self._images = self._placed(np.concatenate([batch.forget.inputs, batch.retain.inputs])).permute(0, 3, 1, 2)
        self._labels = self._placed(np.concatenate([batch.forget.labels, batch.retain.labels])).long()
        self._num_forget = len(batch.forget.labels)
        self._losses = {"training": self._training_loss, "unlearning": self._unlearning_loss}

    def synchronize(self) -> None:
        """Waits for the device."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def _placed(self, array: np.ndarray) -> Any:
        return self._torch.tensor(np.asarray(array), device=self._device)

    def _arrays(self, tree: PyTree) -> dict[str, Any]:
        """Tensors by the names of ours, kernels in PyTorch's layout."""
        found = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            array = np.asarray(leaf)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            tensor = self._placed(np.ascontiguousarray(array))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=self._torch.channels_last)
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = tensor
        return found

    def step(self, name: str) -> Callable[[], tuple[Any, list[Any]]]:
        """A function that takes one "training" or "unlearning" step, and returns the loss and the gradients before it."""
        parameters = {name: tensor.requires_grad_() for name, tensor in self._arrays(self._start.params).items()}
        statistics = self._arrays(self._start.model_state)
        tensors, loss_of = list(parameters.values()), self._losses[name]
        optimizer = self._torch.optim.SGD(tensors, lr=self._config.learning_rate, momentum=self._config.momentum)

        def take() -> tuple[Any, list[Any]]:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*self._forward(parameters, statistics, self._images))
            loss.backward()
            optimizer.step()
            return loss.detach(), [tensor.grad for tensor in tensors]

        return take

    def check_same(self, name: str, loss: float, gradient_norm: float) -> None:
        """Raises RuntimeError if a step has another loss or gradient here: then the times could not be compared."""
        found, gradients = self.step(name)()
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        if not np.allclose((loss, gradient_norm), (found.item(), norm), rtol=_TOLERANCE):
            raise RuntimeError(
                f"the {name} steps differ: loss {loss:.6g} and gradient norm {gradient_norm:.6g} here, {found.item():.6g} "
                f"and {norm:.6g} in PyTorch. Please report this."
            )

    def _training_loss(self, embeddings: Any, logits: Any) -> Any:
        del embeddings
        return self._torch.nn.functional.cross_entropy(logits, self._labels)

    def _unlearning_loss(self, embeddings: Any, logits: Any) -> Any:
        """Equations 5 and 6 of arXiv:2401.10458 and the retain batch's cross-entropy."""
        torch, config, n = self._torch, self._config, self._num_forget
        unit = torch.nn.functional.normalize(embeddings, dim=1)
        similarity = unit[:n] @ unit[n:].T / config.temperature
        positives = self._labels[:n, None] == self._labels[None, n:]
        count = (~positives).sum(1)
        among = similarity.masked_fill(~positives, -torch.inf)
        some = positives.any(1)
        push = torch.where(some, torch.where(some[:, None], among, 0.0).logsumexp(1), count.log())
        pull = similarity.masked_fill(positives, 0.0).sum(1) / count
        retain = torch.nn.functional.cross_entropy(logits[n:], self._labels[n:])
        return config.unlearn_weight * (push - pull).mean() + config.retain_weight * retain


class _Forward:
    """The forward pass in training mode: images `[B, C, H, W]` to embeddings and logits."""

    def __init__(self, functional: Any, module: nn.Module):
        self._f, self._module = functional, module

    def __call__(self, parameters: Mapping[str, Any], statistics: dict[str, Any], images: Any) -> tuple[Any, Any]:
        self._parameters, self._statistics = parameters, statistics
        module = self._module
        features = self._resnet(module, images) if isinstance(module, ResNet) else self._cnn(images)
        if getattr(module, "head", "official") == "linear":
            return features, self._dense("head", features)
        hidden = self._f.relu(self._dense("hidden", features))
        embedding = self._f.normalize(self._dense("embedding", hidden), dim=1)
        return embedding, self._dense("head", self._f.relu(embedding))

    def _dense(self, name: str, x: Any) -> Any:
        return self._f.linear(x, self._parameters[f"{name}/kernel"], self._parameters[f"{name}/bias"])

    def _conv(self, name: str, x: Any, stride: int) -> Any:
        kernel = self._parameters[f"{name}/kernel"]
        return self._f.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    def _norm(self, name: str, x: Any) -> Any:
        mean, variance = (self._statistics[f"batch_stats/{name}/{what}"] for what in ("mean", "var"))
        scale, bias = (self._parameters[f"{name}/{what}"] for what in ("scale", "bias"))
        return self._f.batch_norm(x, mean, variance, scale, bias, training=True, momentum=0.1, eps=1e-5)

    def _resnet(self, module: ResNet, x: Any) -> Any:
        large = module.stem == "imagenet"
        x = self._f.relu(self._norm("stem/norm", self._conv("stem/conv", x, 2 if large else 1)))
        if large:
            x = self._f.max_pool2d(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(module.stage_sizes, start=1):
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self._block(f"stage_{stage}/block_{block}", x, stride, module.bottleneck)
        return x.mean((2, 3))

    def _block(self, name: str, x: Any, stride: int, bottleneck: bool) -> Any:
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        y = x
        for number, own in enumerate(strides, start=1):
            y = self._norm(f"{name}/norm_{number}", self._conv(f"{name}/conv_{number}", y, own))
            y = y if number == len(strides) else self._f.relu(y)
        if x.shape != y.shape:
            x = self._norm(f"{name}/shortcut_norm", self._conv(f"{name}/shortcut", x, stride))
        return self._f.relu(x + y)

    def _cnn(self, x: Any) -> Any:
        for depth in range(sum(name.startswith("conv_") and name.endswith("kernel") for name in self._parameters)):
            # TensorFlow's "SAME" padding for a stride of 2: the odd row and column at the end.
            sides = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (x.shape[3], x.shape[2])]
            x = self._f.pad(x, [pad for total in sides for pad in (total // 2, total - total // 2)])
            kernel, bias = (self._parameters[f"conv_{depth}/{what}"] for what in ("kernel", "bias"))
            x = self._f.relu(self._f.conv2d(x, kernel, bias, stride=2))
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)
