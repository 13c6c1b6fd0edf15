"""Inputs: files and folders read as plain text sources.

Owns finding the files of a folder, decoding them, and turning HTML and PDF into text. It never writes, never
follows a link out of the folder it was given, and keeps nothing: the runtime puts what it reads into the log.

Invariant: the same bytes give the same text, with `\\n` for every line end and no control characters but
tabs; whatever cannot be read raises InputError with one line that says why.
"""

import codecs
import logging
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from os import PathLike, scandir, stat_result
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from treering.events.errors import InputError
from treering.tools.pages import page_text

if TYPE_CHECKING:
    from pypdf import PdfReader

__all__ = [
    "MAX_INPUT_BYTES",
    "PYTHON_REFERENCE",
    "InputText",
    "check_input",
    "code_hint",
    "list_inputs",
    "python_reference",
    "read_input",
]

MAX_INPUT_BYTES = 64 * 2**20
PYTHON_REFERENCE = "pydoc:topics"

_SNIFFED_BYTES = 8192
_CODE = {
    "c": ".c .h", "cpp": ".cc .cpp .cxx .hh .hpp .hxx", "csharp": ".cs", "css": ".css .scss", "go": ".go",
    "haskell": ".hs", "java": ".java", "javascript": ".js .mjs .cjs .jsx", "kotlin": ".kt .kts", "lua": ".lua",
    "ocaml": ".ml .mli", "perl": ".pl .pm", "php": ".php", "python": ".py .pyi", "ruby": ".rb", "rust": ".rs",
    "scala": ".scala", "shell": ".sh .bash .zsh", "sql": ".sql", "swift": ".swift", "typescript": ".ts .tsx",
    "zig": ".zig",
}  # fmt: skip
# Not the standard library's table: that one reads files of the machine and so differs between machines.
_MEDIA_TYPES = {suffix: f"text/x-{name}" for name, suffixes in _CODE.items() for suffix in suffixes.split()} | {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".rst": "text/x-rst",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".pdf": "application/pdf",
    ".json": "application/json",
    ".csv": "text/csv",
}
_PROSE = frozenset({"text/markdown", "text/x-rst", "text/html", "application/pdf", "text/csv"})
_CODE_TYPES = frozenset(f"text/x-{name}" for name in _CODE)
_SKIPPED_FOLDERS = frozenset({"CVS", "__pycache__", "_darcs", "node_modules"})
# UTF-32's mark begins with UTF-16's, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff]")
_CONTROL_BYTES = bytes({*range(0x09), *range(0x0E, 0x20), 0x7F} - {0x1B})
_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)

OnSkip = Callable[[str, str], None]


class InputText(msgspec.Struct, frozen=True):
    """A source as text. `bytes` and `digest` (BLAKE2b, 16 bytes, hexadecimal) are those of the file itself."""

    name: str
    text: str
    media_type: str
    bytes: int
    digest: str


def list_inputs(
    path: str | PathLike[str], on_skip: OnSkip | None = None, max_bytes: int = MAX_INPUT_BYTES
) -> list[Path]:
    """Files to read under `path`, sorted by POSIX path; of a file, the file itself.

    In a folder, what `check_input` refuses, hidden files, links and the folders of version control are
    passed over; `on_skip` is called with the POSIX path below `path` and the reason. The name `pydoc:topics`
    stands for Python's own language reference. Raises InputError if nothing is left to read.
    """
    if str(path) == PYTHON_REFERENCE:
        return [Path(PYTHON_REFERENCE)]
    root = Path(path)
    if not stat.S_ISDIR(_status(root).st_mode):
        return [root]
    skipped: list[tuple[str, str]] = []
    found: list[tuple[str, Path]] = []
    for file, reason in _walk(root, max_bytes):
        name = _name(file, root)
        if reason:
            skipped.append((name, reason))
        else:
            found.append((name, file))
    for name, reason in sorted(skipped):
        if on_skip:
            on_skip(name, reason)
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(r for _, r in skipped).items()))
        raise InputError(f"{root}: no file in this folder can be read as text ({reasons or 'it is empty'})")
    return [file for _, file in sorted(found)]


