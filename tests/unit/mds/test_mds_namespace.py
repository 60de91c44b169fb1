# SPDX-License-Identifier: BSD-3-Clause
"""Volumes and folders through the real server: what is granted, and each refusal."""

import asyncio

import pytest

from gateway.errors import (
    AccessError,
    BusyError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
)
from gateway.mds import rules, tree
from gateway.proto import nameserver2_pb2 as ns

MIB, GIB = 1 << 20, 1 << 30


async def test_volume_is_created_found_and_listed(mds):
    made = await mds.client.create_volume("disk", 10 * GIB + 4096)
    assert (made.size, made.owner, made.allocated, made.epoch) == (10 * GIB + 4096, "alice", 0, 0)
    assert await mds.client.info("/disk") == made
    assert await mds.client.list() == [made]


@pytest.mark.parametrize("size", [MIB, MIB + 4096, 3 * GIB, rules.LENGTH_MAX])
async def test_any_size_in_blocks_from_a_mebibyte_on(mds, size):
    assert (await mds.client.create_volume("disk", size)).size == size


@pytest.mark.parametrize("size", [0, 1, 4096, MIB - 4096, MIB + 1, rules.LENGTH_MAX + 4096])
async def test_other_sizes_are_refused(mds, size):
    with pytest.raises(InvalidArgumentError, match="multiple of 4096") as caught:
        await mds.client.create_volume("disk", size)
    assert caught.value.context["code"] == "kFileLengthNotSupported"
    assert await mds.client.list() == []


async def test_size_outside_64_bits_is_refused_before_it_is_sent(mds):
    for size in (-1, 1 << 64):
        with pytest.raises(InvalidArgumentError):
            await mds.client.create_volume("disk", size)


@pytest.mark.parametrize(
    "path",
    [
        "/", "//disk", "/disk/", "/a//b", "/.", "/..", "/a/../b", "/a b", "/a\tb", "/a\nb",
        "/a\0b", "/ä", "/-a", "/a*", "/a'b", "/" + "x" * 201, "/x" * 33, "/" + "x/" * 600 + "x",
    ],
)  # fmt: skip
async def test_bad_names_are_refused(mds, path):
    response = await mds.call(
        ns.CreateFileRequest(fileName=path, fileType=1, fileLength=GIB), ns.CreateFileResponse
    )
    expected = ns.kFileExists if path == "/" else ns.kParaError
    assert response.statusCode == expected
    assert await mds.client.list() == []


async def test_relative_path_is_refused_on_the_wire(mds):
    request = ns.GetFileInfoRequest(fileName="disk")
    assert (await mds.call(request, ns.GetFileInfoResponse)).statusCode == ns.kParaError
    request = ns.GetFileInfoRequest(fileName="")
    assert (await mds.call(request, ns.GetFileInfoResponse)).statusCode == ns.kParaError


async def test_longest_name_can_be_deleted_and_recovered(mds):
    name = "x" * 200
    await mds.client.create_volume(name, GIB)
    await mds.client.delete(name)
    assert (await mds.client.list_deleted())[0].original_path == "/" + name
    await mds.client.recover(name)
    await mds.client.info(name)


async def test_taken_name_is_refused(mds):
    await mds.client.create_volume("disk", GIB)
    with pytest.raises(ExistsError, match="/disk exists already"):
        await mds.client.create_volume("disk", GIB)
    with pytest.raises(ExistsError):
        await mds.client.create_folder("disk")
    with pytest.raises(ExistsError):
        await mds.client.create_folder("RecycleBin")


async def test_folders_hold_volumes_and_other_folders(mds):
    await mds.client.create_folder("a")
    await mds.client.create_folder("a/b")
    made = await mds.client.create_volume("a/b/disk", GIB)
    assert await mds.client.list("a/b") == [made]
    assert [v.name for v in await mds.client.list("a")] == ["b"]
    with pytest.raises(NotFoundError, match="/no does not exist"):
        await mds.client.create_volume("no/disk", GIB)
    with pytest.raises(InvalidArgumentError, match="volume, not a folder"):
        await mds.client.create_volume("a/b/disk/x", GIB)
    with pytest.raises(NotFoundError):
        await mds.client.list("nothing")
    with pytest.raises(InvalidArgumentError):
        await mds.client.list("a/b/disk")


async def test_folder_is_removed_when_it_is_empty(mds):
    await mds.client.create_folder("a")
    await mds.client.create_volume("a/disk", GIB)
    with pytest.raises(BusyError, match="not empty"):
        await mds.client.delete("a")
    await mds.client.rename("a/disk", "disk")
    await mds.client.delete("a")
    with pytest.raises(NotFoundError):
        await mds.client.info("a")


