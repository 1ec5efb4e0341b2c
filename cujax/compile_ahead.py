"""Compiles the unlearning step for an absent TPU slice, and reads from the program what its devices would send."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.table import Table

from cujax._ranges import Count, Pixels, check_fields
from cujax.batch import IndexBatch, Rows
from cujax.data.batches import DeviceImages, FlatRows, gather
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.networks.registry import make_network
from cujax.sharding import check_batch_size, on_mesh
from cujax.step import UnlearnState, make_unlearn_step
from cujax.training.loop import _advance

_IMAGES = 50_000  # stored on every device, as uint8
_UTILIZATION = 0.4  # of the peak, that convolutions are taken to reach
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"


class Chip(NamedTuple):
    """The performance of a chip.

    Attributes:
        peak_tflops: In bfloat16, 10^12 operations per second.
        links_gb_s: Bandwidth of all its links in one direction, 10^9 bytes per second.
    """

    peak_tflops: float
    links_gb_s: float


# Cloud TPU documentation, one page per generation; its bandwidths count both directions.
CHIPS = {"v5e": Chip(197, 200), "v5p": Chip(459, 600), "v6e": Chip(918, 400)}


class Collective(NamedTuple):
    """A collective operation of all devices.

    Attributes:
        kind: Its kind, such as "all-reduce".
        shapes: Shapes of its operands, as XLA writes them, such as "f32[512,128]".
        size: Size of all operands on each device, in bytes.
    """

    kind: str
    shapes: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class CompileAhead:
    """What to compile, and for which machine.

    Attributes:
        topology: Generation and shape of a slice: v5e:2x4, v5p:2x4x4, v6e:4x4.
        network: A reference network, such as cnn or resnet18; a wrong name lists them.
        dtype: The dtype in which it computes.
        image_size: Height and width of the images.
        channels: Channels of the images.
        num_classes: Number of classes.
        forget_batch_size: Rows of the forget batch, of all devices together.
        retain_batch_size: Rows of the retain batch, likewise.
    """

    topology: str = "v5e:2x4"
    network: str = "resnet18"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    image_size: Pixels = 32
    channels: Count = 3
    num_classes: Count = 10
    forget_batch_size: Count = 512
    retain_batch_size: Count = 512

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def chip(self) -> Chip:
        """The performance of a chip of the slice.

        Raises:
            ValueError: if its generation is not among `CHIPS`.
        """
        generation = self.topology.partition(":")[0]
        if generation not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)*", self.topology):
            raise ValueError(
                f"topology is {self.topology!r}; give a generation ({', '.join(CHIPS)}) and a shape, such as v5e:2x4."
            )
        return CHIPS[generation]


def compile_ahead(wanted: CompileAhead) -> dict[str, Any]:
    """Compiles the step, spread over all devices of a slice, and returns counts as plain data.

    Returns:
        `settings`, `devices`, `device_kind`; `collectives`, each with its `kind`, `shapes` and `size`; for each device
        `gflop` per step, `argument_mib`, `temporary_mib` and `sent_mb` on rings; `compute_ms` and `send_ms`, predicted from
        the chip's peak and links, and `communication_share`, the share of communication without overlap.

    Raises:
        ValueError: if the topology, network or a batch size is not supported.
        RuntimeError: if the TPU compiler is not installed.
    """
    chip = wanted.chip
    try:
        topology = topologies.get_topology_desc(wanted.topology, "tpu")
    except Exception as error:
        raise RuntimeError(
            f"there is no compiler for {wanted.topology} ({type(error).__name__}: {error}); it comes with the extra [tpu]: "
            "uv run --extra tpu scripts/compile_ahead.py ..."
        ) from error
    mesh = Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))
    for name in ("forget_batch_size", "retain_batch_size"):
        check_batch_size(name, getattr(wanted, name), mesh)
    compiled = _compiled(wanted, mesh)
    text, memory, n = compiled.as_text(), compiled.memory_analysis(), mesh.size
    assert memory is not None  # the TPU compiler gives it
    found = collectives(text or "")
    gflop = (compiled.cost_analysis() or {})["flops"] / 1e9
    sent = sum(bytes_on_a_ring(one, n) for one in found)
    compute, sending = gflop / (1e3 * _UTILIZATION * chip.peak_tflops), sent / (1e9 * chip.links_gb_s)
    return {
        "settings": asdict(wanted),
        "devices": n,
        "device_kind": mesh.devices.flat[0].device_kind,
        "collectives": [one._asdict() for one in found],
        "gflop": gflop,
        "argument_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "sent_mb": sent / 1e6,
        "compute_ms": 1e3 * compute,
        "send_ms": 1e3 * sending,
        "communication_share": sending / (compute + sending),
    }


def _compiled(wanted: CompileAhead, mesh: Mesh) -> jax.stages.Compiled:
    """The step as the loop runs it, including gathering of images, on abstract arrays."""
    model = make_network(wanted.network, wanted.num_classes, wanted.dtype)
    method = ContrastiveUnlearning()
    tx = method.optimizer()
    side, channels = wanted.image_size, wanted.channels

    def start(key: jax.Array) -> UnlearnState:
        return UnlearnState.create(*model.init(key, jnp.zeros((2, side, side, channels))), tx, key)

    def stored() -> DeviceImages:
        pixels = jnp.zeros((_IMAGES, side * side * channels), jnp.uint8)
        statistics = jnp.zeros(channels), jnp.ones(channels)
        return DeviceImages(FlatRows(pixels, (side, side, channels)), jnp.zeros(_IMAGES, jnp.int32), *statistics)

    def batch() -> IndexBatch:
        sizes = wanted.forget_batch_size, wanted.retain_batch_size
        return IndexBatch(*(Rows(jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool)) for n in sizes))

    def placed(tree: Any, *axes: str | None) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    arguments = (
        placed(jax.eval_shape(start, jax.random.key(0))),
        placed(jax.eval_shape(stored)),
        placed(jax.eval_shape(batch), None, "data"),
    )
    with on_mesh(mesh):
        return _advance.lower(gather, make_unlearn_step(model, tx, method), *arguments).compile()


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in order; one that the compiler splits into parts of a channel counts once.

    >>> collectives("%x.1 = (f32[512,128]{1,0:T(8,128)}, /*index=1*/s32[]) all-reduce(%a, %b), channel_id=1")
    [Collective(kind='all-reduce', shapes=('f32[512,128]', 's32[]'), size=262148)]
    """
    found: dict[tuple[str, str], Collective] = {}
    for line in text.splitlines():
        match = re.match(rf"\s*(?:ROOT )?%?\S+ = (.*?) ({_KINDS})(-start)?\(", line)
        if match is None:
            continue
        result, kind, begins = match.groups()
        operands = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/|\{[^}]*\}", "", result))
        if begins and kind == "all-gather":  # inputs are listed before outputs
            operands = operands[len(operands) // 2 :]
        size = sum(_BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in operands)
        channel = re.search(r"channel_id=\d+", line)
        one = Collective(kind, tuple(f"{dtype}[{shape}]" for dtype, shape in operands), size)
        found.setdefault((kind, channel.group() if channel else line), one)
    return list(found.values())


def bytes_on_a_ring(collective: Collective, devices: int) -> float:
    """What each device sends: for a gather, the others' parts; for a sum, twice that, there and back."""
    times = 2 if collective.kind == "all-reduce" else 1
    return times * collective.size * (devices - 1) / devices


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures as tables."""
    settings, n = figures["settings"], figures["devices"]
    title = (
        f"{settings['network']}, {settings['dtype']}, {settings['forget_batch_size']} + {settings['retain_batch_size']} "
        f"images of {settings['image_size']}x{settings['image_size']}x{settings['channels']} on {settings['topology']} "
        f"({n} devices: {figures['device_kind']}); compiled, not run"
    )
    kinds = Table(title=title)
    kinds.add_column("collective", no_wrap=True)
    for heading in ("number", "operands", "MB", "MB sent per device"):
        kinds.add_column(heading, justify="right")
    for kind in sorted({one["kind"] for one in figures["collectives"]}):
        own = [Collective(**one) for one in figures["collectives"] if one["kind"] == kind]
        sizes = (sum(one.size for one in own) / 1e6, sum(bytes_on_a_ring(one, n) for one in own) / 1e6)
        kinds.add_row(kind, str(len(own)), str(sum(len(one.shapes) for one in own)), *(f"{size:,.3f}" for size in sizes))
    rest = Table()
    rest.add_column("per device and step")
    rest.add_column("", justify="right")
    rest.add_row("GFLOP", f"{figures['gflop']:,.1f}")
    rest.add_row("MiB of arguments (parameters, optimiser, stored images)", f"{figures['argument_mib']:,.0f}")
    rest.add_row("MiB of temporaries", f"{figures['temporary_mib']:,.0f}")
    rest.add_row(f"ms of compute, predicted at {_UTILIZATION:.0%} of the peak", f"{figures['compute_ms']:.3f}")
    rest.add_row("ms of communication, predicted, on rings over all links", f"{figures['send_ms']:.3f}")
    rest.add_row("share of communication, without overlap", f"{figures['communication_share']:.1%}")
    return [kinds, rest]
