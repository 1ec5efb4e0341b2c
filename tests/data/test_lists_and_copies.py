"""Deletion lists as people write them, copies of the images that they name, and models that were trained on everything."""

import json
import unicodedata
import zipfile
from pathlib import Path
from urllib.parse import quote

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetIds, ForgetRandom, ForgetWhere, make_split
from cujax.data.sources import load_source

RNG = np.random.default_rng(0)
N = 80
PIXELS = RNG.integers(0, 256, (N, 6, 6), dtype=np.uint8)
IDS = [f"peré-{number}" for number in range(N)]


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / "own.npz", images=PIXELS, labels=np.arange(N) % 4, ids=IDS)
    return load_source(Data(str(tmp_path / "own.npz")))


@pytest.fixture
def free(source):
    """Ids that can be forgotten."""
    return make_split(source, ForgetRandom(count=8)).forget.ids.tolist()


def asked(source, content, tmp_path, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return sorted(make_split(source, ForgetIds(str(path))).forget.ids.tolist())


@pytest.mark.parametrize(
    "write",
    [
        lambda ids: "\n".join(ids).encode(),
        lambda ids: "\r\n".join(ids).encode() + b"\r\n",
        lambda ids: "\r".join(ids).encode(),
        lambda ids: b"\xef\xbb\xbf" + "\r\n".join(ids).encode(),
        lambda ids: "\n\n".join(f"  {name}\t" for name in ids + ids).encode(),
        lambda ids: unicodedata.normalize("NFD", "\n".join(ids)).encode(),
        lambda ids: "\n".join(f'"{name}"' for name in ids).encode(),
        lambda ids: "\n".join(f" '{name}' " for name in ids).encode(),
        lambda ids: "\n".join(["id", *ids]).encode(),
        lambda ids: "\r\n".join(["", '"Filename"', *(f'"{name}"' for name in ids)]).encode(),
    ],
    ids=[
        "lf",
        "crlf",
        "cr",
        "bom",
        "spaces_and_duplicates",
        "decomposed",
        "quoted",
        "single_quotes",
        "header",
        "quoted_header",
    ],
)
def test_lists_are_read_as_editors_write_them(source, free, tmp_path, write):
    assert asked(source, write(free), tmp_path) == sorted(free)


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("latin-1", "Latin-1"), ("cp1252", "Latin-1")],
)
def test_other_encodings_are_named_with_the_file(source, free, tmp_path, encoding, named):
    with pytest.raises(ValueError, match=rf"list.txt is not UTF-8.*{named}.*save it as UTF-8"):
        asked(source, "\n".join(free).encode(encoding), tmp_path)


@pytest.mark.parametrize("name", ["list.xlsx", "list.csv", "list.txt", "list.xls"])
def test_a_spreadsheet_is_named_as_one_with_the_way_out(source, tmp_path, name):
    path = tmp_path / name
    if name == "list.xls":
        path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    else:
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(ValueError, match=rf"{name} is not text but a spreadsheet.*save it as CSV"):
        make_split(source, ForgetIds(str(path)))


@pytest.mark.parametrize("write", [json.dumps, lambda ids: "\ufeff" + json.dumps(ids + ids, ensure_ascii=False, indent=1)])
def test_a_list_in_json_is_read(source, free, tmp_path, write):
    assert asked(source, write(free).encode(), tmp_path, "list.json") == sorted(free)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON .*write a list of ids"),
        ('{"id": "a"}', "must be a list of ids"),
        ('["a", {"id": "b"}]', "must be a list of ids"),
        ("[true]", "must be a list of ids"),
        ("[]", "contains no ids"),
        ("", "contains no ids"),
        ('["nobody"]', "do not exist in own.npz"),
    ],
)
def test_other_json_is_refused_with_the_form_to_give(source, tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"list.json.*{message}"):
        asked(source, text.encode(), tmp_path, "list.json")


def test_whole_numbers_in_json_are_ids(tmp_path):
    np.savez(tmp_path / "own.npz", images=PIXELS, labels=np.arange(N) % 4, ids=np.arange(N))
    source = load_source(Data(str(tmp_path / "own.npz")))
    some = make_split(source, ForgetRandom(count=3)).forget.ids.tolist()
    assert asked(source, json.dumps([int(name) for name in some]).encode(), tmp_path, "list.json") == sorted(some)


