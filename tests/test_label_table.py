"""Tables of labels in all their forms, and submissions of labels."""

import csv
import gzip

import pytest

from carvana_tf.data import labels
from carvana_tf.data.labels import LabelTable, Notes, match, read, read_sample, write_submission
from carvana_tf.errors import UserError

HUMAN = (
    "ImageID,Source,LabelName,Confidence\n"
    "b,verification,/m/dog,1\n"
    "a,verification,/m/cat,1\n"
    "b,crowd,/m/car,1\n"
    "b,crowd,/m/dog,1\n"
)
TUNING = "b,/m/dog /m/car\na,/m/cat\nb,/m/dog\n"
CLEAN = "id,labels\nb,/m/dog /m/car\na,/m/cat /m/cat\nc,\n"
LIST = "train/b.jpg 2 0\ntrain/a.jpg 3\n"


@pytest.fixture
def table(tmp_path):
    """Writes a table; `save(text)` gives its path."""

    def save(text, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return save


def by_name(found):
    return {photo: {found.classes[i] for i in ids} for photo, ids in found.labels.items()}


def test_human_labels_have_a_row_for_each(table):
    found = read(table(HUMAN))
    assert found.classes == ("/m/dog", "/m/cat", "/m/car")
    assert found.labels == {"b": (0, 2), "a": (1,)}
    assert list(found.labels) == ["b", "a"]
    assert found.notes == Notes(repeated_labels=1)


def test_confidence_0_says_what_a_photo_does_not_show(table):
    found = read(table(HUMAN + "a,crowd,/m/owl,0\nc,crowd,/m/owl,0.0\nc,crowd,/m/dog,0.7\n"))
    assert found.classes == ("/m/dog", "/m/cat", "/m/car")
    assert found.labels == {"b": (0, 2), "a": (1,), "c": (0,)}
    assert found.notes.absent == 2


def test_tuning_labels_have_no_header(table):
    found = read(table(TUNING))
    assert found.classes == ("/m/dog", "/m/car", "/m/cat")
    assert found.labels == {"b": (0, 1), "a": (2,)}
    assert found.notes == Notes(repeated_photos=1, repeated_labels=1)


@pytest.mark.parametrize(
    "header",
    [
        *("id,labels", "image_id,labels", "ImageID, Labels", "id,labels,", "image,label"),
        *("image_name,tags", "filename,label", "file name,class", "Photo,Category"),
    ],
)
def test_ours_has_a_header_and_photos_without_labels(table, header):
    found = read(table(CLEAN.replace("id,labels", header)))
    assert found.classes == ("/m/dog", "/m/car", "/m/cat")
    assert found.labels == {"b": (0, 1), "a": (2,), "c": ()}
    assert found.notes == Notes(repeated_labels=1)


def test_labels_that_nothing_we_know_separates_are_told(table):
    found = read(table('a,"cat,dog"\nb,cat dog\nc,cat;dog\n'))
    assert found.notes.joined == ("cat,dog", "cat;dog")
    assert "2 classes have a comma" in found.notes.sentences()[0]
    with pytest.raises(UserError, match=r"line 1 .* has a semicolon where a comma is due"):
        read(table("id;labels\na;cat\n"))


def test_lists_have_the_ids_of_classes(table):
    found = read(table(LIST))
    assert found.classes == ("0", "1", "2", "3")
    assert found.labels == {"train/b.jpg": (0, 2), "train/a.jpg": (3,)}
    named = read(table(LIST), ["dog", "1", "cat", "car"])
    assert by_name(named) == {"train/b.jpg": {"cat", "dog"}, "train/a.jpg": {"car"}}


@pytest.mark.parametrize("text", [HUMAN, TUNING, CLEAN, LIST])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "\n  \n" + text.replace("\n", "\n\n,,\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\n".join(
            ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
        ),
        lambda text: text if " 3" in text else text.replace("\n", ",\n"),
        lambda text: text.replace(" ", "   ").replace("\n", "  \n"),
    ],
)
def test_what_editors_and_spreadsheets_do_changes_nothing(table, text, change):
    plain, changed = read(table(text)), read(table(change(text)))
    assert changed == plain
    assert changed.notes == plain.notes


def test_compressed_tables_and_names_of_any_bytes(table):
    assert read(table(gzip.compress(TUNING.encode()), "t.csv.gz")) == read(table(TUNING))
    found = read(table(b"caf\xe9,dog\n"))
    assert found.labels == {"caf\udce9": (0,)}


def test_ids_of_given_classes_stay(table):
    classes = ("/m/cat", "/m/owl", "/m/car", "/m/dog")
    for text in (HUMAN, TUNING):
        found = read(table(text), classes)
        assert found.classes == classes
        assert found.labels == {"b": (2, 3), "a": (0,)}


