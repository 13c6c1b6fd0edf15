"""Inputs: which files a folder gives, what their texts are, and one clear line for each that cannot be read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter

from treering.events.errors import InputError
from treering.memory.passages import cut
from treering.tools.inputs import PYTHON_REFERENCE, code_hint, list_inputs, python_reference, read_input


def pdf(*lines: str) -> bytes:
    """A PDF of one page in Helvetica."""
    shown = " ".join(f"({line}) Tj 0 -20 Td" for line in lines)
    stream = f"BT /F1 12 Tf 50 700 Td {shown} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R"
        b" /Resources << /Font << /F1 4 0 R >> >> >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    out = BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % table)
    return out.getvalue()


def encrypted_pdf() -> bytes:
    writer = PdfWriter(PdfReader(BytesIO(pdf("secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


@contextmanager
def without_rights() -> Iterator[None]:
    """Act as a user who may read nothing of root's, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_gives_its_text_files_in_order_and_says_what_it_skipped(tmp_path: Path) -> None:
    """Sorted by POSIX path; hidden, binary, empty and linked files are passed over, each with a reason."""
    outside = tmp_path / "outside.txt"
    outside.write_text("outside")
    root = tmp_path / "root"
    for name in ("b.txt", "a/z.md", "a/b/c.py", "a.txt", "B.txt", ".git/config", ".hidden", "__pycache__/x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")
    (root / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (root / "noise").write_bytes(bytes(range(1, 9)) * 40)
    (root / "blank.txt").write_text(" \n")
    (root / "large.txt").write_text("x" * 2000)
    (root / "doc.pdf").write_bytes(pdf("page")[:900])
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "a")
    os.mkfifo(root / "pipe")
    skipped: dict[str, str] = {}
    found = list_inputs(root, skipped.__setitem__, max_bytes=1000)
    names = [file.relative_to(root).as_posix() for file in found]
    assert names == ["B.txt", "a.txt", "a/b/c.py", "a/z.md", "b.txt", "doc.pdf"]
    assert skipped == {
        ".git": "hidden",
        ".hidden": "hidden",
        "__pycache__": "not a folder of sources",
        "blank.txt": "empty",
        "image.png": "binary",
        "in": "a link inside the folder",
        "large.txt": "too large",
        "noise": "binary",
        "out": "a link out of the folder",
        "pipe": "not a regular file",
        "up": "a link out of the folder",
    }
    assert list(skipped) == sorted(skipped)