@pytest.mark.parametrize("header", ["id", "filename"])
def test_a_first_line_that_is_an_id_is_no_header(tmp_path, header):
    ids = np.array([header, *IDS[1:]])
    np.savez(tmp_path / "own.npz", images=PIXELS, labels=np.arange(N) % 4, ids=ids)
    source = load_source(Data(str(tmp_path / "own.npz")))
    (tmp_path / "list.txt").write_text(header)
    split = make_split(source, ForgetIds(str(tmp_path / "list.txt")), validation="none")
    assert split.forget.ids.tolist() == [header]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id\n{}\n"),
        ("a.csv", "name,id,reason\nx,{},please\n"),
        ("a.csv", "name;ID;reason\nx;{};please\n"),
        ("a.tsv", "image_id\twhy\n{}\t\n"),
        ("a.csv", "\ufefffilename,other\n{},\n"),
        ("a.csv", 'id,why\n"{}","a, b"\n'),
        ("a.csv", "anything\n{}\n"),
        ("a.csv", "sep=;\nname;id\nx, y, z;{}\n"),
        ("a.csv", "\ufeffsep=,\nid\n{}\n"),
        ("a.csv", '"sep=|"\nid|why; not\n{}|a\n'),
    ],
)
def test_tables_are_read_by_their_column_of_ids(source, free, tmp_path, name, text):
    *header, row = text.splitlines()
    lines = [*header, *(row.format(identity) for identity in free)]
    assert asked(source, "\r\n".join(lines).encode(), tmp_path, name) == sorted(free)


def test_tables_without_a_column_of_ids_are_refused(source, free, tmp_path):
    with pytest.raises(
        ValueError, match=r"has the columns \['name', 'reason'\], but none is named id; rename the column with the ids to id"
    ):
        asked(source, f"name,reason\n{free[0]},x\n".encode(), tmp_path, "a.csv")
    with pytest.raises(ValueError, match="names a sample; add a header above it"):
        asked(source, f"{free[0]}\n{free[1]}\n".encode(), tmp_path, "a.csv")
    with pytest.raises(ValueError, match=r"row 2 of .* has no id: "):
        asked(source, f"id,why\n,x\n{free[0]},y\n".encode(), tmp_path, "a.csv")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_list_is_told(source, tmp_path, content):
    with pytest.raises(ValueError, match=r"list.txt contains no ids"):
        asked(source, content, tmp_path)


def test_held_out_images_are_told_to_be_that(source, free, tmp_path):
    with pytest.raises(ValueError, match=r"1 of the 2 ids in .* are test images of own.npz"):
        asked(source, f"{free[0]}\n{source.test.ids[0]}".encode(), tmp_path)
    validation = make_split(source, ForgetRandom(count=1)).validation.ids[0]
    with pytest.raises(ValueError, match=r"are validation images.*--no-validation, or --validation-ids"):
        asked(source, validation.encode(), tmp_path)


def test_an_unknown_id_is_told_with_one_that_ends_alike(tmp_path):
    source = folder(tmp_path / "pets")
    some = make_split(source, ForgetRandom(count=1)).forget.ids[0]
    with pytest.raises(ValueError, match=rf"do not exist in pets: .*its ids look like '.*{Path(some).name}'"):
        asked(source, Path(some).name.encode(), tmp_path)


def folder(root):
    for name in ("cat", "dog"):
        for number in range(10):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (6, 6), dtype=np.uint8)).save(root / name / f"{number} é.png")
    return load_source(Data(f"{root}/"))


@pytest.mark.parametrize(
    "spell",
    [
        lambda root, name: name,
        lambda root, name: f"./{name}",
        lambda root, name: str(root / name),
        lambda root, name: f"{root.name}/{name}",
        lambda root, name: name.replace("/", "\\"),
        lambda root, name: f'"{root / name}"',
        lambda root, name: f"file://{root / name}",
        lambda root, name: f"file://{quote(str(root / name))}",
        lambda root, name: f'"file://{quote(str(root / name))}"',
        lambda root, name: unicodedata.normalize("NFD", str(root / name)),
    ],
)
def test_a_path_as_a_file_manager_shows_it_names_the_image(tmp_path, spell):
    root = tmp_path / "pets"
    source = folder(root)
    ids = make_split(source, ForgetRandom(count=3)).forget.ids.tolist()
    assert asked(source, "\n".join(spell(root, name) for name in ids).encode(), tmp_path) == sorted(ids)