@pytest.mark.parametrize(("text", "line"), [(HUMAN, 2), (TUNING, 1), (CLEAN, 2)])
def test_unknown_labels_are_refused_left_out_or_added(table, text, line):
    path = table(text)
    with pytest.raises(
        UserError, match=rf"line {line} .*'/m/dog'.* 2 known.*--unknown_labels=skip"
    ):
        read(path, ["/m/cat", "/m/car"])
    found = read(path, ["/m/cat", "/m/car"], "skip")
    assert (found.classes, found.labels["b"]) == (("/m/cat", "/m/car"), (1,))
    assert set(found.notes.unknown) == {"/m/dog"}
    lonely = read(path, ["/m/cat"], "skip")
    assert lonely.labels["b"] == ()
    added = read(path, ["/m/cat"], "add")
    assert added.classes == ("/m/cat", "/m/dog", "/m/car")
    assert added.labels["b"] == (1, 2)
    assert by_name(added) == by_name(read(path))


def test_class_ids_beyond_the_given_classes(table):
    path = table(LIST)
    # The name of a class may be a number, which is not meant.
    with pytest.raises(UserError, match=r"line 2 .*'id 3'.* 3 known classes"):
        read(path, ["3", "b", "c"])
    found = read(path, ["3", "b", "c"], "skip")
    assert found.labels == {"train/b.jpg": (0, 2), "train/a.jpg": ()}
    with pytest.raises(UserError, match=r"line 2 .*class id 3, but there are 3 classes"):
        read(path, ["3", "b", "c"], "add")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("id,labels\n", "has no rows"),
        ("ImageID,Source,LabelName\n", "has no rows"),
        ("a,b,c\nx,y,z\n", "starts with a,b,c, which is no table of labels"),
        (HUMAN + "a,crowd,,1\n", "line 6 of .* has no label"),
        (HUMAN + " ,crowd,/m/dog,1\n", "line 6 of .* has no id"),
        (HUMAN + "a,crowd,big dog,1\n", "line 6 of .* blank in its label 'big dog'"),
        (HUMAN + "a,crowd,/m/dog\n", "line 6 of .* has 3 columns, the header 4"),
        (HUMAN + "a,crowd,/m/dog,1,2\n", "line 6 of .* has 5 columns, the header 4"),
        (HUMAN + "a,crowd,/m/dog,sure\n", "line 6 of .* the confidence 'sure'"),
        ("a,\nb,/m/dog\n", "line 1 of .* has no label"),
        ("a,/m/cat\n\n,/m/dog\n", "line 3 of .* has no id"),
        ("a,/m/cat\nb,/m/dog,/m/car\n", "line 2 of .* has 3 columns"),
        ("a,/m/cat\nb\n", "line 2 of .* has 1 columns"),
        ("id,labels\n,/m/dog\n", "line 2 of .* has no id"),
        ("train/a.jpg\n", "line 1 of .* has no label"),
        ("train/a.jpg 3\ntrain/b.jpg dog\n", "line 2 of .* has 'dog' where a class id"),
        ("train/a.jpg -1\n", "has '-1' where a class id"),
        ("train/a.jpg 99999999\n", "has '99999999' where a class id"),
        ("train/a.jpg 3\ntrain/b.jpg 4,5\n", "line 2 of .* has a comma"),
        (b"a,b\x00c\n", "zero byte"),
        ('a,"b\n', "no CSV table"),
    ],
)
def test_mistakes_are_named_with_file_and_line(table, text, message):
    with pytest.raises(UserError, match=message) as raised:
        read(table(text))
    assert "labels.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_faults_of_the_caller(table):
    with pytest.raises(ValueError, match="twice"):
        read(table(TUNING), ["a", "b", "a"])
    with pytest.raises(ValueError, match="'drop'"):
        read(table(TUNING), ["a"], "drop")


def test_notes_in_words():
    assert Notes().sentences() == []
    message = Notes(2, 3, 4, {"a": 1, "b": 5}).sentences()
    assert [line.split()[0] for line in message] == ["2", "3", "4", "6"]
    assert message[3].endswith("(a, b)")


@pytest.mark.parametrize("text", [HUMAN, TUNING, CLEAN])
def test_a_table_and_its_classes_survive_writing(table, tmp_path, text):
    found = read(table(text), ["/m/owl", "/m/cat"], "add")
    labels.write(tmp_path / "out" / "clean.csv", found)
    labels.write_classes(tmp_path / "out" / "classes.csv", found.classes)
    classes = labels.read_classes(tmp_path / "out" / "classes.csv")
    assert classes == found.classes
    again = read(tmp_path / "out" / "clean.csv", classes)
    assert again == found
    assert again.notes == Notes()
    assert by_name(read(tmp_path / "out" / "clean.csv")) == by_name(found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.csv",
        "clean.csv",
    ]


