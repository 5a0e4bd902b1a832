"""`memlong export` and `import`, as text for people and as JSON for programs."""

from __future__ import annotations

from pathlib import Path

from cli_results import KEY, Run, line_of, objects, ok


def test_what_is_exported_is_imported(memlong: Run, noted: str, tmp_path: Path) -> None:
    shown = ok(memlong("export", "me.memlong", "--user", "me"))
    assert "me.memlong" in shown and "Memories" in shown
    assert (tmp_path / "me.memlong").stat().st_mode & 0o777 == 0o600
    other = ("--bank", str(tmp_path / "other"))
    assert ok(memlong("import", "me.memlong", *other)) == "Imported 1 memory, 0 items.\n"
    again = ok(memlong("import", "me.memlong", *other))
    assert again == "Imported 0 memories, 0 items; 1 memory were here already.\n"
    [found] = objects(memlong("search", "where is the spare key", "--json", *other))
    assert (found["memory_id"], found["text"].strip()) == (noted, KEY)


def test_json_says_how_much(memlong: Run, noted: str, tmp_path: Path) -> None:
    [done] = objects(memlong("export", "all.memlong", "--json"))
    assert done["memories"] == 1
    assert done["nbytes"] == (tmp_path / "all.memlong").stat().st_size
    [back] = objects(memlong("import", "all.memlong", "--json", "--bank", str(tmp_path / "b")))
    assert back == {"path": "all.memlong", "memories": 1, "present": 0, "items": 0, "evicted": 0}


def test_mistakes_are_one_line(memlong: Run, noted: str, note: str, tmp_path: Path) -> None:
    assert "not an archive that memlong wrote" in line_of(memlong("import", note))
    assert "No such file" in line_of(memlong("import", "nothing"))
    assert "is not a file" in line_of(memlong("import", str(tmp_path)))
    ok(memlong("export", "x"))
    assert "exists already" in line_of(memlong("export", "x"))
    other = ("--bank", str(tmp_path / "b"), "--embedder", "lexical")
    assert "memlong import --encode" in line_of(memlong("import", "x", *other))
    assert ok(memlong("import", "x", "--encode", *other)) == "Imported 1 memory, 0 items.\n"
    assert "Export whose memories" in line_of(
        memlong("export", "y", "--user", "a", "--session", "b")
    )