def test_a_path_in_another_folder_does_not(tmp_path):
    source = folder(tmp_path / "pets")
    name = make_split(source, ForgetRandom(count=1)).forget.ids[0]
    with pytest.raises(ValueError, match="do not exist in pets"):
        asked(source, f"{tmp_path}/other/{name}".encode(), tmp_path)


@pytest.fixture
def with_copies(tmp_path):
    """A source in which the first twenty images occur twice, and the copies' ids by the ids of what they copy."""
    labels = np.arange(N) % 4
    ids = [*IDS, *(f"copy-{number}" for number in range(20))]
    np.savez(
        tmp_path / "copies.npz",
        images=np.concatenate([PIXELS, PIXELS[:20]]),
        labels=np.concatenate([labels, (labels[:20] + 1) % 4]),
        ids=ids,
        test_images=RNG.integers(0, 256, (8, 6, 6), dtype=np.uint8),
        test_labels=np.arange(8) % 4,
    )
    return load_source(Data(str(tmp_path / "copies.npz")))


def requests_for(source, tmp_path, copies):
    """One of each kind whose images have copies outside."""
    free = make_split(source, ForgetRandom(count=1, copies="keep"))
    free = {*free.retain.ids.tolist(), *free.forget.ids.tolist()}
    pairs = [(IDS[row], f"copy-{row}") for row in range(20) if {IDS[row], f"copy-{row}"} <= free]
    (tmp_path / "list.txt").write_text("\n".join(name for name, _ in pairs), "utf-8")
    wanted = {name for name, _ in pairs}
    return [
        ForgetIds(str(tmp_path / "list.txt"), copies=copies),
        ForgetClass(0, copies=copies),
        ForgetWhere(lambda name, label: name in wanted, copies=copies),
        ForgetRandom(count=40, copies=copies),
    ]


def test_copies_are_refused_kept_or_forgotten_with_the_image(with_copies, tmp_path):
    pixels = dict(zip(with_copies.train.ids.tolist(), map(bytes, with_copies.train.images), strict=True))
    for keeping, together, refused in zip(
        *(requests_for(with_copies, tmp_path, copies) for copies in ("keep", "with", "refuse")), strict=True
    ):
        kept, gone = make_split(with_copies, keeping), make_split(with_copies, together)
        copies = set(kept.copies.ids.tolist())
        assert copies
        forgotten = {pixels[name] for name in kept.forget.ids.tolist()}
        assert copies == {name for name in kept.retain.ids.tolist() if pixels[name] in forgotten}
        assert set(gone.forget.ids.tolist()) == set(kept.forget.ids.tolist()) | copies
        assert set(gone.copies.ids.tolist()) == copies
        assert not {pixels[name] for name in gone.retain.ids.tolist()} & forgotten
        with pytest.raises(
            ValueError, match=rf"{len(copies)} images that would be retained have the same pixels.*copies with"
        ):
            make_split(with_copies, refused)


def test_copies_are_refused_by_default_except_for_a_random_draw(with_copies, tmp_path):
    with pytest.raises(ValueError, match="have the same pixels"):
        make_split(with_copies, ForgetClass(0))
    with pytest.raises(ValueError, match="have the same pixels"):
        make_split(with_copies, ForgetIds(requests_for(with_copies, tmp_path, "keep")[0].path))
    assert len(make_split(with_copies, ForgetRandom(count=40)).forget) > 40


