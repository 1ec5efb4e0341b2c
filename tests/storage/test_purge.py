"""What is left on disk of forgotten samples: found, removed, accounted for; what never saw them stays."""

import json

import numpy as np
import pytest
from etils import epath

from cujax.commands.purge import main
from cujax.data.id_lists import hashed_id
from cujax.data.images import Data
from cujax.data.requests import ForgetRandom, make_split
from cujax.data.sources import load_source
from cujax.storage.checkpoints import Metadata, load_checkpoint, save_checkpoint
from cujax.storage.purge import PURGED, find_leftovers, purge
from cujax.storage.records import read_record

ARRAYS = ({"w": np.ones(3, np.float32)}, {})
FORGOTTEN = ("a", "b")


def save(folder, name, kind, ids, version="v1", lineage=()):
    return save_checkpoint(
        folder / "checkpoints" / name, ARRAYS, Metadata(kind, "data", version, forgotten_ids=tuple(ids), lineage=lineage)
    )


@pytest.fixture(params=[False, True], ids=["plain", "hashed"])
def run(tmp_path, request):
    """A finished run, and a folder of models that audits share."""
    ids = tuple(map(hashed_id, FORGOTTEN)) if request.param else FORGOTTEN
    folder, shared = tmp_path / "run", tmp_path / "shared"
    original = save(folder, "original", "original", ())
    save(folder, "retrained_0", "retrained", FORGOTTEN)
    save(folder, "unlearned", "unlearned", ids, lineage=(original.as_ancestor(),))
    for place in (folder / "evidence", folder / "progress" / "x", folder / "metrics"):
        place.mkdir(parents=True)
        (place / "file.json").write_text("{}")
    (folder / "report.json").write_text("{}")
    split = shared / "split"
    save(split, "shadow_0", "retrained", ("a",))
    save(split, "retrained_0", "retrained", ids)
    save(shared / "other", "shadow_0", "retrained", (), version="v2")
    (split / "evidence").mkdir()
    (split / "config.json").write_text('{"source_version": "v1"}')
    (shared / "other" / "evidence").mkdir()
    (shared / "other" / "config.json").write_text('{"source_version": "v2"}')
    return folder, shared


def below(folder, *paths):
    return {str(folder / path) for path in paths}


def test_what_holds_the_samples_is_found_and_nothing_else(run):
    folder, shared = run
    found = {leftover.path for leftover in find_leftovers(folder, [shared]).found}
    expected = below(folder, "checkpoints/original", "evidence", "progress")
    assert found == expected | below(shared, "split/checkpoints/shadow_0", "split/evidence")


def test_it_is_removed_accounted_for_and_not_found_again(run):
    folder, shared = run
    leftovers = find_leftovers(folder, [shared])
    digest = next(leftover.digest for leftover in leftovers.found if leftover.path.endswith("original"))
    account = read_record(epath.Path(purge(leftovers, folder)), PURGED)
    assert {entry["path"] for entry in account["removed"]} == {leftover.path for leftover in leftovers.found}
    assert digest in {entry["digest"] for entry in account["removed"]}
    assert not find_leftovers(folder, [shared]).found
    for kept in ("checkpoints/unlearned", "checkpoints/retrained_0", "metrics/file.json", "report.json"):
        assert (folder / kept).exists()
    assert (shared / "split" / "checkpoints" / "retrained_0").exists()
    assert (shared / "other" / "checkpoints" / "shadow_0").exists()


def test_what_cannot_be_reached_is_told(run):
    folder, shared = run
    told = "\n".join(find_leftovers(folder, [shared]).out_of_reach)
    assert "the data data" in told
    hashed = json.dumps(find_leftovers(folder).out_of_reach).count("names the ids")
    assert hashed == (0 if hashed_id("a") in str(run_ids(folder)) else 1)


@pytest.mark.parametrize("name", ["redrawn_ids.txt", "own/ids.csv", "bom.txt", "windows.txt"])
def test_a_list_in_the_folder_that_names_a_forgotten_sample_goes_and_others_stay(run, name):
    folder, shared = run
    (folder / "own").mkdir()
    start, end = ("\ufeff" if name == "bom.txt" else ""), ("\r\n" if name == "windows.txt" else "\n")
    (folder / name).write_bytes(f"{start}b{end}other{end}".encode())
    kept = {
        "others.txt": "ab\nother\n",
        "hashed.txt": hashed_id("a"),
        "notes.md": "a\n",
        "table.csv": "id,label\n",
        "empty.txt": "",
    }
    for other, text in kept.items():
        (folder / other).write_text(text)
    (folder / "picture.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "evidence" / "list.txt").write_text("a\n")
    leftovers = find_leftovers(folder, [shared])
    lists = {leftover.path: leftover.reason for leftover in leftovers.found if "list of ids" in leftover.reason}
    assert lists == {str(folder / name): "a list of ids that names 1 of the forgotten samples"}
    purge(leftovers, folder)
    assert not (folder / name).exists()
    assert all((folder / other).exists() for other in kept)


def test_a_large_file_is_no_list_of_ids(run):
    folder, shared = run
    (folder / "large.txt").write_text("a\n" * 5_000_001)
    assert not any(leftover.path.endswith("large.txt") for leftover in find_leftovers(folder, [shared]).found)


def test_a_folder_of_shared_models_that_does_not_exist_is_refused_by_name(run, capsys, monkeypatch, tmp_path):
    folder, shared = run
    with pytest.raises(FileNotFoundError, match=r"folder \S*sharde of shared models does not exist"):
        find_leftovers(folder, [shared.with_name("sharde")])
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--references", "sharde", "--yes"]) == 2
    assert "folder sharde of shared models does not exist" in capsys.readouterr().err
    assert (folder / "evidence").exists()
    assert main([str(folder)]) == 0


def run_ids(folder):
    return load_checkpoint(folder / "checkpoints" / "unlearned").metadata.forgotten_ids


def test_a_folder_without_an_unlearned_model_is_refused(tmp_path):
    save(tmp_path, "original", "original", ())
    with pytest.raises(FileNotFoundError, match="contains no unlearned model"):
        find_leftovers(tmp_path)


def test_a_damaged_checkpoint_goes_with_the_rest(run):
    folder, _ = run
    for path in (folder / "checkpoints" / "retrained_0").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    reasons = {leftover.path: leftover.reason for leftover in find_leftovers(folder).found}
    assert "cannot be read" in reasons[str(folder / "checkpoints" / "retrained_0")]


def test_hashed_ids_stand_for_the_ids_in_a_chain(tmp_path):
    source = load_source(Data("digits"))
    first = make_split(source, ForgetRandom(count=5)).forget.ids.tolist()
    plain = make_split(source, ForgetRandom(count=7, seed=1), first)
    hashed = make_split(source, ForgetRandom(count=7, seed=1), list(map(hashed_id, first)))
    for name in ("forget", "retain", "previously_forgotten"):
        np.testing.assert_array_equal(getattr(plain, name).ids, getattr(hashed, name).ids)
    with pytest.raises(ValueError, match="1 ids that the model forgot earlier are not in digits"):
        make_split(source, ForgetRandom(count=7), [hashed_id("nobody")])