@pytest.mark.parametrize("name", ["two words", "", " dog", "a\u00a0b", "line\nbreak"])
def test_a_class_that_blanks_would_split_is_not_written(tmp_path, name):
    found = LabelTable(("dog", name), {"a": (0,)})
    with pytest.raises(UserError, match="rename it") as raised:
        labels.write(tmp_path / "clean.csv", found)
    assert str(raised.value).isprintable()
    with pytest.raises(UserError, match="rename it"):
        labels.write_classes(tmp_path / "classes.csv", found.classes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,labels\n", "must have one column"),
        ("label\ndog\ncat\ndog\n", "'dog' in lines 2 and 4"),
        ("label\nbig dog\n", "rename it"),
        ("", "is empty"),
    ],
)
def test_classes_that_are_none(table, text, message):
    with pytest.raises(UserError, match=message):
        labels.read_classes(table(text))


def test_names_match_exactly_or_without_extension():
    found = LabelTable(("x",), {"a": (0,), "train/b.jpg": (), "lost": (0,), "c.5": (0,)})
    photos = ["c.5.JPG", "b", "new.png", "a.jpg"]
    matched = match(found, photos)
    assert list(matched.labels.items()) == [("c.5.JPG", (0,)), ("b", ()), ("a.jpg", (0,))]
    assert matched.without_photo == ["lost"]
    assert matched.without_labels == ["new.png"]


def test_two_photos_or_two_rows_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"'a' in here may stand for 'a\.jpg' or 'a\.png'"):
        match(LabelTable(("x",), {"a": (0,)}), ["a.jpg", "a.png"], "here")
    with pytest.raises(UserError, match="keep one"):
        match(LabelTable(("x",), {"a": (0,), "a.jpg": ()}), ["a"])


SAMPLE = "image_id,labels\nb,/m/x /m/y\nc,/m/x\na,\n"


def lines_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_submission_has_the_header_and_order_of_its_sample(table, tmp_path, name):
    sample = table(SAMPLE, "sample.csv")
    answers = {"a.jpg": ["/m/cat", "/m/dog"], "b.jpg": ("/m/owl",), "other.jpg": ["/m/cat"]}
    path = tmp_path / "out" / name
    assert write_submission(path, sample, answers) == ["c"]
    assert lines_of(path) == [
        ["image_id", "labels"],
        ["b", "/m/owl"],
        ["c", ""],
        ["a", "/m/cat /m/dog"],
    ]
    first = path.read_bytes()
    write_submission(path, sample, answers)
    assert path.read_bytes() == first
    assert [each.name for each in path.parent.iterdir()] == [name]


def test_names_of_any_kind_survive_a_submission(table, tmp_path):
    photos = ["a,b", 'say "x"', "007", "1e5", "NA", "null", "a  b", "é"]
    path = tmp_path / "sample.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "labels"], *([photo, ""] for photo in photos)])
    answers = {photo: ["NA", f"c{number}"] for number, photo in enumerate(photos)}
    assert write_submission(tmp_path / "s.csv", path, answers) == []
    assert lines_of(tmp_path / "s.csv")[1:] == [
        [photo, f"NA c{number}"] for number, photo in enumerate(photos)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,labels\nx,\ny,\n", "names no photo that was predicted .*'x'"),
        ("image_id,labels\na,\na,\n", "'a' more than once"),
        ("image_id\na\n", "two columns, image_id,labels"),
        ("image_id,labels\n", "no rows"),
    ],
)
def test_a_sample_that_does_not_fit(table, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "s.csv", table(text, "sample.csv"), {"a": ["/m/dog"]})
    assert not (tmp_path / "s.csv").exists()


def test_a_submission_that_reads_otherwise_is_not_kept(table, tmp_path, monkeypatch):
    sample = table(SAMPLE, "sample.csv")
    assert read_sample(sample) == (("image_id", "labels"), ["b", "c", "a"])
    real = labels.format_line
    for wrong in (
        lambda cells: real((*cells[:1], "/m/bee")) if cells[0] == "a" else real(cells),
        lambda cells: "" if cells[0] == "c" else real(cells),
        lambda cells: real(("z", *cells[1:])) if cells[0] == "b" else real(cells),
    ):
        monkeypatch.setattr(labels, "format_line", wrong)
        with pytest.raises(RuntimeError, match="written as"):
            write_submission(tmp_path / "s.csv", sample, {"a": ["/m/dog"]})
        assert not (tmp_path / "s.csv").exists()


def test_a_label_with_a_blank_is_not_submitted(table, tmp_path):
    with pytest.raises(UserError, match="rename it"):
        write_submission(tmp_path / "s.csv", table(SAMPLE, "sample.csv"), {"a": ["big dog"]})