async def test_owners_see_and_change_only_what_is_theirs(mds):
    await mds.client.create_folder("home")
    await mds.client.create_volume("home/disk", GIB)
    await mds.client.create_volume("disk", GIB)
    async with mds.client_of("bob") as bob:
        assert await bob.list() == []
        for refused in (
            bob.info("disk"),
            bob.info("home/disk"),
            bob.list("home"),
            bob.delete("disk"),
            bob.resize("disk", 2 * GIB),
            bob.rename("disk", "mine"),
            bob.create_volume("home/new", GIB),
            bob.raise_epoch("disk"),
        ):
            with pytest.raises(AccessError, match="belongs to 'alice'"):
                await refused
        await bob.create_volume("bobs", GIB)
        assert [v.name for v in await bob.list()] == ["bobs"]
    async with mds.client_of("root", "correct horse") as root:
        assert [v.name for v in await root.list()] == ["RecycleBin", "bobs", "disk", "home"]


@pytest.mark.parametrize("owner", ["", "a b", "x" * 65, "-x", "é"])
async def test_bad_owner_is_refused(mds, owner):
    response = await mds.call(ns.ListDirRequest(fileName="/", owner=owner), ns.ListDirResponse)
    assert response.statusCode == ns.kOwnerAuthFail


async def test_root_needs_its_signature(mds):
    async with mds.client_of("root", "wrong") as impostor:
        with pytest.raises(AccessError, match="signature"):
            await impostor.list()
    await mds.restart(root_password=None)
    async with mds.client_of("root", "correct horse") as root:
        with pytest.raises(AccessError, match="no root password"):
            await root.list()


@pytest.mark.parametrize(
    ("skew_s", "granted"), [(14, True), (-14, True), (16, False), (-16, False)]
)
async def test_request_dated_too_far_off_is_refused(mds, skew_s, granted):
    request = ns.ListDirRequest(fileName="/", date=mds.clock.now_us() + skew_s * 1_000_000)
    response = await mds.call(request, ns.ListDirResponse)
    assert response.statusCode == (ns.kOK if granted else ns.kOwnerAuthFail)


async def test_volume_grows_and_never_shrinks(mds):
    await mds.client.create_volume("disk", GIB)
    await mds.client.resize("disk", GIB + 4096)
    assert (await mds.client.info("disk")).size == GIB + 4096
    await mds.client.resize("disk", GIB + 4096)
    with pytest.raises(InvalidArgumentError, match="cannot shrink") as caught:
        await mds.client.resize("disk", GIB)
    assert caught.value.context["code"] == "kShrinkBiggerFile"
    with pytest.raises(InvalidArgumentError, match="no multiple"):
        await mds.client.resize("disk", GIB + 4097)
    with pytest.raises(InvalidArgumentError):
        await mds.client.resize("disk", rules.LENGTH_MAX + 4096)
    await mds.client.create_folder("a")
    with pytest.raises(InvalidArgumentError, match="folder"):
        await mds.client.resize("a", 2 * GIB)


@pytest.mark.parametrize(
    ("unit", "count", "granted"),
    [
        (65536, 4, True), (4096, 64, True), (16 * MIB, 1, True), (16 * MIB, 2, True),
        (65536, 0, False), (0, 4, False), (65536, 3, False), (1000, 4, False),
        (12288, 4, False), (65536, 1, False), (32 * MIB, 2, False), (65536, 128, False),
    ],
)  # fmt: skip
async def test_stripes_fit_chunks_and_segments(mds, unit, count, granted):
    create = mds.client.create_volume("disk", GIB, stripe_unit=unit, stripe_count=count)
    if granted:
        made = await create
        assert (made.stripe_unit, made.stripe_count) == (unit, count)
    else:
        with pytest.raises(InvalidArgumentError, match="stripe"):
            await create


async def test_volume_moves_to_another_path(mds):
    made = await mds.client.create_volume("disk", GIB)
    await mds.client.create_folder("a")
    await mds.client.rename("disk", "a/other")
    assert (await mds.client.info("a/other")).id == made.id
    with pytest.raises(NotFoundError):
        await mds.client.info("disk")
    for old, new, error in (
        ("disk", "x", NotFoundError),
        ("a/other", "no/x", NotFoundError),
        ("a/other", "a/other", ExistsError),
        ("a/other", "a", ExistsError),
        ("a", "b", InvalidArgumentError),
        ("/", "b", InvalidArgumentError),
        ("a/other", "/", ExistsError),
        ("a/other", "RecycleBin/x", InvalidArgumentError),
        ("a/other", "bad name", InvalidArgumentError),
        ("RecycleBin", "x", InvalidArgumentError),
    ):
        with pytest.raises(error):
            await mds.client.rename(old, new)


