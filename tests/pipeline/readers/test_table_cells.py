"""Tables as pandas, R and spreadsheets write them: one meaning is taken, two are one line."""

from __future__ import annotations

import io
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.errors import DataError
from c2vl_pipeline.readers.sample_table import parse_table, whole_number

Row = dict[str, Any]


def read(content: str | bytes, suffix: str = ".csv") -> tuple[tuple[str, ...], dict[str, Row], list[str]]:
    notes: list[str] = []
    data = content.encode() if isinstance(content, str) else content
    classes, rows = parse_table(data, suffix, f"f{suffix}", notes)
    return classes, {row["sample_id"]: row for row in rows}, notes


def refused(content: str | bytes, suffix: str = ".csv") -> str:
    with pytest.raises(DataError) as caught:
        read(content, suffix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


# ----------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("7.0", 7), ("7,00", 7), ("7.", 7), ("+7", 7), ("-0.0", 0), ("2e2", 200), ("3,0E+01", 30),
        ("2.345,0", 2345), ("2,345.00", 2345), ("2'345", 2345), ("2\u202f345", 2345), ("1.234.567", 1234567), ("0,000", 0),
        ("7.5", None), ("2.345", None), ("7,000", None), ("0.500", None), ("7_0", None), ("٧", None), ("1e99", 10**99),
        ("1e-2", None), ("7.0.0", None), ("1,23,456", None), ("0x7", None), ("+-7", None),
    ],
)  # fmt: skip
def test_a_whole_number_is_read_as_any_country_writes_it(text: str, value: int | None) -> None:
    assert whole_number(text) == value


def test_a_number_with_two_meanings_is_refused_with_row_column_and_remedy() -> None:
    assert refused("sample_id,end_frame\na,12\nb,1.200\n") == (
        "f.csv:3: end_frame = '1.200' can be read in two ways; write its digits, or leave the cell empty"
    )


# ------------------------------------------------------------------------------------ gaps and labels


@pytest.mark.parametrize(
    "gap",
    ["", "NaN", "nan", "NA", "N/A", "None", "NULL", "null", "<NA>", "NaT", "#N/A", " NaN ", "#NV", "#I/T", "#Н/Д", "#N/D!",
     "#SAKNAS!", "#YOK"],
)  # fmt: skip
def test_words_for_nothing_are_gaps_in_every_column_and_no_class(gap: str) -> None:
    columns = ("start_frame", "end_frame", "label", "subject", "view", "camera", "split_x")
    classes, rows, _ = read(f"sample_id,{','.join(columns)}\na{f',{gap}' * len(columns)}\nb,0,9,wave,1,2,c,train\n")
    assert classes == ("wave",)
    assert rows["a"]["label"] == -1
    assert [rows["a"][c] for c in ("start_frame", "end_frame", "subject", "view", "camera", "splits")] == [
        None, None, None, None, "", [],
    ]  # fmt: skip


def test_a_row_whose_id_means_nothing_is_refused_with_the_word() -> None:
    assert refused("sample_id,label\na,x\nnan,y\n") == "f.csv:3: no sample_id (but 'nan'); every row needs one"


@pytest.mark.parametrize(
    "error",
    ["#ZAHL!", "#NOM?", "#¿NOMBRE?", "#ЗНАЧ!", "#BŁĄD!", "#DEĞER!", "#DIV/0!", "#ÜBERLAUF!", "#VALEUR\u202f!", "#值!", "#GETTING_DATA", "########",
     "Err:508", "Err :522", "Fehler:504"],
)  # fmt: skip
@pytest.mark.parametrize("column", ["label", "camera", "video"])
def test_an_error_of_a_spreadsheet_of_any_country_is_no_class(error: str, column: str) -> None:
    assert refused(f"sample_id;{column}\na;x\nb;{error}\n") == (
        f"f.csv:3: {column} = {error!r}, an error of the spreadsheet; correct the cell or empty it"
    )


@pytest.mark.parametrize("label", ["#1", "#wave!", "Hey!", "# OK", "#left/right", "Error: 5", "A#B!"])
def test_a_label_may_hold_a_hash_or_end_with_a_mark(label: str) -> None:
    assert read(f"sample_id;label\na;{label}\n")[0] == (label,)


def test_none_in_small_letters_may_be_a_gesture() -> None:
    assert read("sample_id,label\na,none\nb,wave\n")[0] == ("none", "wave")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["3.0", "20.0", "100.0"], ("3", "20", "100")),
        (["1e1", "2", "-1,0"], ("-1", "2", "10")),
        (["2.5", "10", "2,25"], ("2.25", "2.5", "10")),
        (["07", "7.0", "wave"], ("07", "7.0", "wave")),
        (["007", "2"], ("2", "007")),
        (["TRUE", "false"], ("False", "True")),
        (["TRUE", "maybe"], ("TRUE", "maybe")),
    ],
)
def test_labels_that_are_all_numbers_or_truth_values_are_read_as_such(labels: list[str], classes: tuple[str]) -> None:
    text = "sample_id;label\n" + "".join(f"s{n};{label}\n" for n, label in enumerate(labels))
    assert read(text)[0] == classes