def read_input(
    path: str | PathLike[str], root: str | PathLike[str] | None = None, max_bytes: int = MAX_INPUT_BYTES
) -> InputText:
    """The file at `path` as text, named by its POSIX path below `root`, or by its file name without one.

    HTML becomes Markdown-like text and PDF the text of its pages. Raises InputError if there is no such
    file, it may not be read, lies outside `root`, is larger than `max_bytes`, is not text or holds none.
    """
    if str(path) == PYTHON_REFERENCE:
        text = python_reference()
        return _input_text(PYTHON_REFERENCE, text, "text/x-rst", text.encode())
    file = Path(path)
    base = file.parent if root is None else Path(root)
    if root is not None and not file.resolve().is_relative_to(base.resolve()):
        raise InputError(f"{file}: this file lies outside the folder {base}")
    raw = _read_bytes(file, max_bytes)
    media_type = _media_type(file, raw)
    match media_type:
        case "application/pdf":
            text = _pdf_text(file, raw)
        case "text/html":
            text = page_text(_decode(file, raw, _declared_encoding(raw)))
        case _:
            text = _decode(file, raw)
    text = _normalise(text)
    if not text or text.isspace():
        hint = "; scanned pages need text recognition first" if media_type == "application/pdf" else ""
        raise InputError(f"{file}: this file holds no text{hint}")
    return _input_text(_name(file, base), text, media_type, raw)


def check_input(path: str | PathLike[str], max_bytes: int = MAX_INPUT_BYTES) -> None:
    """Raise InputError where `read_input` would. Of a PDF, only that it opens: its pages take long."""
    if str(path) == PYTHON_REFERENCE:
        return
    file = Path(path)
    raw = _read_bytes(file, max_bytes)
    match _media_type(file, raw):
        case "application/pdf":
            _open_pdf(file, raw)
            return
        case "text/html":
            text = _decode(file, raw, _declared_encoding(raw))
        case _:
            text = _decode(file, raw)
    if not text or text.isspace():
        raise InputError(f"{file}: this file holds no text")


def code_hint(media_type: str) -> bool | None:
    """Whether a source of this type is source code; None where its type does not tell."""
    if media_type in _CODE_TYPES:
        return True
    return False if media_type in _PROSE else None