async def test_rename_replaces_only_the_volume_whose_id_it_names(mds):
    source = await mds.client.create_volume("new", GIB)
    target = await mds.client.create_volume("disk", GIB)
    request = ns.RenameFileRequest(oldFileName="/new", newFileName="/disk")
    assert (await mds.call(request, ns.RenameFileResponse)).statusCode == ns.kFileExists
    request.newFileID = source.id
    assert (await mds.call(request, ns.RenameFileResponse)).statusCode == ns.kFileIdNotMatch
    request.newFileID, request.oldFileID = target.id, 99
    assert (await mds.call(request, ns.RenameFileResponse)).statusCode == ns.kFileIdNotMatch
    request.oldFileID = source.id
    assert (await mds.call(request, ns.RenameFileResponse)).statusCode == ns.kOK
    assert (await mds.client.info("disk")).id == source.id
    assert [v.id for v in await mds.client.list_deleted()] == [target.id]


async def test_root_gives_a_volume_away(mds):
    await mds.client.create_volume("disk", GIB)
    with pytest.raises(AccessError, match="only root"):
        await mds.client.change_owner("disk", "bob")
    async with mds.client_of("root", "correct horse") as root:
        await root.change_owner("disk", "bob")
        await root.change_owner("disk", "bob")
        with pytest.raises(AccessError):
            await root.change_owner("disk", "not acceptable")
        with pytest.raises(InvalidArgumentError):
            await root.change_owner("/RecycleBin", "bob")
    async with mds.client_of("bob") as bob:
        assert (await bob.info("disk")).owner == "bob"


async def test_unknown_poolset_and_file_type_are_refused(mds):
    request = ns.CreateFileRequest(fileName="/disk", fileType=1, fileLength=GIB, poolset="ssd")
    assert (await mds.call(request, ns.CreateFileResponse)).statusCode == ns.kPoolsetNotExist
    request = ns.CreateFileRequest(fileName="/disk", fileType=2, fileLength=GIB)
    assert (await mds.call(request, ns.CreateFileResponse)).statusCode == ns.kNotSupported


async def test_sizes_add_up_below_a_folder(mds):
    await mds.add_chunkserver()
    await mds.client.create_folder("a")
    await mds.client.create_folder("a/b")
    await mds.client.create_volume("a/one", GIB)
    await mds.client.create_volume("a/b/two", 2 * GIB)
    request = ns.GetOrAllocateSegmentRequest(
        fileName="/a/b/two", offset=GIB, allocateIfNotExist=True
    )
    await mds.call(request, ns.GetOrAllocateSegmentResponse)
    size = await mds.call(ns.GetFileSizeRequest(fileName="/a"), ns.GetFileSizeResponse)
    assert size.fileSize == 3 * GIB
    allocated = await mds.call(
        ns.GetAllocatedSizeRequest(fileName="/a"), ns.GetAllocatedSizeResponse
    )
    assert allocated.allocatedSize == GIB
    assert dict(allocated.allocSizeMap) == {1: GIB}
    assert (await mds.client.info("a/b/two")).allocated == GIB
    for kind in ("FileSize", "AllocatedSize"):
        request = getattr(ns, f"Get{kind}Request")(fileName="/no")
        response = await mds.call(request, getattr(ns, f"Get{kind}Response"))
        assert response.statusCode == ns.kFileNotExists


async def test_concurrent_creators_get_one_volume_each_name_and_distinct_ids(mds):
    async def create(owner, name):
        async with mds.client_of(owner) as client:
            try:
                return (await client.create_volume(name, GIB)).id
            except ExistsError:
                return None

    made = await asyncio.gather(
        *(create(f"owner{o}", f"disk{n}") for o in range(8) for n in range(8))
    )
    ids = [i for i in made if i is not None]
    assert len(ids) == 8
    assert len(set(ids)) == 8
    assert (await mds.client.status()).volumes == 8


async def test_folder_and_recycle_bin_take_so_many_entries(mds, monkeypatch):
    monkeypatch.setattr(tree, "FOLDER_MAX", 3)
    await mds.client.create_folder("a")
    for name in ("x", "y", "z"):
        await mds.client.create_volume("a/" + name, GIB)
    with pytest.raises(InvalidArgumentError, match="has 3 entries"):
        await mds.client.create_volume("a/one-more", GIB)
    for name in ("x", "y", "z"):
        await mds.client.delete("a/" + name)
        await mds.client.create_volume("a/" + name, GIB)
    with pytest.raises(InvalidArgumentError, match="purge some"):
        await mds.client.delete("a/x")
    await mds.client.purge((await mds.client.list_deleted())[0].name)
    for _ in range(200):
        if len(await mds.client.list_deleted()) < 3:
            break
        await asyncio.sleep(0.01)
    await mds.client.delete("a/x")