# --------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "index", "__index_level_0__", "level_1", "Unnamed: 0.1"])
def test_a_column_that_holds_the_index_is_passed_over(index: str) -> None:
    assert set(read(f"{index},sample_id,label\n7,a,x\n8,b,y\n")[1]) == {"a", "b"}


def test_columns_without_a_name_may_only_be_empty() -> None:
    assert set(read("sample_id,label,,\na,x,,\n,,,\nb,y, ,\n")[1]) == {"a", "b"}
    assert (
        refused("sample_id,,label\na,lost,x\n") == "f.csv:2: 'lost' in column 2, which has no name; name it or empty it"
    )


def test_headers_are_read_in_any_letter_case_with_blanks() -> None:
    _, rows, _ = read(" Sample ID ,START-FRAME,Split_Mine,split_By room\na,3,Test,TRAIN\n")
    assert (rows["a"]["start_frame"], rows["a"]["splits"]) == (3, [("mine", "test"), ("By room", "train")])
    assert "column 'label' appears twice" in refused("sample_id,Label,label \na,x,y\n")


# ------------------------------------------------------------------------------- separators and encodings


PLAIN = 'sample_id,label,start_frame\na,"x, y",3\nb,z,\n'


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\nsample_id;label;start_frame\na;x, y;3,0\nb;z;\n",
        '"sep=|"\r\nsample_id|label|start_frame\r\na|x, y|3\r\nb|z|\r\n',
        "sample_id\tlabel\tstart_frame\r\na\tx, y\t3\r\nb\tz\t\r\n",
        "sample_id|label|start_frame\na|x, y|3\nb|z|\n",
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\r\n") + ",,\r\n\x1a",
        "\n  ,\n" + PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-be"),
        "\ufeff".encode("utf-16-le") + PLAIN.replace(",", "\t").replace("x\t y", "x, y").encode("utf-16-le"),
        'sample_id,label,start_frame\n"=""a""","x, y",3\nb,z,NaN\n',
        PLAIN.replace(",", ", ").replace("x,  y", "x, y"),
        'sample_id, label,  start_frame\n "a",   "x, y", "3"\nb, z,\n',
        PLAIN.encode("utf-32"),
        PLAIN.encode("utf-32-be"),
        PLAIN.encode("utf-32-le"),
        "\ufeff".encode("utf-32-be") + PLAIN.encode("utf-32-be"),
        '"sample_id","label","start_frame"\n"1","a","x, y",3\n"2","b","z",NA\n',
        '"label","start_frame","sample_id"\n"Anna","x, y",3,"a"\n"Bob","z",NA,"b"\n',
        "sample_id;label;start_frame\n3;a;x, y;3\n12;b;z;NA\n",
        "Table 1,,\n" + PLAIN,
        "# exported by the lab\n\nRecordings;;\n" + PLAIN.replace(",", ";").replace("x; y", "x, y"),
        "Sheet\tA\nSample ID\tlabel\tstart_frame\na\tx, y\t3\nb\tz\t\n",
        PLAIN.replace("b,z", "sample_id,label,start_frame\nb,z"),
        PLAIN + "\ufeffSample ID,Label,Start frame\n",
        (PLAIN + "\n sample_id , label , start_frame\n").replace("\n", "\r\n"),
    ],
)
def test_one_table_in_many_spellings_is_one_table(content: str | bytes) -> None:
    assert read(content)[:2] == read(PLAIN)[:2]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("Table 1,,\n" + PLAIN, "f.csv: what stands above line 2 is passed over ('Table 1')"),
        (PLAIN + "sample_id,label,start_frame\n" * 3, "f.csv: the header stands again in line 4 and 2 more, which is passed over"),
        ("sample_id,label\n1,a,x\n2,b,y\n", "f.csv: its first column has no header and is passed over, as R's names of rows"),
    ],
)  # fmt: skip
def test_what_is_passed_over_in_a_table_is_a_note(content: str, note: str) -> None:
    assert read(content)[2] == [note]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sample_id,label\n1,sit, down\n2,stand\n", "f.csv:3: 2 cells; the rows above have 3 columns"),
        ("sample_id,label\na,sit, down\nb,stand, up\n", "f.csv:2: 3 cells; the header has 2 columns"),
        ('"sample_id","label"\na,sit, down\nb,stand, up\n', "f.csv:2: 3 cells; the header has 2 columns"),
        ("sample_id,label\na,x\nlabel,sample_id\nb,y\n", None),
        ("sample_id,label\na,x\nsample_id,view\nb,2\n", "f.csv:3: a second header, with other columns"),
        ("nothing,known\nsample_id2,x\n", "f.csv:1: unknown column 'nothing'"),
        ("label,oops\nsample_id,label\n", "f.csv:1: unknown column 'oops'"),
    ],
)
def test_rows_are_neither_shifted_nor_lost_by_a_guess(content: str, said: str | None) -> None:
    if said is None:
        assert set(read(content)[1]) == {"a", "b", "label"}
    else:
        assert refused(content).startswith(said)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('sample_id,video,label\na,"v/a.avi,1\nb,v/b.avi,2\n', "f.csv:2: video = 'v/a.avi,1"),
        ('sample_id;label\na;x\nb;"wave\nc;clap\nd;"sit"\n', "f.csv:3: label = 'wave"),
        ('sample_id\n"a\nb\n', "f.csv:2: sample_id = 'a"),
        ('sample_id,"video,label\na,x,y\n', "f.csv:1: a cell = 'video,label"),
        ('sample_id,camera\n\na,"left\nright"\n', "f.csv:3: camera = 'left"),
        (
            'sample_id,label\na,"' + "x\nb," * 40_000,
            "f.csv: not a table of samples (field larger than field limit (131072)) behind line 1, ",
        ),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(content: str, place: str) -> None:
    text = refused(content)
    assert text.startswith(place)
    assert "a quote that is not closed" in text


