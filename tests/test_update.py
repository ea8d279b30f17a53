"""Items that come and go in an index folder: ``cexnn update``."""

import json

import numpy as np
import pytest

pytest.importorskip("click", reason="needs click: pip install 'cexnn[cpu]'")

from click.testing import CliRunner

from cexnn.cli import main
from cexnn.index import Index
from cexnn.index_folder import IndexFolder, Settings, read_folder, write_folder
from cexnn.lsa import LsaEncoder
from cexnn.texts import Text

ITEMS = [
    Text(f"{verb}.{noun}", f"{verb} a {noun} {verb}s {noun}s")
    for verb in ("copy", "delete", "open", "sort")
    for noun in ("file", "list", "folder", "string")
]
NEW = {"id": "open.list", "text": "open a list and sort a list"}
SAME = {"id": "copy.file", "text": ITEMS[0].text}
MORE = {"id": "read.file", "text": "open a file, copy a file"}


@pytest.fixture(params=["its own embeddings", "the caller's"])
def folder(request, tmp_path):
    encoder = LsaEncoder.fit([item.text for item in ITEMS], n_dims=4)
    index = Index.build(item_embeddings=encoder([item.text for item in ITEMS])).astype("int8")
    encoder.save(tmp_path / "lsa.npz")
    own = encoder if request.param == "its own embeddings" else None
    write_folder(tmp_path / "index", IndexFolder(index, ITEMS, own, Settings("nowhere")))
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (NEW, SAME, MORE)))
    np.save(tmp_path / "new.npy", encoder([NEW["text"], SAME["text"], MORE["text"]]))
    (tmp_path / "gone.txt").write_text("copy.list\n\nnobody\nsort.file\n")
    return tmp_path


def embeddings(folder):
    """Return the options that the folder asks for."""
    own = (folder / "index" / "encoder.npz").exists()
    return [] if own else ["--embeddings", folder / "new.npy"]


def run(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(main, [str(a) for a in ("update", *arguments)], input=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def test_items_come_go_and_change(folder):
    before = read_folder(folder / "index")
    said = run(
        folder / "index", "--add", folder / "new.jsonl", *embeddings(folder),
        "--remove", folder / "gone.txt",
    )  # fmt: skip
    assert said.endswith("15 items: 1 added, 1 replaced, 2 removed; 1 to remove were not there\n")
    after = read_folder(folder / "index")
    gone = {"open.list", "copy.list", "sort.file"}
    kept = [row for row, item in enumerate(ITEMS) if item.id not in gone]
    texts = [NEW["text"], MORE["text"]]
    assert after.items == [*(ITEMS[row] for row in kept), *(Text(**x) for x in (NEW, MORE))]
    assert (after.index.n_items, after.index.n_removed, after.index.dtype) == (15, 0, "int8")
    assert np.array_equal(after.index.item_factors[:13], before.index.item_factors[kept])
    by_hand = before.index.take(kept)
    by_hand.add(LsaEncoder.load(folder / "lsa.npz")(texts))
    assert np.array_equal(after.index.item_factors, by_hand.item_factors)
    assert (after.encoder is None) == (before.encoder is None)
    assert after.settings == before.settings
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_same_again_changes_nothing(folder):
    command = folder / "index", "--add", folder / "new.jsonl", *embeddings(folder)
    run(*command)
    files = {path.name: path.stat().st_ino for path in (folder / "index").iterdir()}
    assert "17 items: 0 added, 0 replaced, 0 removed" in run(*command)
    assert files == {path.name: path.stat().st_ino for path in (folder / "index").iterdir()}


def test_ids_to_remove_come_on_the_standard_input(folder):
    assert "15 items: 0 added, 0 replaced, 1 removed; 0" in run(
        folder / "index", "--remove", "-", stdin="copy.list\n"
    )
    assert len(read_folder(folder / "index").items) == 15


def test_bad_updates_are_named_and_change_nothing(folder):
    index, new = folder / "index", folder / "new.jsonl"
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    everything = folder / "all.txt"
    everything.write_text("".join(f"{item.id}\n" for item in ITEMS))
    changing = folder / "changing.txt"
    changing.write_text("read.file\n")
    wrong = [] if embeddings(folder) else ["--embeddings", folder / "new.npy"]
    for arguments, message in (
        ([], "--add, --remove: expected one of them at least"),
        (["--remove", everything], "--remove: expected some items to stay"),
        (["--remove", changing, "--embeddings", folder / "new.npy"], "expected --add, too"),
        (["--add", new, *wrong], "--embeddings: expected"),
        (
            ["--add", new, *embeddings(folder), "--remove", changing],
            "--remove: expected other ids than those of --add, got 'read.file'",
        ),
        (["--add", "-", "--remove", "-"], "--remove: expected a file, the standard input holds"),
    ):
        assert message in run(index, *arguments, code=2)
    assert before == {path.name: path.read_bytes() for path in index.iterdir()}


def test_embeddings_of_another_number_of_items_are_refused(folder):
    if embeddings(folder):
        np.save(folder / "new.npy", np.ones((2, 4), np.float32))
        command = folder / "index", "--add", folder / "new.jsonl", *embeddings(folder)
        assert "--embeddings: expected 3 rows" in run(*command, code=2)
