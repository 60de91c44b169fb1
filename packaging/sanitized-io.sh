#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# IO over NBD with the C parts under a sanitizer: the store, nbdkit and our plugin; fio verifies.
#   packaging/sanitized-io.sh address|thread BUILD_FOLDER BIN
# With "thread" the store's Python host runs as it is: gRPC's threads are not built for TSan.
set -euo pipefail
kind=${1:?usage: sanitized-io.sh address|thread BUILD_FOLDER BIN}
build=$(cd "${2:?usage: sanitized-io.sh address|thread BUILD_FOLDER BIN}" && pwd)
bin=$(cd "${3:?usage: sanitized-io.sh address|thread BUILD_FOLDER BIN}" && pwd)

export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99:verify_asan_link_order=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:exitcode=99
case "$kind" in
    address) runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ;;
    thread) runtime=$(gcc -print-file-name=libtsan.so) ;;
    *) echo "sanitized-io: '$kind' is neither address nor thread" >&2; exit 2 ;;
esac

meson install -C "$build" --quiet --no-rebuild
site=$(dirname "$(find "$build/root" -type d -name gateway -path '*-packages/gateway' | head -1)")
folder=$(mktemp -d /tmp/copygate-sanitized-XXXXXX)
socket=$folder/nbd.sock
pids=()
finish() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [[ $status -ne 0 ]]; then
        echo "sanitized-io: FAILED; logs in $folder" >&2
        tail -n 60 "$folder"/*.log >&2
    else
        rm -rf "$folder"
    fi
}
trap finish EXIT

ready() {
    for _ in $(seq 600); do
        [[ ! -s "$1" ]] || return 0
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

up=(up --json --data "$folder/data" --volume "v:1G" --wal-size 128M --mds-listen 127.0.0.1:0
    --grpc-listen 127.0.0.1:0 --chunkserver-listen 127.0.0.1:0)
if [[ "$kind" == address ]]; then
    # The environment reaches nbdkit too, so the plugin runs under the same library.
    LD_PRELOAD=$runtime PYTHONPATH=$site PYTHONMALLOC=malloc "$bin/python" -P -m gateway.cli.main \
        "${up[@]}" --nbd "unix:$socket" >"$folder/ready.json" 2>"$folder/up.log" &
    pids+=($!)
    ready "$folder/ready.json" "${pids[0]}"
else
    "$bin/copygate" "${up[@]}" --nbd none >"$folder/ready.json" 2>"$folder/up.log" &
    pids+=($!)
    ready "$folder/ready.json" "${pids[0]}"
    mds=$(sed -n 's/.*"mds": "\(.*\)".*/\1/p' "$folder/ready.json")
    # gcc 12's TSan does not know the layout of memory that newer kernels randomise to.
    LD_PRELOAD=$runtime setarch -R nbdkit --foreground --unix "$socket" --threads 16 \
        "$site/gateway/nbd/nbdkit-copygate-plugin.so" "mds=$mds" volume=v \
        >"$folder/nbdkit.out" 2>"$folder/nbdkit.log" &
    pids+=($!)
    for _ in $(seq 100); do [[ ! -S "$socket" ]] || break; sleep 0.1; done
fi

uri="nbd+unix:///v?socket=$socket"
cd "$folder"
fio --name=verify --ioengine=nbd --uri="$uri" --rw=randrw --bsrange=512-256k --bs_unaligned=1 \
    --iodepth=32 --size=64M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 \
    --output="$folder/fio.log"
fio --name=trim --ioengine=nbd --uri="$uri" --rw=randtrimwrite --bs=64k --iodepth=16 --size=64M \
    --output="$folder/fio-trim.log"
head -c 40000000 /dev/urandom >"$folder/in.raw"
nbdcopy --flush "$folder/in.raw" "$uri"
nbdcopy "$uri" "$folder/out.raw"
cmp -n 40000000 "$folder/in.raw" "$folder/out.raw"
nbdinfo --map --totals "$uri" >/dev/null

for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill -TERM "${pids[i]}"
    wait "${pids[i]}" || { echo "sanitized-io: a process ended with $?" >&2; exit 1; }
done
pids=()
if grep -nE 'ERROR: (Address|Leak)Sanitizer|runtime error:|WARNING: ThreadSanitizer' "$folder"/*.log
then
    exit 1
fi
echo "sanitized-io: IO over NBD under the $kind sanitizer: verified, nothing reported"
