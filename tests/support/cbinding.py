# SPDX-License-Identifier: BSD-3-Clause
"""C functions for Python tests, through cffi: the headers themselves are the declarations.

``public()`` is the installed libcopygate.so with csrc/include/copygate.h; ``internals()`` are pure
C files of the core, compiled here with undefined behaviour turned into a trap.
"""

import ast
import contextlib
import functools
import importlib.util
import operator
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cffi

from support.tools import ROOT

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEFINE = re.compile(r"^#define (\w+)[ \t]+([^\n\\]+)$", re.MULTILINE)
_SUFFIX = re.compile(r"\b(0x[0-9a-fA-F]+|\d+)[UuLl]+\b")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}
_DIRECTIVE = re.compile(r"^\s*#(?:[^\n\\]|\\.)*(?:\\\n(?:[^\n\\]|\\.)*)*", re.MULTILINE)
_ASSERT = re.compile(r"_Static_assert\([^;]*\);")
_ATTRIBUTE = re.compile(r"__attribute__\(\(.*?\)\)\)?")
_EXTERN_C = re.compile(r"extern \"C\" \{")

_SYSTEM = "struct iovec { void *iov_base; size_t iov_len; };"


def _value(node: ast.expr, known: Mapping[str, int]) -> int:
    """A constant expression of C that is one of Python's, too; ValueError for any other."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, known), _value(right, known))
    raise ValueError("not a constant")


def _constants(text: str) -> dict[str, int]:
    """The integer macros of a header; cffi complains where another one is used."""
    known: dict[str, int] = {}
    for name, body in _DEFINE.findall(text):
        with contextlib.suppress(SyntaxError, ValueError):
            tree = ast.parse(_SUFFIX.sub(r"\1", body).strip(), mode="eval")
            known[name] = _value(tree.body, known)
    return known


def declarations(header: Path) -> str:
    """A header's declarations as cffi's cdef takes them: no comments, directives or attributes."""
    text = _COMMENT.sub("", header.read_text())
    numbers = _constants(text)
    # What only C++ sees is cut with its conditions.
    text = re.sub(r"#ifdef __cplusplus\n.*?#endif\n", "", text, flags=re.DOTALL)
    text = _DIRECTIVE.sub("", text)
    text = _ATTRIBUTE.sub("", _ASSERT.sub("", _EXTERN_C.sub("", text)))
    text = text.replace("CG_API ", "")
    return re.sub(r"\b[A-Z][A-Z0-9_]+\b", lambda m: str(numbers.get(m.group(), m.group())), text)


def _library_path() -> Path:
    named = os.environ.get("COPYGATE_LIBRARY")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("gateway")
    assert spec is not None and spec.origin is not None, "the package is not installed: make build"
    return Path(spec.origin).with_name("libcopygate.so")


@functools.cache
def public() -> tuple[Any, Any]:
    """cffi's ``ffi`` and the library of the public interface."""
    ffi = cffi.FFI()
    ffi.cdef(_SYSTEM + declarations(ROOT / "csrc/include/copygate.h"))
    return ffi, ffi.dlopen(str(_library_path()))


@functools.cache
def internals(
    headers: tuple[str, ...], sources: tuple[str, ...], libraries: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """The same for files of csrc/, named relative to it, that need no other file."""
    ffi = cffi.FFI()
    for header in headers:
        ffi.cdef(declarations(ROOT / "csrc" / header))
    # The loaded library keeps its file open; the folder may go at once.
    with tempfile.TemporaryDirectory(prefix="copygate-internals-") as folder:
        library = Path(folder) / "internals.so"
        _compile([ROOT / "csrc" / source for source in sources], library, libraries)
        return ffi, ffi.dlopen(str(library))


def _compile(sources: Sequence[Path], library: Path, libraries: Sequence[str]) -> None:
    # CC may be more than a program: "ccache gcc".
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or "gcc"]
    words = [
        *(*compiler, "-shared", "-fPIC", "-std=gnu11", "-O1", "-D_GNU_SOURCE"),
        *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
        *(f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}", "-o", str(library)),
        *map(str, sources),
        *(f"-l{name}" for name in libraries),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