def test_a_quoted_line_break_is_part_of_its_cell_and_lines_are_counted_on() -> None:
    assert read('sample_id;label\na;"two\nlines"\n')[0] == ("two\nlines",)
    assert refused("sep=;\nsample_id;view\na;1\nb;x\n").startswith("f.csv:4: view = 'x'")


@pytest.mark.parametrize("word", ["Händeklatschen", "célèbre", "año", "Straße – zwei"])
def test_western_letters_of_windows_are_read_with_a_note(word: str) -> None:
    classes, _, notes = read(f"sample_id;label\na;{word}\n".encode("cp1252"))
    assert classes == (word,)
    assert len(notes) == 1
    assert "Windows-1252" in notes[0]


@pytest.mark.parametrize(
    ("word", "codec"), [("махать", "cp1251"), ("手を振る", "shift_jis"), ("挥手", "gbk"), ("żółw", "cp1250")]
)
def test_letters_of_other_code_pages_are_refused_with_the_line(word: str, codec: str) -> None:
    text = refused(f"sample_id,label\na,x\nb,{word}\n".encode(codec))
    assert text.startswith("f.csv:3: byte 0x")
    assert "UTF-8" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04\x14\0", "Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"<html><table>", "HTML"),
        (b'[{"sample_id": "a"}]', "JSON"),
        (b"\0" * 5000, "NUL bytes"),
        (b"sample_id,label\na,x\n" + b"\0" * 4096, "NUL bytes"),
        (b"sample_id,label\na,#REF!\n", "label = '#REF!'"),
        (b"sample_id,label\na,x,y\n", "3 cells; the header has 2 columns"),
    ],
)
def test_what_is_no_csv_is_called_by_its_name(content: bytes, said: str) -> None:
    assert said in refused(content)


# -------------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"label": [True, False, None]}, "label\nTRUE\nFALSE\n\n"),
        ({"label": pa.array(["x", None, "y"]).dictionary_encode()}, "label\nx\nnan\ny\n"),
        ({"label": [2.0, 10.0, None]}, "label\n2.0\n10.0\n\n"),
        ({"label": [Decimal("2.00"), Decimal("10.50"), None]}, "label\n2,00\n10.5\n\n"),
        ({"label": [datetime(2024, 5, 6), datetime(2024, 5, 6, 7), None]}, "label\n2024-05-06 00:00:00\n2024-05-06 07:00:00\n\n"),
        ({"label": [b"x", b"y", None]}, "label\nx\ny\n\n"),
        ({"start_frame": [1.0, None, 3.0], "view": [1, 2, None]}, "start_frame;view\n1,0;1\n;2\n3,0;\n"),
        ({"Subject": pa.array([1, None, 3], pa.int64()), "__index_level_0__": [4, 5, 6]}, "subject\n1.0\n\n3.0\n"),
        ({"split_x": ["train", None, "Test"]}, "split_x\ntrain\nNaN\nTest\n"),
    ],
)  # fmt: skip
def test_parquet_means_what_csv_means(columns: dict[str, Any], text: str) -> None:
    header, *lines = text.split("\n")[:4]
    comma = ";" if ";" in header or "," in text else ","
    csv_text = f"sample_id{comma}{header}\n" + "".join(
        f"{s}{comma}{line}\n" for s, line in zip("abc", lines, strict=True)
    )
    assert read(parquet(sample_id=list("abc"), **columns), ".parquet")[:2] == read(csv_text)[:2]


def test_the_content_tells_parquet_from_csv() -> None:
    content = parquet(sample_id=["a"], label=["x"])
    assert read(content, ".csv")[0] == ("x",)
    assert "not Parquet" in refused("sample_id\na\n", ".parquet")