@pytest.mark.parametrize("copies", ["keep", "with", "refuse"])
def test_copies_among_the_test_images_are_named(copies, tmp_path):
    copied = np.array([3, 7, 11])
    test_images = np.concatenate([RNG.integers(0, 256, (8, 6, 6), dtype=np.uint8), PIXELS[copied]])
    labels = np.arange(N) % 4
    np.savez(
        tmp_path / "tested.npz",
        images=PIXELS,
        labels=labels,
        ids=IDS,
        test_images=test_images,
        test_labels=np.arange(len(test_images)) % 4,
    )
    source = load_source(Data(str(tmp_path / "tested.npz")))
    split = make_split(source, ForgetClass(3, copies=copies))
    forgotten = set(split.forget.ids.tolist())
    expected = [8 + place for place, row in enumerate(copied) if IDS[row] in forgotten]
    assert expected
    assert split.copies_in_test.indices.tolist() == expected
    assert len(split.test) == len(test_images)


def test_copies_in_streamed_folders_are_found(tmp_path):
    root = tmp_path / "pets"
    folder(root)
    for number in range(10):
        (root / "dog" / f"copy {number}.png").write_bytes((root / "cat" / f"{number} é.png").read_bytes())
    for memory_gb in (1.0, 0.0):
        source = load_source(Data(f"{root}/", memory_gb=memory_gb))
        with pytest.raises(ValueError, match=r"have the same pixels as one in the request, such as dog/copy"):
            make_split(source, ForgetClass("cat"))
        kept = make_split(source, ForgetClass("cat", copies="keep"))
        assert all(name.startswith("dog/copy") for name in kept.copies.ids.tolist())


def test_without_validation_every_training_image_can_be_forgotten(source, tmp_path):
    held_out = make_split(source, ForgetRandom(count=1)).validation.ids.tolist()
    (tmp_path / "list.txt").write_text("\n".join(held_out), "utf-8")
    split = make_split(source, ForgetIds(str(tmp_path / "list.txt")), validation="none")
    assert sorted(split.forget.ids.tolist()) == sorted(held_out)
    assert len(split.validation) == 0
    assert len(split.forget) + len(split.retain) == len(source.train)


def test_validation_may_be_named_in_a_file(source, free, tmp_path):
    (tmp_path / "unseen.csv").write_text("id\n" + "\n".join(free), "utf-8")
    split = make_split(source, ForgetClass(1), validation=str(tmp_path / "unseen.csv"))
    assert sorted(split.validation.ids.tolist()) == sorted(free)
    (tmp_path / "unseen.csv").write_text(f"id\n{source.test.ids[0]}", "utf-8")
    with pytest.raises(ValueError, match="are test images"):
        make_split(source, ForgetClass(1), validation=str(tmp_path / "unseen.csv"))


LINES = st.one_of(
    st.sampled_from(IDS),
    st.sampled_from(IDS).map(lambda name: f"  {unicodedata.normalize('NFD', name)}\t"),
    st.sampled_from(["", "id", "id,label", "# a comment", "peré-999", "peré-0;3", '"peré-1"', "\x0b", "0"]),
    st.text(max_size=8),
)


@pytest.fixture(scope="module")
def drawn_source(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "own.npz"
    np.savez(path, images=PIXELS, labels=np.arange(N) % 4, ids=IDS)
    return load_source(Data(str(path)))


@hypothesis.given(
    lines=st.lists(LINES, max_size=12),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    name=st.sampled_from(["list.txt", "list.csv", "list.tsv", "list"]),
)
@hypothesis.settings(max_examples=200)
def test_whatever_a_list_holds_its_ids_are_forgotten_or_it_is_refused_with_the_file(
    drawn_source, tmp_path_factory, lines, ending, encoding, name
):
    path = tmp_path_factory.mktemp("drawn") / name
    path.write_bytes(ending.join(lines).encode(encoding, errors="replace"))
    try:
        split = make_split(drawn_source, ForgetIds(str(path), copies="keep"))
    except ValueError as error:
        assert str(path) in str(error)
        return
    written = {unicodedata.normalize("NFC", cell.strip().strip('"')) for line in lines for cell in (line, *line.split(","))}
    assert set(split.forget.ids.tolist()) <= written, "nothing is forgotten that the list does not name"
    parts = [split.forget, split.retain, split.validation]
    assert sorted(np.concatenate([part.ids for part in parts]).tolist()) == sorted(drawn_source.train.ids.tolist())
