"""What a step costs, in one run: training, unlearning, the loops around them, and the same network in PyTorch."""

from cujax.benchmark.measure import Benchmark as Benchmark
from cujax.benchmark.measure import measure as measure
from cujax.benchmark.tables import read_earlier as read_earlier
from cujax.benchmark.tables import tables as tables
