"""Runs in gs:// buckets, for which a local folder stands in."""

import os
from pathlib import Path

import pytest
from etils.epath import backend, gpath
from orbax.checkpoint import v1 as ocp

from cujax import ContrastiveUnlearning, load_checkpoint
from cujax.data.images import Data
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.reports.run_report import report_on
from cujax.training.supervised import Training


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The local folder that holds what is written to gs://bucket."""

    def local(path):
        return str(path).replace("gs://", f"{tmp_path}/")

    class StandIn(backend._OsPathBackend):
        def __getattribute__(self, name):
            function = getattr(backend._OsPathBackend(), name)

            def call(*paths, **settings):
                found = function(*map(local, paths), **settings)
                return [each.replace(f"{tmp_path}/", "gs://") for each in found] if name == "glob" else found

            return call

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", StandIn())
    for name in ("save", "load", "metadata"):
        function = getattr(ocp, name)

        def call(path, *arguments, function=function, **settings):
            assert os.fspath(path).startswith("gs://bucket/"), path
            return function(local(path), *arguments, **settings)

        monkeypatch.setattr(ocp, name, call)
    (tmp_path / "gcsfs.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "bucket"


def run(workdir, **changes):
    method = ContrastiveUnlearning(max_passes=1)
    # A slow machine would save progress beside the computation, and leave its empty folder.
    quick = {"data": Data(limit=300), "training": Training(epochs=1), "retrained": 0, "save_seconds": None}
    return prepare(Experiment(workdir=workdir, method=method, **quick, **changes))


def test_a_run_in_a_bucket_is_made_continued_and_built_upon(bucket, capsys):
    first = run("gs://bucket/run")
    report_on(first, first.original(), [], first.unlearned(), first.workdir)
    assert {path.name for path in (bucket / "run").iterdir()} == {
        "config.json", "checkpoints", "metrics", "report.json", "report.html"
    }  # fmt: skip
    assert (bucket / "run" / "metrics" / "unlearned.jsonl").stat().st_size > 0
    assert "Checkpoints and metrics: gs://bucket/run." in capsys.readouterr().out
    again = run("gs://bucket/run")
    assert again.missing() == []
    assert again.unlearned().digest == first.unlearned().digest
    original = "gs://bucket/run/checkpoints/original"
    assert load_checkpoint(original).digest == first.original().digest
    assert run("gs://bucket/other", original=original).original().digest == first.original().digest
    with pytest.raises(FileExistsError, match="gs://bucket/run contains a run of another configuration"):
        run("gs://bucket/run", seed=1)
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing does not exist"):
        load_checkpoint("gs://bucket/nothing")


def test_what_a_bucket_needs_is_told():
    with pytest.raises(ValueError, match="gs://bucket/run needs gcsfs: run the command as uv run --extra gcs"):
        run("gs://bucket/run")
    assert not Path("gs:").exists()
