"""Programs for a machine that is not there: what is read off their text, and what is in those of a TPU's compiler."""

import importlib.util
import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cujax.compile_ahead import Collective, CompileAhead, bytes_on_a_ring, collectives, compile_ahead

ROOT = Path(__file__).parents[1]
PROGRAM = """
ENTRY %main (param.0: f32[4,2]) -> f32[8,2] {
  %all-gather.1 = f32[8,64,128]{2,1,0:T(8,128)S(1)} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  %all-gather.2 = f32[8,64,128]{2,1,0:T(8,128)S(1)} all-gather(%b), channel_id=7, dimensions={0}
  %all-reduce.3 = (f32[]{:T(128)}, bf16[3,3,64,128]{3,2,1,0}, /*index=2*/s32[10]) all-reduce(%c, %d, %e), channel_id=8
  %start = (f32[64,128], f32[512,128]) all-gather-start(%f), channel_id=9
  %done = f32[512,128] all-gather-done(%start)
  ROOT %permuted = pred[16] collective-permute(%all-gather.1), channel_id=10
  %fusion = f32[8] fusion(%all-reduce.3), calls=%all-reduce.computation
}
"""


def test_collectives_are_read_with_the_bytes_of_their_operands_and_each_counts_once():
    assert collectives(PROGRAM) == [
        Collective("all-gather", ("f32[8,64,128]",), 4 * 8 * 64 * 128),
        Collective("all-reduce", ("f32[]", "bf16[3,3,64,128]", "s32[10]"), 4 + 2 * 3 * 3 * 64 * 128 + 40),
        Collective("all-gather", ("f32[512,128]",), 4 * 512 * 128),
        Collective("collective-permute", ("pred[16]",), 16),
    ]


def test_on_a_ring_each_device_passes_on_what_the_others_have_and_of_a_sum_twice():
    """By going round: n - 1 turns in which each device sends one of n parts; a sum goes round again with the result."""
    for kind, rounds in (("all-gather", 1), ("all-reduce", 2), ("reduce-scatter", 1)):
        sent = sum(800 / 8 for _ in range(rounds) for turn in range(7))
        assert bytes_on_a_ring(Collective(kind, (), 800), 8) == sent


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:", "v5e:2x", "", "2x4"])
def test_an_unknown_slice_is_refused_with_those_that_there_are(topology):
    with pytest.raises(ValueError, match=f"topology is '{topology}'; give a generation \\(v5e, v5p, v6e\\) and a shape"):
        compile_ahead(CompileAhead(topology))


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs the script in this process, for what ends before anything is compiled: its status and what it said."""

    def run(*arguments):
        for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
            monkeypatch.setenv(name, "")  # the script sets them; they are restored after the test
        monkeypatch.setattr(sys, "argv", ["compile_ahead.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "compile_ahead.py"), run_name="__main__")
        return ended.value.code, capsys.readouterr().err

    return run


def compiled(tmp_path, *arguments):
    """What the script finds, in a process of its own: this one has asked for eight CPUs."""
    out = tmp_path / "figures.json"
    command = [sys.executable, "scripts/compile_ahead.py", "--json", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return done, json.loads(out.read_text()) if out.is_file() else None


has_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed (extra [tpu])"
)


def test_a_folder_in_place_of_the_file_is_refused_before_anything_is_compiled(tmp_path, here):
    status, said = here("--json", str(tmp_path))
    assert status == 2
    assert f"json {tmp_path} is a folder; give a file." in said


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_without_the_compiler_the_error_names_the_extra(tmp_path, here):
    status, said = here("--json", str(tmp_path / "figures.json"), "--network", "cnn")
    assert status == 1
    assert "uv run --extra tpu scripts/compile_ahead.py" in said
    assert not (tmp_path / "figures.json").exists()


@has_compiler
@pytest.mark.parametrize(("topology", "n"), [("v5e:2x4", 8), ("v6e:2x2", 4)])
def test_what_devices_of_a_slice_send_each_other_and_what_they_copy(tmp_path, topology, n):
    rows, parameters = 128, 651_978
    done, figures = compiled(
        tmp_path, "--topology", topology, "--network", "cnn", "--dtype", "float32",
        "--forget-batch-size", str(rows), "--retain-batch-size", str(rows),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert figures["devices"] == n
    kinds = {one["kind"] for one in figures["collectives"]}
    assert kinds == {"all-gather", "all-reduce"}
    gathered = [one["size"] for one in figures["collectives"] if one["kind"] == "all-gather"]
    assert gathered.count(4 * rows * 128) == 1, "the retain embeddings"
    assert sum(gathered) <= 4 * rows * 128 + 9 * rows
    summed = sum(one["size"] for one in figures["collectives"] if one["kind"] == "all-reduce")
    least = 4 * (parameters + rows * 128)
    assert least <= summed <= least + 9 * rows + 1024, "the gradient, the transpose of the gather, labels, scalars"
    shapes = [shape for one in figures["collectives"] for shape in one["shapes"]]
    a_row = 32 * 32 * 3
    of_images = (rows * a_row, rows * a_row // n)
    sizes = [math.prod(int(side) for side in re.search(r"\[(.*)\]", shape).group(1).split(",") if side) for shape in shapes]
    assert not any(shape.startswith("u8") for shape in shapes)
    assert not set(of_images) & set(sizes)
    assert figures["temporary_mib"] < 50_000 * a_row / 2**20 / 4, "the stored images are not copied in a step"


@has_compiler
def test_a_batch_that_the_slice_cannot_share_is_refused(tmp_path):
    done, _ = compiled(tmp_path, "--network", "cnn", "--forget-batch-size", "60")
    assert done.returncode == 2
    assert "forget_batch_size is 60, but 8 devices can only share a multiple of 8 equally; make it 56 or 64" in done.stderr
