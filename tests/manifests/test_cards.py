"""Cards: their facts are the YAML that hubs read, text from data is no markup, and an edited card is never lost."""

from __future__ import annotations

import pytest
from huggingface_hub import RepoCard
from hypothesis import given
from hypothesis import strategies as st

from c2vl_manifests import cards

TEXT = st.text(
    st.characters(min_codepoint=32, max_codepoint=0xD7FF, exclude_characters="\x7f", exclude_categories=["Cc"])
)


@given(TEXT, st.lists(TEXT, max_size=3))
def test_facts_are_read_as_they_were_given(name, tags):
    facts = {
        "license": name,
        "tags": tags,
        "configs": [{"config_name": name, "data_files": [{"split": "a: b", "path": name}]}],
    }
    found = RepoCard(cards.front_matter(facts) + "\ntext").data.to_dict()
    assert found == facts


def test_text_from_data_is_no_markup():
    for text in ("a | b", "[x](http://y)", "<script>", "`x`", "**x**", "# x", "line\nline", "\x1b[31m"):
        told = cards.plain(text)
        assert "\n" not in told
        assert told.isprintable()
        assert not any(told[n] in "|[]<>`*#" and told[n - 1 : n] != "\\" for n in range(len(told)))
    assert cards.table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


@pytest.mark.parametrize(
    "content", [b"my own", b"a card\n\n<!-- written by c2vl 0000000000000000 -->\n", b"\xff\xfe", b""]
)
def test_a_card_of_somebody_else_stays(tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    assert not cards.commit_card(tmp_path, "new")
    assert (tmp_path / "README.md").read_bytes() == content


def test_a_card_is_written_again_until_it_is_edited(tmp_path):
    assert cards.commit_card(tmp_path, "one")
    assert cards.commit_card(tmp_path, "two <!-- a comment -->\n")
    path = tmp_path / "README.md"
    assert path.read_text().startswith("two")
    path.write_text(path.read_text().replace("two", "two, edited"))
    assert not cards.commit_card(tmp_path, "three")
    assert "edited" in path.read_text()


def test_an_engine_is_named_with_model_and_revision():
    facts = {"backend": "hf", "model": "a/b", "revision": "main", "revision_resolved": "abc"}
    assert cards.engine_words(facts) == "hf, a/b, revision abc"
    assert cards.engine_words({"backend": "x", "model": None, "revision": None}) == "x"
    assert cards.engine_words({}) == "unknown"