def test_a_source_is_named_by_its_path_below_the_root(tmp_path: Path) -> None:
    """Size and digest are those of the bytes, whatever becomes of them."""
    file = tmp_path / "a" / "b.md"
    file.parent.mkdir()
    file.write_bytes(b"# T\r\n\r\ntext\r\n")
    source = read_input(file, tmp_path)
    assert (source.name, source.media_type, source.bytes) == ("a/b.md", "text/markdown", 13)
    assert source.text == "# T\n\ntext\n"
    assert source.digest == blake2b(b"# T\r\n\r\ntext\r\n", digest_size=16).hexdigest()
    assert read_input(file).name == "b.md"
    assert list_inputs(file) == [file]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1251", "shift_jis"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """Unicode with or without a mark, and older encodings where one can be made out."""
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 5
    if encoding == "cp1251":
        text = "Старик рыбачил один на своей лодке в Гольфстриме. Вот уже восемьдесят четыре дня.\n" * 5
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    assert read_input(file).text == text


def test_line_ends_and_control_characters_are_made_plain(tmp_path: Path) -> None:
    """Every line end is a newline, a page break too; tabs stay, other control characters go."""
    file = tmp_path / "a.txt"
    text = "a\r\nb\rc\fd\u2028e\tf\x1b[1mg\x7f\n" + "long enough not to look binary " * 10
    file.write_bytes(text.encode())
    assert read_input(file).text == "a\nb\nc\nd\ne\tf[1mg\n" + "long enough not to look binary " * 10


def test_html_becomes_readable_text(tmp_path: Path) -> None:
    """Headings, paragraphs, lists, tables and code keep their shape; scripts and hidden parts go."""
    file = tmp_path / "a.html"
    file.write_text(
        "<!doctype html><html><head><title>Point Light</title><style>p{}</style></head><body><script>x</script>"
        "<p>The <b>keeper</b> kept\n a parrot,<br>and a lamp.</p><h2>Ships <a href=x>seen</a></h2><ul><li>Ines"
        "<li>Vega<ol start=3><li>mate &amp; crew</li></ol></ul><p hidden>no</p><pre>if x:\n    y()</pre>"
        "<table><tr><th>ship</th><th>day</th></tr><tr><td>Ines</td><td>3</td></tr></table>"
        "<blockquote><p>Lamp <code>lit</code></p></blockquote><!-- no --></body></html>"
    )
    assert read_input(file).text == (
        "# Point Light\n\nThe keeper kept a parrot,\nand a lamp.\n\n## Ships seen\n\n"
        "- Ines\n- Vega\n  3. mate & crew\n\n"
        "```\nif x:\n    y()\n```\n\nship | day\nInes | 3\n\n> Lamp `lit`"
    )
    assert {passage.heading for passage in cut(read_input(file).text)} == {"Point Light > Ships seen", "Point Light"}


def test_html_is_known_by_its_beginning_and_decoded_as_it_declares(tmp_path: Path) -> None:
    """A page needs neither a suffix nor UTF-8."""
    file = tmp_path / "page"
    file.write_bytes('<html><meta charset="iso-8859-2"><p>Dvořák źle</p></html>'.encode("iso-8859-2"))
    source = read_input(file)
    assert (source.text, source.media_type) == ("Dvořák źle", "text/html")


def test_html_may_be_nested_beyond_the_stack(tmp_path: Path) -> None:
    """No page overflows the reader."""
    file = tmp_path / "deep.html"
    file.write_text("<ul><li>" * 5000 + "deep" + "</ul>" * 5000)
    assert "deep" in read_input(file).text


def test_pdf_gives_the_text_of_its_pages(tmp_path: Path) -> None:
    """By content, whatever the suffix says."""
    file = tmp_path / "a.bin"
    file.write_bytes(pdf("The keeper kept a parrot.", "And a lamp."))
    source = read_input(file)
    assert "The keeper kept a parrot." in source.text
    assert source.media_type == "application/pdf"


def write(content: bytes, name: str = "a.txt") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.txt", "no such file or folder"),
        (lambda folder: Path("a\0b"), "not a path"),
        (lambda folder: folder, "this is a folder"),
        (write(b""), "holds no text"),
        (write(b" \r\n\t\f"), "holds no text"),
        (write(b"text\0text"), "binary file"),
        (write(b"\xff\xfea\0b"), "no encoding was found"),
        (write(b"x" * 70_000), "70,000 bytes are more than the limit of 65,536"),
        (write(pdf("x")[:200]), "PDF is damaged"),
        (write(b"%PDF-1.7\n" + bytes(range(256)) * 4), "PDF is damaged"),
        (write(encrypted_pdf()), "PDF is encrypted"),
        (write(pdf("")), "text recognition"),
        (write(b"<html><script>x</script></html>"), "holds no text"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """The line names the file and says what is wrong with it."""
    file = make(tmp_path)
    with pytest.raises(InputError) as raised:
        read_input(file, max_bytes=65_536)
    line = str(raised.value)
    assert message in line
    assert str(file).strip("\0").replace("\0", "") in line or "not a path" in line
    assert "\n" not in line


def test_folders_that_give_nothing_are_errors(tmp_path: Path) -> None:
    """Missing, empty, and with binary files only: each says so."""
    with pytest.raises(InputError, match="no such file or folder"):
        list_inputs(tmp_path / "none")
    with pytest.raises(InputError, match="it is empty"):
        list_inputs(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"\0\0")
    (tmp_path / "b.bin").write_bytes(b"\0\0")
    with pytest.raises(InputError, match="2 binary"):
        list_inputs(tmp_path)


def test_permission_denied_is_said(tmp_path: Path) -> None:
    """A file that may not be read is an error, and in a folder it is passed over."""
    file = tmp_path / "a.txt"
    file.write_text("text")
    file.chmod(0)
    with without_rights():
        with pytest.raises(InputError, match="permission denied"):
            read_input(file)
        with pytest.raises(InputError, match="permission denied"):
            list_inputs(tmp_path)


def test_a_link_cannot_lead_out_of_the_root(tmp_path: Path) -> None:
    """With a root, what a path resolves to must lie below it."""
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InputError, match="outside the folder"):
        read_input(tmp_path / "root" / "a.txt", tmp_path / "root")


def test_names_that_are_not_unicode_are_escaped(tmp_path: Path) -> None:
    """A file's name always goes into the log as text."""
    raw = os.fsencode(tmp_path) + b"/\xff.txt"
    try:
        with open(raw, "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system refuses such names")
    (found,) = list_inputs(tmp_path)
    assert read_input(found, tmp_path).name == "\\xff.txt"


def test_python_reference_is_one_deterministic_text() -> None:
    """Each topic stands under its title, and passages know it."""
    text = python_reference()
    assert text == python_reference() == read_input(PYTHON_REFERENCE).text
    assert list_inputs(PYTHON_REFERENCE) == [Path(PYTHON_REFERENCE)]
    assert 300_000 < len(text) < 900_000
    assert "Lambdas" in {passage.heading.split(" > ")[0] for passage in cut(text)}


def test_media_types_tell_code_from_prose() -> None:
    """For cutting: code, prose, or not known."""
    assert code_hint("text/x-python") is True
    assert code_hint("text/markdown") is False
    assert code_hint("text/plain") is None