def python_reference() -> str:
    """Python's language reference as one text: the topics of `pydoc`, sorted by name, each under its title.

    It is on every machine and about 110,000 tokens long, so that examples need no download. A topic whose
    text another name already gave is left out. Raises InputError where Python comes without its topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(f"{PYTHON_REFERENCE}: this Python comes without pydoc_data.topics; name a file") from None
    parts: dict[str, None] = {}
    for name, topic in sorted(topics.items()):
        text = topic.strip()
        lines = text.split("\n", 2)
        if len(lines) < 2 or set(lines[1]) != {"*"}:
            text = f"{name}\n{'*' * len(name)}\n\n{text}"
        parts[text] = None
    return _normalise("\n\n\n".join(parts) + "\n")


def _input_text(name: str, text: str, media_type: str, raw: bytes) -> InputText:
    return InputText(name, text, media_type, len(raw), blake2b(raw, digest_size=16).hexdigest())


def _walk(folder: Path, max_bytes: int) -> Iterator[tuple[Path, str]]:
    """Files below `folder` with the reason to skip them, or "". Folders that are skipped come as one."""
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            with scandir(current) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise _os_error(folder, error) from None
            yield current, _reason(error)
            continue
        for entry in children:
            child = Path(entry.path)
            if entry.name.startswith("."):
                yield child, "hidden"
            elif entry.is_symlink():
                inside = child.resolve().is_relative_to(folder.resolve())
                yield child, "a link inside the folder" if inside else "a link out of the folder"
            elif entry.is_dir():
                if entry.name in _SKIPPED_FOLDERS:
                    yield child, "not a folder of sources"
                else:
                    waiting.append(child)
            else:
                yield child, _reason_to_skip(child, max_bytes)


def _reason_to_skip(file: Path, max_bytes: int) -> str:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size > max_bytes:
            return "too large"
        with file.open("rb") as opened:
            start = opened.read(_SNIFFED_BYTES)
    except OSError as error:
        return _reason(error)
    if not start or (start.isspace() and status.st_size <= _SNIFFED_BYTES):
        return "empty"
    if _is_binary(start) and not start.startswith(b"%PDF-"):
        return "binary"
    try:
        check_input(file, max_bytes)
    except InputError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""


def _status(file: Path) -> stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise _os_error(file, error) from None
    except ValueError:  # a NUL in the name
        raise InputError(f"{file!r}: this is not a path") from None


def _read_bytes(file: Path, max_bytes: int) -> bytes:
    status = _status(file)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{file}: this is a folder; list its files first")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file}: this is not a regular file")
    try:
        with file.open("rb") as opened:
            raw = opened.read(max_bytes + 1)
    except OSError as error:
        raise _os_error(file, error) from None
    if len(raw) > max_bytes:
        found = max(status.st_size, len(raw))
        raise InputError(f"{file}: {found:,} bytes are more than the limit of {max_bytes:,} for one input; divide it")
    return raw


def _reason(error: OSError) -> str:
    match error:
        case PermissionError():
            return "permission denied"
        case FileNotFoundError() | NotADirectoryError():
            return "no such file or folder"
        case _:
            return (error.strerror or "cannot be read").casefold()


def _os_error(file: Path, error: OSError) -> InputError:
    return InputError(f"{file}: {_reason(error)}")


def _name(file: Path, root: Path) -> str:
    """POSIX path below `root`; bytes of a name that are not UTF-8 are shown as escapes."""
    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _media_type(file: Path, raw: bytes) -> str:
    if raw.startswith(b"%PDF-"):
        return "application/pdf"
    known = _MEDIA_TYPES.get(file.suffix.lower())
    if known is None and _HTML.match(raw[:_SNIFFED_BYTES]):
        return "text/html"
    return known or "text/plain"


def _is_binary(start: bytes) -> bool:
    """Whether bytes are not text: a NUL without a mark of UTF-16 or UTF-32, or many control bytes."""
    if any(start.startswith(mark) for mark, _ in _MARKS):
        return False
    return b"\0" in start or 20 * (len(start) - len(start.translate(None, _CONTROL_BYTES))) > len(start)


def _decode(file: Path, raw: bytes, declared: str | None = None) -> str:
    try:
        for mark, encoding in _MARKS:
            if raw.startswith(mark):
                return raw[len(mark) :].decode(encoding)
        if b"\0" in raw or _is_binary(raw[:_SNIFFED_BYTES]):
            raise InputError(f"{file}: this is a binary file, not text")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode(declared or _guessed_encoding(raw))
    except (UnicodeDecodeError, LookupError):
        raise InputError(f"{file}: no encoding was found in which this file is text; convert it to UTF-8") from None


def _guessed_encoding(raw: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(raw).best()
    if best is None:
        raise LookupError("no encoding fits")
    return best.encoding


def _declared_encoding(raw: bytes) -> str | None:
    from bs4.dammit import EncodingDetector

    return EncodingDetector.find_declared_encoding(raw, is_html=True, search_entire_document=False)


def _normalise(text: str) -> str:
    text = _LINE_END.sub("\n", text)
    return _CONTROL.sub("", text) if _CONTROL.search(text) else text


def _pdf_text(file: Path, raw: bytes) -> str:
    with _pdf_failures(file):
        return "\n\n".join(page.extract_text() for page in _open_pdf(file, raw).pages)


def _open_pdf(file: Path, raw: bytes) -> "PdfReader":
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it warns of is said in our error, or does not matter
    with _pdf_failures(file):
        reader = PdfReader(BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _encrypted(file)
        len(reader.pages)
        return reader


def _encrypted(file: Path) -> InputError:
    return InputError(f"{file}: this PDF is encrypted; save it without a password first")


@contextmanager
def _pdf_failures(file: Path) -> Iterator[None]:
    """Make an InputError of what a damaged file makes pypdf raise, which is almost anything."""
    from pypdf.errors import DependencyError, FileNotDecryptedError

    try:
        yield
    except InputError:
        raise
    except (DependencyError, FileNotDecryptedError):
        raise _encrypted(file) from None
    except Exception as error:
        raise InputError(f"{file}: this PDF is damaged ({type(error).__name__}); repair or convert it") from None
