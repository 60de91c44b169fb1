# SPDX-License-Identifier: BSD-3-Clause
"""copygate.h by way of cffi: any options give a client or a clear refusal, never a crash."""

import errno
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cbinding import public
from support.process import free_port

OWN_THREAD, FOREIGN_LOOP = 0, 1


@pytest.fixture(scope="module")
def core() -> tuple[object, object]:
    """(ffi, library)."""
    return public()


def create(
    core: tuple, mds: bytes | None, mode: int = OWN_THREAD, size: int | None = None
) -> tuple:
    """(result, client) of cg_client_create."""
    ffi, lib = core
    options = ffi.new("struct cg_client_options *")
    options.struct_size = ffi.sizeof("struct cg_client_options") if size is None else size
    options.mode = mode
    text = ffi.NULL if mds is None else ffi.new("char[]", mds)
    options.mds = text
    out = ffi.new("struct cg_client **")
    return lib.cg_client_create(options, out), out[0]


def test_the_version_has_the_form_that_the_header_promises(core: tuple) -> None:
    """ "copygate 0.1.0" """
    ffi, lib = core
    name, version = ffi.string(lib.cg_version()).decode().split()
    assert name == "copygate"
    assert all(part.isdigit() for part in version.split("."))


hosts = st.from_regex(r"(127\.0\.0\.1|localhost|\[::1\])", fullmatch=True)
ports = st.integers(1, 65535)
endpoints = st.builds("{}:{}".format, hosts, ports)


@settings(deadline=None)
@given(st.lists(endpoints, min_size=1, max_size=5).map(",".join))
def test_well_formed_metadata_servers_are_taken(core: tuple, mds: str) -> None:
    """Nothing is contacted yet: that nobody listens there does not matter."""
    _, lib = core
    result, client = create(core, mds.encode(), FOREIGN_LOOP)
    assert result == 0
    assert lib.cg_client_fd(client) >= 0
    assert lib.cg_client_progress(client) >= 0
    lib.cg_client_destroy(client)


@settings(deadline=None)
@given(st.binary(max_size=300).map(lambda b: b.replace(b"\0", b"")))
@example(b"")
@example(b",")
@example(b":")
@example(b":6700")
@example(b"host")
@example(b"127.0.0.1:0")
@example(b"127.0.0.1:65536")
@example(b"127.0.0.1:6700,")
@example(b"127.0.0.1:99999999999999999999")
@example(b"[::1:6700")
@example(b"127.0.0.1:67x0")
@example(b"127.0.0.1:-1")
@example(b"127.0.0.1: 6700 x")
def test_any_text_for_mds_gives_a_client_or_einval(core: tuple, mds: bytes) -> None:
    """Text from a command line goes in as it is."""
    _, lib = core
    result, client = create(core, mds, FOREIGN_LOOP)
    assert result in (0, -errno.EINVAL)
    if result == 0:
        assert b":" in mds
        lib.cg_client_destroy(client)


@pytest.mark.parametrize(
    "mds",
    [b"", b",", b":", b":6700", b"127.0.0.1:0", b"127.0.0.1:65536", b"127.0.0.1:67x0", b"[::1:67"],
)
def test_malformed_metadata_servers_are_refused(core: tuple, mds: bytes) -> None:
    """-EINVAL, as the header says."""
    assert create(core, mds)[0] == -errno.EINVAL


def test_missing_metadata_servers_are_refused(core: tuple) -> None:
    """NULL is not a default."""
    assert create(core, None)[0] == -errno.EINVAL


@given(st.integers(0, 16))
def test_a_struct_from_another_world_is_refused(core: tuple, size: int) -> None:
    """struct_size is what lets later versions add fields: one that cannot be is an error."""
    assert create(core, b"127.0.0.1:6700", size=size)[0] == -errno.EINVAL


@pytest.mark.parametrize("mode", [OWN_THREAD, FOREIGN_LOOP])
@pytest.mark.parametrize("error_size", [0, 1, 2, 16, 512])
def test_opening_without_a_server_ends_in_time_with_a_sentence(
    core: tuple, mode: int, error_size: int
) -> None:
    """The error fits its buffer, ends with NUL, and the bytes behind it are left alone."""
    ffi, lib = core
    result, client = create(core, f"127.0.0.1:{free_port()}".encode(), mode)
    assert result == 0
    options = ffi.new("struct cg_volume_options *")
    path = ffi.new("char[]", b"/nowhere")
    options.struct_size = ffi.sizeof("struct cg_volume_options")
    options.path = path
    options.open_timeout_ms = 300
    volume = ffi.new("struct cg_volume **")
    memory = ffi.new("char[]", b"\xa5" * 600)
    began = time.monotonic()
    result = lib.cg_volume_open(client, options, volume, memory, error_size)
    assert result < 0
    assert time.monotonic() - began < 3
    text = ffi.buffer(memory)[:]
    assert text[error_size:600] == b"\xa5" * (600 - error_size)
    if error_size > 0:
        assert b"\0" in text[:error_size]
    if error_size == 512:
        assert len(ffi.string(memory)) > 10
    lib.cg_client_destroy(client)


@pytest.mark.parametrize("path", [None, b"", b"/", b"//", b"a/../b", b"x" * 5000, b"\xff\xfe"])
def test_bad_volume_names_are_refused(core: tuple, path: bytes | None) -> None:
    """Before or after asking, but always with an error."""
    ffi, lib = core
    result, client = create(core, f"127.0.0.1:{free_port()}".encode())
    assert result == 0
    options = ffi.new("struct cg_volume_options *")
    text = ffi.NULL if path is None else ffi.new("char[]", path)
    options.struct_size = ffi.sizeof("struct cg_volume_options")
    options.path = text
    options.open_timeout_ms = 200
    volume = ffi.new("struct cg_volume **")
    assert lib.cg_volume_open(client, options, volume, ffi.NULL, 0) < 0
    lib.cg_client_destroy(client)
